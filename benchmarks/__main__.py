"""``python -m benchmarks [PART...]``: measure, and write what was found; ``make bench`` does it with the peers."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from datetime import datetime, timezone
from pathlib import Path

from benchmarks import machine
from benchmarks.bench import Bench
from benchmarks.contenders import ROOT
from benchmarks.parts import PARTS
from benchmarks.plots import draw
from benchmarks.report import Section

#: Only a whole run replaces the results that are kept with the source.
_KEPT = ROOT / "benchmarks"
_OTHER = ROOT / "build" / "bench"


def main() -> None:
    """Measure the parts that are asked for."""
    asked = _arguments()
    parts = asked.parts or list(PARTS)
    whole = not (asked.parts or asked.sizes or asked.quick)
    folder: Path = asked.out or (_KEPT if whole else _OTHER)
    folder.mkdir(parents=True, exist_ok=True)
    # A plain SIGTERM would leave the servers running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    load = os.getloadavg()[0]
    with Bench(runs=asked.runs, sizes=tuple(asked.sizes), quick=asked.quick, peers=not asked.alone) as bench:
        sections = []
        for name in parts:
            part = PARTS[name]
            bench.begin(part.budget_s)
            sections.append(part.run(bench))
            print(f"\n{sections[-1].markdown()}\n", flush=True)
            # After each part: a run that is stopped keeps what it has found.
            _write(sections, machine.lines(bench, load), folder)
    bench.say(f"written: {folder / 'RESULTS.md'}")


def _write(sections: list[Section], facts: list[str], folder: Path) -> None:
    drawn = draw([curve for section in sections for curve in section.curves], folder / "results.svg")
    text = [
        "# Results",
        f"Made by `make bench` on {datetime.now(timezone.utc):%Y-%m-%d}. Several runs were made in turn with the others"
        " (A B A B): the median, and the range in brackets. Machines differ; ratios carry over.",
        "\n".join(f"- {fact}" for fact in facts),
        "![Rate, lateness and idle cost](results.svg)" if drawn else "",
        *(section.markdown() for section in sections),
    ]
    (folder / "RESULTS.md").write_text("\n\n".join(filter(None, text)) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"all, or some of: {', '.join(PARTS)}")
    parser.add_argument("--runs", type=int, default=None, help="how often each is measured (3; quick: 1)")
    parser.add_argument("--sizes", type=int, nargs="*", default=[], help="numbers of entries")
    parser.add_argument("--quick", action="store_true", help="less of everything: three minutes")
    parser.add_argument("--alone", action="store_true", help="without the peers")
    parser.add_argument("--out", type=Path, default=None, help="folder for the results")
    asked = parser.parse_args()
    unknown = [part for part in asked.parts if part not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    asked.runs = asked.runs or (1 if asked.quick else 3)
    return asked


if __name__ == "__main__":
    main()
