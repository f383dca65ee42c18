"""A thousand nodes, a million entries: what a node works out when the membership changes, and whole large lives."""

from __future__ import annotations

import time

import pytest

from celery_distsched.clock import Clock
from celery_distsched.drivers import Member
from celery_distsched.info import Info
from celery_distsched.node_pool import NodePool
from celery_distsched.ring import Places
from tests.simulation.life import live
from tests.simulation.plan import BUSY, EntryPlan, Plan

NODES, ENTRIES, TTL_S = 1000, 1_000_000, 5.0


class VirtualClock(Clock):
    """Moves by hand."""

    now = 1000.0

    def elapsed(self) -> float:
        return self.now


def heartbeats(count: int, pulse: int) -> dict[str, Member]:
    return {
        f"node{number}#1": Member(f"{pulse}", Info(f"host{number}", 0, "same", "c", True, 10**15, 10**15).text())
        for number in range(count)
    }


@pytest.fixture(scope="module")
def places() -> Places:
    return Places.of(f"entry {number}" for number in range(ENTRIES))


def test_a_rebalance_of_a_thousand_nodes_moves_what_it_must(places: Places) -> None:
    """One of a thousand nodes goes: a node reads the members, makes the new ring, and finds what it gains."""
    clock = VirtualClock()
    pool = NodePool("node0", TTL_S, clock)
    pool.renewed("node0#1", clock.now, 10**15)
    before = pool.observe(heartbeats(NODES, 1), "same")
    mine = places.share(before.ring, before.place)
    clock.now += 0.25
    members = heartbeats(NODES - 1, 2)
    began_s = time.process_time()
    after = pool.observe(members, "same")
    gained, lost = places.moved(before.ring, before.place, after.ring, after.place)
    took_s = time.process_time() - began_s
    print(f"rebalance: {took_s:.3f} s of CPU; {len(mine)} entries before, {len(gained)} gained")
    assert (len(before.ring.nodes), len(after.ring.nodes)) == (NODES, NODES - 1)
    assert not lost
    assert mine | gained == places.share(after.ring, after.place)


def test_no_two_of_a_sample_of_the_nodes_own_an_entry_and_none_owns_many_more_than_its_share(places: Places) -> None:
    clock = VirtualClock()
    shares: list[set[str]] = []
    for number in range(8):
        pool = NodePool(f"node{number}", TTL_S, clock)
        pool.renewed(f"node{number}#1", clock.now, 10**15)
        view = pool.observe(heartbeats(NODES, 1), "same")
        shares.append(places.share(view.ring, view.place))
    assert len(set.union(*shares)) == sum(map(len, shares))
    assert max(map(len, shares)) <= 1.25 * ENTRIES / NODES


# What all nodes read of each other grows with the square of their number: a thousand take ten minutes.
@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("nodes", "entries", "same_redis"), [(NODES, 2 * NODES, False), (3, ENTRIES, True)], ids=["nodes", "entries"]
)
def test_a_large_cluster_keeps_its_promises_while_nodes_die_and_leave(
    nodes: int, entries: int, same_redis: bool
) -> None:
    """Whole nodes, as in every other simulation; each second some of the entries are due."""
    plan = Plan.of(0).but(
        kind=BUSY,
        nodes=nodes,
        entries=tuple(EntryPlan(5 + number % 20, "all") for number in range(entries)),
        delivery="at_least_once",
        same_redis=same_redis,
        slices=not same_redis,
        store_clock=True,
        store_name=True,
        most_at_once=1000,
        skew_s=0.05,
        deploys=False,
        steps=False,
    )
    cluster = live(1, plan=plan, storm_s=4.0, faults=("crash", "leave", "join"), skips=False)
    counts = cluster.promises.counts
    print(f"{len(cluster.nodes)} nodes, {entries} entries, {cluster.world.now:.1f} s: {dict(counts)}")
    assert counts["messages"] >= entries / 2
