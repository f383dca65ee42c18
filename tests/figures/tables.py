"""Figures as tables in Markdown: a section for each promise, and one table of all for the README."""

from __future__ import annotations

from collections.abc import Sequence

from tests.figures.figures import Measured, together
from tests.figures.promises import COLUMNS, PROMISES, STORES, Promise

BEGIN, END = "<!-- Written by `make figures`. -->\n", "<!-- The end of what `make figures` has written. -->\n"


def sections(figures: Sequence[Measured]) -> str:
    """Return a table for each promise: what was measured by which test, on each store."""
    return "\n\n".join(
        f"## {promise.title}\n\n{_section(promise, [one for one in figures if one.promise == key])}"
        for key, promise in PROMISES.items()
    )


def _section(promise: Promise, figures: Sequence[Measured]) -> str:
    by_cell: dict[tuple[str, str], dict[str, list[Measured]]] = {}
    for one in figures:
        by_cell.setdefault((one.test, one.what), {}).setdefault(one.store, []).append(one)
    rows = [["what, and by which test", *STORES.values()], ["---", *["---:"] * len(STORES)]]
    for (test, what), cells in sorted(by_cell.items()):
        file, _, name = test.partition("::")
        measured = [str(together(cells[store])) if store in cells else "" for store in STORES]
        rows.append([f"{what}: `{file}` `{name}`", *measured])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    # A reason holds for all the stores that have it.
    reasons = {
        why: [STORES[store] for store in STORES if promise.unsaid.get(store) == why] for why in promise.unsaid.values()
    }
    return "\n\n".join([table, *(f"{', '.join(stores)}: {why}." for why, stores in reasons.items())])


def overview(figures: Sequence[Measured]) -> str:
    """Return the README's table, in columns that a terminal shows as such."""
    rows = [["", "bound", *COLUMNS]]
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
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the README has no place for the table: {BEGIN!r} ... {END!r}")
    return f"{before}{BEGIN}\n{overview(figures)}\n{END}{after}"
