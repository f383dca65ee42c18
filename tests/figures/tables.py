"""Figures as tables in Markdown: a section for each promise, and one table of all for the README."""

from __future__ import annotations

from collections.abc import Sequence

from tests.figures.figures import Measured, together
from tests.figures.promises import COLUMNS, PROMISES, STORES, Promise

BEGIN, END = "<!-- Written by `make figures`. -->\n", "<!-- So far. -->\n"


def sections(figures: Sequence[Measured]) -> str:
    """Return a table for each promise: the store, what was measured, and the tests."""
    return "\n\n".join(
        f"## {promise.title}\n\n{_section(promise, [one for one in figures if one.promise == key])}"
        for key, promise in PROMISES.items()
    )


def _section(promise: Promise, figures: Sequence[Measured]) -> str:
    rows = [["store", "measured", "what", "test"], ["---"] * 4]
    for store, name in STORES.items():
        if store in promise.unsaid:
            rows.append([name, "–", promise.unsaid[store], ""])
        by_test: dict[tuple[str, str, str], list[Measured]] = {}
        for one in figures:
            if one.store == store:
                by_test.setdefault((one.test, one.kind, one.what), []).append(one)
        for (test, _, what), several in sorted(by_test.items()):
            rows.append([name, str(together(several)), what, f"`{test.replace('::', '` `')}`"])
            name = ""
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def overview(figures: Sequence[Measured]) -> str:
    """Return the README's table, in columns that a terminal shows as such."""
    rows = [["", "at most", *COLUMNS]]
    for key, promise in PROMISES.items():
        cells = []
        for stores in COLUMNS.values():
            found = [one for one in figures if (one.promise, one.kind) == (key, promise.kind) and one.store in stores]
            cells.append(str(together(found)) if found else "–")
        rows.append([promise.title, promise.bound, *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in padded)


def with_overview(readme: str, figures: Sequence[Measured]) -> str:
    """Return the README with this table in its place."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    assert after, f"the README has no place for the table: {BEGIN!r} ... {END!r}"
    return f"{before}{BEGIN}\n{overview(figures)}\n{END}{after}"
