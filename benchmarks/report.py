"""What is found, as text: sections of tables in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median
from typing import NamedTuple


class Table(NamedTuple):
    """A table, and the words before it."""

    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    before: str = ""

    def markdown(self) -> str:
        """Return it with its numbers to the right."""
        lines = [self.heads, tuple("---" if column == 0 else "---:" for column in range(len(self.heads))), *self.rows]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        return f"{self.before}\n\n{table}" if self.before else table


class Curve(NamedTuple):
    """One line of a plot."""

    plot: str
    label: str
    points: list[tuple[float, float]]


class Section(NamedTuple):
    """What one part has found."""

    title: str
    tables: Sequence[Table]
    curves: Sequence[Curve] = ()
    after: str = ""

    def markdown(self) -> str:
        """Return it, with its title."""
        return "\n\n".join(filter(None, (f"## {self.title}", *(t.markdown() for t in self.tables), self.after)))


def number(value: float, digits: int = 3) -> str:
    """Return a number for people: three digits that mean something, thousands set apart."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    whole = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{round(value, digits - 1 - math.floor(math.log10(abs(value)))):,.{whole}f}"


def spread(values: Sequence[float]) -> str:
    """Return the median, and the range where there are several."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return "–"
    if len(known) == 1:
        return number(known[0])
    return f"{number(median(known))} ({number(min(known))}–{number(max(known))})"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Return the median of the ratios of runs made in turn."""
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=False) if other and math.isfinite(mine / other)]
    return f"{number(median(ratios))} ×" if ratios else "–"


def middle(values: Iterable[float]) -> float:
    """Return the median of what is a number; NaN if nothing is."""
    known = [value for value in values if math.isfinite(value)]
    return median(known) if known else math.nan


def percentile(values: Sequence[float], part: float) -> float:
    """Return the value below which so many of them lie (the nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(part * len(ordered)) - 1)] if ordered else math.nan
