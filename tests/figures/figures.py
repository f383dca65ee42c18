"""The figures as they were noted, those of one test on one store put together."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tests.figures.promises import PROMISES, SECONDS, STORES


class Measured(NamedTuple):
    """What one test, or several, have measured of a promise on a store."""

    promise: str
    store: str
    kind: str
    #: Of `SECONDS`: how long the slowest took; else how many, of `RUNS` those that were not as promised.
    value: float
    #: Of `SECONDS`: how long it may take; else how many there were.
    of: float
    what: str
    #: Its file and name, without the case.
    test: str

    def __str__(self) -> str:
        if self.kind == SECONDS:
            return f"{self.value:.2f} of {self.of:g} s"
        return f"{self.value:,.0f} of {self.of:,.0f}"


def read(path: Path) -> list[Measured]:
    """Return what is noted in a file."""
    lines = map(json.loads, path.read_text().splitlines())
    return [Measured(**{**line, "test": line["test"].partition("[")[0]}) for line in lines]


def together(figures: Iterable[Measured]) -> Measured:
    """Return the sum of counts, or of times the one that came nearest to its bound."""
    several = list(figures)
    if several[0].kind == SECONDS:
        return max(several, key=lambda one: one.value / one.of)
    return several[0]._replace(value=sum(one.value for one in several), of=sum(one.of for one in several))


def missing(figures: Iterable[Measured]) -> list[str]:
    """Return the cells without a figure of the kind that the README shows."""
    there = {(one.promise, one.store, one.kind) for one in figures}
    return [
        f"{promise.title}: {STORES[store]}"
        for key, promise in PROMISES.items()
        for store in STORES
        if store not in promise.unsaid and (key, store, promise.kind) not in there
    ]
