"""Run it: ``python -m tests.figures figures.jsonl``, with what a run of the tests has noted under ``FIGURES``."""

from __future__ import annotations

import argparse
import sys
from datetime import datetime, timezone
from pathlib import Path

from tests.figures import figures, machine, tables

_ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Write the page and the README's table; return 1, and name them, if cells have no figure."""
    parser = argparse.ArgumentParser(prog="python -m tests.figures", description=__doc__)
    parser.add_argument("noted", type=Path, help="one figure a line")
    given = parser.parse_args()
    measured = figures.read(given.noted)
    if missing := figures.missing(measured):
        print("no test has measured:", *missing, sep="\n  ", file=sys.stderr)
        return 1
    page = (Path(__file__).with_name("page.md").read_text()).format(
        day=datetime.now(timezone.utc).date(),
        figures=f"{len(measured):,}",
        tests=len({one.test for one in measured}),
        machine="\n".join(f"- {line}" for line in machine.lines()),
        overview=tables.overview(measured),
        sections=tables.sections(measured),
    )
    (_ROOT / "docs" / "guarantees.md").write_text(page)
    readme = _ROOT / "README.md"
    readme.write_text(tables.with_overview(readme.read_text(), measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
