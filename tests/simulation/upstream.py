"""The ring alone, for comparison: whoever the ring names sends, and nothing is claimed.

Each node writes its own wall clock into the store and takes for alive whoever wrote less than a TTL ago by the reader's
wall clock. Where the store does not answer, the ring stays as it is.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from celery_distsched.clock import microseconds
from celery_distsched.drivers.base import Member
from celery_distsched.entries import PlannedEntry
from celery_distsched.errors import StoreUnavailable
from celery_distsched.outcome import Outcome
from celery_distsched.ring import HashRing
from tests.simulation.cluster import Cluster
from tests.simulation.node import NodeClock, Victim
from tests.simulation.promises import Promises, Run
from tests.simulation.store import SimulatedDriver
from tests.simulation.world import Process

_TICK_S = 0.05


class RingPromises(Promises):
    """What can be asked of nodes that claim nothing: each instant is sent, once, and not before its time."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        #: From here on every instant has to be sent.
        self._from_us = self.world.time_us + microseconds(cluster.settings.node_ttl + 2)

    def sends(self, node: Any, name: str, instant: int) -> None:
        early_s = (instant - self.world.time_us - self.skew_us) / 1e6
        if early_s > 0:
            self.fail("clocks", f"{node.node_id} sends {name} {instant} {early_s:.3f} s too early")
        run = self.runs.setdefault((name, instant), Run(self.world.now))
        run.attempts.append((self.world.now, node))

    def check_in_time(self) -> None:
        if self.world.now - self.cluster.unsettled_until < 1.0:
            return
        upto_us = self.world.time_us - microseconds(1.0) - self.skew_us
        for name, planned in self.cluster.carried().items():
            if planned.catch_up.policy != "all":
                continue
            every_us = every(planned)
            for instant in range(-(-self._from_us // every_us) * every_us, upto_us, every_us):
                run = self.runs.get((name, instant))
                if run is None or not run.messages:
                    self.fail("delivery", f"{name} {instant} was never sent")
        self._from_us = max(self._from_us, upto_us)


def every(planned: PlannedEntry) -> int:
    """Return the interval in microseconds: its instants are the multiples of it, as those of a crontab are."""
    assert planned.rule is not None
    return planned.rule.after(0) or 0


class UpstreamNode(Victim):
    """A beat that trusts its ring. It has a heartbeat each fifth of a TTL, as ours has."""

    promises_class: ClassVar[type[Promises]] = RingPromises

    def __init__(self, cluster: Cluster, number: int, version: int) -> None:
        self.cluster, self.world, self.version = cluster, cluster.world, version
        self.settings = cluster.settings
        self.process = Process(cluster.world)
        self.host = f"host{number % 3}"
        self.node_id = f"{self.host}-{number}"
        self.clock = NodeClock(cluster.world, cluster.host_error(self.host))
        self.driver = SimulatedDriver(cluster, self, cluster.settings.node_ttl)
        self.entries = cluster.entries_of(version)
        self.ring = HashRing()
        self._seen_us = self._wall_us()
        self._beats = self.process.thread(self._beat)
        self._ticks = self.process.thread(self._tick)

    @property
    def serves(self) -> bool:
        return self.process.alive

    def leave(self) -> None:
        """SIGTERM; the others find out."""
        self._end()

    def _wall_us(self) -> int:
        return microseconds(self.clock.wall())

    def _beat(self) -> None:
        ttl_s, nodes = self.cluster.settings.node_ttl, self.cluster.store.nodes
        while True:
            try:
                mine = {self.node_id: Member(str(self._wall_us()), "")}
                self.driver._call(partial(nodes.update, mine), write=True)
                members = self.driver.members()
                old_us = self._wall_us() - microseconds(ttl_s)
                alive = frozenset(node for node, member in members.items() if int(member.pulse) > old_us)
                if alive != self.ring.nodes:
                    self.ring = HashRing(alive)
            except StoreUnavailable:
                pass  # the ring stays as it is
            self.process.sleep(ttl_s / 5)

    def _tick(self) -> None:
        while True:
            now_us = self._wall_us()
            for name, planned in self.entries.items():
                instant = now_us // every(planned) * every(planned)
                if instant > self._seen_us and self.ring.owner(name) == self.node_id:
                    while self.cluster.broker.send(self, name, instant, 1) is Outcome.REFUSED:
                        self.process.sleep(0.25)
            self._seen_us = now_us
            self.process.sleep(_TICK_S)
