"""One node joins: the time that another takes to compute its new share, by arithmetic alone."""

from __future__ import annotations

import time
from typing import NamedTuple

from benchmarks.bench import Bench
from benchmarks.report import Section, Table, middle, number
from celery_distsched.ring import HashRing, Places


class Rebalanced(NamedTuple):
    """Times in milliseconds, names in numbers."""

    ring_ms: float
    share_ms: float
    moved: int
    share: int


def run(bench: Bench) -> Section:
    """Measure rings and schedules of growing size."""
    rows = []
    for entries in bench.sizes((10_000, 100_000, 1_000_000), (10_000, 100_000)):
        bench.say(f"rebalance: {entries:,} entries")
        places = Places.of(f"entry-{n}" for n in range(entries))
        for nodes in bench.choose((10, 100, 1_000), (10, 100)):
            found = [rebalance(places, nodes) for _ in bench.rounds()]
            rows.append(
                (
                    f"{entries:,}",
                    f"{nodes:,}",
                    number(middle(one.ring_ms for one in found)),
                    number(middle(one.share_ms for one in found)),
                    number(found[0].share),
                    number(found[0].moved),
                )
            )
    heads = ("entries", "nodes", "new ring, ms", "new share, ms", "its entries", "of them moved")
    return Section("Rebalance", [Table(heads, rows, "On one node, when one more node joins.")])


def rebalance(places: Places, nodes: int) -> Rebalanced:
    """Let one node join so many."""
    names = [f"host-{n}/0" for n in range(nodes + 1)]
    before = HashRing(names[:-1])
    held = places.share(before, names[0])
    began = time.perf_counter()
    after = HashRing(names)
    ring_at = time.perf_counter()
    share = places.share(after, names[0])
    gained, lost = share - held, held - share
    done = time.perf_counter()
    return Rebalanced(1000 * (ring_at - began), 1000 * (done - ring_at), len(gained) + len(lost), len(held))
