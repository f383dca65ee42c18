"""One seed's life of a cluster: hours of peace with episodes of faults in them, or one long storm."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from unittest.mock import patch

import celery_distsched.burst as burst
import celery_distsched.node_pool as node_pool
import celery_distsched.outbox as outbox
from celery_distsched.info import Info
from celery_distsched.record import Record
from celery_distsched.ring import HashRing
from tests.simulation.cluster import Cluster
from tests.simulation.faults import FAULTS
from tests.simulation.losses import parse
from tests.simulation.node import Node
from tests.simulation.plan import BUSY, Plan
from tests.simulation.world import World

HOUR_S = 3600.0
_ARCS = HashRing.arcs
_info = lru_cache(maxsize=8192)(Info.parse)


def live(
    seed: int,
    *,
    hours: float = 24.0,
    storm_s: float = 150.0,
    plan: Plan | None = None,
    faults: Sequence[str] = tuple(FAULTS),
    node_class: type[Any] = Node,
    skips: bool = True,
) -> Cluster:
    """Let a cluster live; raises `Broken` where a promise is not kept, and else returns it.

    Args:
        seed: Decides everything.
        hours: How long a calm life is.
        storm_s: How long a busy one is, in seconds.
        plan: Instead of the seed's own.
        faults: Those that may happen.
        node_class: What a node is, if not the package's own parts.
        skips: Whether time may be passed over in which only heartbeats come and go.
    """
    plan = plan or Plan.of(seed)
    cluster = Cluster(plan, seed, node_class=node_class, skips=skips)
    with _watched(cluster.world, seed):
        if plan.kind == BUSY:
            cluster.run(6)
            _storm(cluster, storm_s, faults, pause_s=3.0)
        else:
            _calm(cluster, hours * HOUR_S, faults)
        cluster.run(cluster.world.time + max(0.0, cluster.unsettled_until - cluster.world.now) + 5)
    return cluster


def _calm(cluster: Cluster, until: float, faults: Sequence[str]) -> None:
    world, random = cluster.world, cluster.world.random
    while world.time < until:
        at = world.time + random.expovariate(1 / cluster.plan.gap_s)
        if random.random() < 0.7:
            # Just before something falls due, or just after.
            at += 600 - at % 600 + random.uniform(-6, 2)
        cluster.next_episode_s = at
        cluster.run(min(at, until))
        if at < until:
            _storm(cluster, random.choice((0.5, 5.0, 15.0)), faults, pause_s=random.choice((0.05, 0.5, 3.0)))


def _storm(cluster: Cluster, seconds: float, faults: Sequence[str], pause_s: float) -> None:
    world, random = cluster.world, cluster.world.random
    until = world.time + seconds
    most = 12
    while world.time < until and most:
        most -= cluster.plan.kind != BUSY
        serving = cluster.serving
        if serving:
            FAULTS[random.choice(faults)](cluster, random.choice(serving))
        cluster.next_episode_s = world.time + random.expovariate(1 / pause_s)
        cluster.run(cluster.next_episode_s)
    cluster.next_episode_s = float("inf")


class _Errors(logging.Handler):
    """What the code under test catches and logs with a traceback is a bug that it has survived."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.ERROR)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1]:
            self._world.fail(record.exc_info[1])


@contextmanager
def _watched(world: World, seed: int) -> Iterator[None]:
    logger, errors = logging.getLogger("celery_distsched"), _Errors(world)
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.ERROR)
    logger.propagate = False
    logger.addHandler(errors)
    try:
        # These are values; that all nodes are in one process here need not cost one for each node.
        with (
            patch.object(node_pool, "HashRing", _ring),
            patch.object(HashRing, "arcs", _arcs),
            patch.object(Info, "parse", _info),
            patch.object(Record, "parse", parse),
            # A few entries are to make more than one slice.
            patch.object(burst, "_LARGE_SLICE", 3),
            patch.object(outbox, "_LARGEST_SLICE", 1 + seed % 2),
            patch.object(outbox, "_UNCONFIRMED_S", 0.001),
        ):
            yield
    finally:
        logger.removeHandler(errors)
        logger.setLevel(level)
        logger.propagate = propagate


def _ring(nodes: Iterable[str] = ()) -> HashRing:
    return _ring_of(frozenset(nodes))


@lru_cache(maxsize=256)
def _ring_of(nodes: frozenset[str]) -> HashRing:
    return HashRing(nodes)


@lru_cache(maxsize=2048)
def _arcs(ring: HashRing, node: str) -> frozenset[tuple[int, int]]:
    return frozenset(_ARCS(ring, node))
