"""The promises as invariants, under faults that a seed chooses; a seed that fails fails again."""

from __future__ import annotations

import pytest

from tests.simulation.cluster import _EPOCH_S, Cluster


def storm(seed: int, delivery: str = "at_least_once", seconds: float = 120.0) -> Cluster:
    """Let faults rain on a cluster for a while, then give it a minute of peace."""
    cluster = Cluster(seed, delivery=delivery)
    world, random = cluster.world, cluster.world.random
    world.run(5)
    while world.now < seconds:
        cluster.faults.swap = random.choice((0, 0, 0.02, 0.2))
        cluster.faults.unknown = random.choice((0, 0, 0.05))
        cluster.faults.refused = random.choice((0, 0, 0.1))
        node = random.choice(cluster.living)
        match random.choice(("crash", "freeze", "cut", "leave", "add", "outage", "evict", "peace")):
            case "crash" if len(cluster.living) > 1:
                node.crash()
                cluster.add()
            case "freeze":
                node.freeze(random.uniform(0.1, 12))
            case "cut":
                node.cut_until = world.now + random.uniform(0.5, 12)
            case "leave" if len(cluster.living) > 1:
                node.leave()
                cluster.add()
            case "add" if len(cluster.living) < 5:
                cluster.add()
            case "outage":
                cluster.store.down_until = world.now + random.uniform(0.1, 3)
            case "evict":
                if cluster.store.nodes:
                    cluster.store.nodes.pop(random.choice(sorted(cluster.store.nodes)))
        world.run(world.now + random.expovariate(1 / 3))
    cluster.faults.swap = cluster.faults.unknown = cluster.faults.refused = 0
    world.run(world.now + 40)
    return cluster


def check(cluster: Cluster) -> None:
    from celery_distsched.record import Record

    end_us = round((_EPOCH_S + cluster.world.now - 10) * 1e6)
    for name, text in cluster.store.ledger.items():
        if name not in cluster.entries:
            continue
        record = Record.parse(text)
        following = cluster.entries[name].rule.after(record.last)  # type: ignore[union-attr]
        assert following is not None
        assert following > end_us, f"{name} stands still at {record}"
        assert all(at > end_us for at in record.open), f"{name} has forgotten marks: {record}"


@pytest.mark.parametrize("seed", range(25))
def test_at_least_once_nothing_is_lost_and_nothing_doubled_without_a_cause(seed: int) -> None:
    cluster = storm(seed)
    check(cluster)
    end_us = round((_EPOCH_S + cluster.world.now - 10) * 1e6)
    assert cluster.lost(end_us) == []


@pytest.mark.parametrize("seed", range(10))
def test_at_most_once_nothing_is_doubled(seed: int) -> None:
    check(storm(seed, "at_most_once"))
