"""The parts, in the order in which they run: name → what does it, and the seconds that it should be content with."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from benchmarks.bench import Bench
from benchmarks.parts import burst, idle, limit, rebalance, scale, start, steady, stores
from benchmarks.report import Section


class Part(NamedTuple):
    """One part."""

    run: Callable[[Bench], Section]
    #: Seconds after which no further round is begun.
    budget_s: float


PARTS = {
    "limit": Part(limit.run, 30),
    "burst": Part(burst.run, 500),
    "stores": Part(stores.run, 300),
    "scale": Part(scale.run, 300),
    "steady": Part(steady.run, 150),
    "start": Part(start.run, 100),
    "idle": Part(idle.run, 250),
    "rebalance": Part(rebalance.run, 60),
}
