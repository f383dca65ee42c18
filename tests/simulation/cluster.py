"""A simulated cluster: nodes that come and go around one store and one broker, and what must hold whatever happens."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

from celery.beat import ScheduleEntry

from celery_distsched.drivers import StoreUrl
from celery_distsched.entries import PlannedEntry
from celery_distsched.instants import CatchUp
from celery_distsched.instants.interval import Interval
from celery_distsched.record import node_of
from celery_distsched.settings import Settings
from tests.simulation.broker import Broker
from tests.simulation.node import Node
from tests.simulation.plan import EntryPlan, Plan
from tests.simulation.promises import Promises
from tests.simulation.store import Store
from tests.simulation.world import World

#: How often the simulation looks around, on `World.now`.
_LOOK_S = 0.25


class Cluster:
    """One world with everything in it."""

    def __init__(self, plan: Plan, seed: int, *, node_class: type[Any] = Node, skips: bool = True) -> None:
        self.plan, self.seed, self.node_class, self.skips = plan, seed, node_class, skips
        self.world = World(seed)
        #: Those of the longest TTL: it is the bound for all.
        self.settings = Settings(StoreUrl("sim"), node_ttl=plan.ttls_s[0], delivery=plan.delivery)
        self.store = Store(self.world, has_clock=plan.store_clock, has_name=plan.store_name)
        self.broker = Broker()
        self.errors_s = {f"host{number}": self.world.random.uniform(-plan.skew_s, plan.skew_s) for number in range(3)}
        self.promises: Promises = node_class.promises_class(self)
        self.version = 0
        self.nodes: list[Any] = []
        #: By node id, also of those that have gone.
        self.ttls_s: dict[str, float] = {}
        #: (node or None for all, from, until, what), on `World.now`.
        self.troubles: list[tuple[Any, float, float, str]] = []
        #: When the last of them ends.
        self.troubled_until = 0.0
        #: Until then nobody has to be in time, on `World.now`.
        self.unsettled_until = self.settings.node_ttl + 2
        #: When the next thing is to happen to the cluster, on `World.time`.
        self.next_episode_s = float("inf")
        #: Until then nobody is to come or go, on `World.now`.
        self.keep_until = 0.0
        self._number = 0
        for _ in range(plan.nodes):
            self.add()
        self.world.after(_LOOK_S, self._look)

    # Nodes

    def add(self) -> Any:
        self._number += 1
        node = self.node_class(self, self._number, self.version)
        self.nodes.append(node)
        # Who joins gives everybody a TTL to be seen, also those who have just died, and may be who has to take over.
        now, ttl_s = self.world.now, self.settings.node_ttl
        after_a_death = any(what == "crash" and now - begins < ttl_s for _, begins, _, what in self.troubles)
        self.settling(ttl_s + 1.5 if after_a_death else 1.5)
        return node

    def settings_of(self, number: int) -> Settings:
        """Return the settings of a node by its number."""
        ttls_s = self.plan.ttls_s
        return replace(self.settings, node_ttl=ttls_s[number % len(ttls_s)])

    @property
    def serving(self) -> list[Any]:
        return [node for node in self.nodes if node.serves]

    def host_error(self, host: str) -> float:
        return self.errors_s[host]

    def step_clock(self, host: str, seconds: float) -> None:
        """The wall clock of one host jumps."""
        self.errors_s[host] += seconds
        for node in self.nodes:
            if node.host == host:
                node.clock.error_s += seconds

    # Entries

    def entries_of(self, version: int) -> dict[str, PlannedEntry]:
        """What a node of this version of the deployment knows: each edits an entry, and has one of its own."""
        plans = {f"entry{number}": (entry, "0") for number, entry in enumerate(self.plan.entries)}
        if self.plan.deploys:
            plans[f"only{version}"] = (self.plan.entries[0], "0")
            edited = self.plan.entries[0]
            edited = replace(edited, every_s=edited.every_s * (1 + version % 2))
            plans["entry0"] = (edited, f"{version}")
        return {name: _planned(name, entry, fingerprint) for name, (entry, fingerprint) in plans.items()}

    def carried(self) -> dict[str, PlannedEntry]:
        """Return what there is to run: of each entry the newest version that a serving node has."""
        known: dict[str, PlannedEntry] = {}
        for node in sorted(self.serving, key=lambda node: node.version):
            known.update(node.entries)
        return known

    # What may excuse what

    def trouble(self, node: Any, seconds: float, what: str, *, settle_s: float | None = None) -> None:
        """Note that something happens to a node, or to all, for so long."""
        now = self.world.now
        self.troubles.append((node, now, now + seconds, what))
        self.troubled_until = max(self.troubled_until, now + seconds)
        if settle_s is None or now < self.unsettled_until:
            # Troubles that overlap add up: one TTL until a death is seen, and one more where the observer was away.
            settle_s = 2 * self.settings.node_ttl + 2
        self.settling(seconds + settle_s)

    def settling(self, seconds: float) -> None:
        self.unsettled_until = max(self.unsettled_until, self.world.now + seconds)

    # Time

    def run(self, until: float) -> None:
        """Let things happen until the calendar shows this time, in seconds since the start."""
        self.world.run(until)

    def _look(self) -> None:
        self.promises.check_in_time()
        if self.skips and self.world.now >= self.troubled_until and self._quiet():
            # Whoever looks like this has settled, and has to be in time from now on.
            self.unsettled_until = min(self.unsettled_until, self.world.now)
            self._skip()
        self.world.after(_LOOK_S, self._look)

    def _quiet(self) -> bool:
        members = set(self.store.nodes)
        self.nodes = [node for node in self.nodes if node.process.alive]
        if not members or sorted(map(node_of, members)) != sorted(node.node_id for node in self.nodes):
            return False
        return (
            all(node.serves and node.quiet(members) for node in self.nodes)
            and not any(loss.plain and loss.noticed_at is None for loss in self.promises.losses.felt)
            and {node.progress.generation for node in self.nodes} == {self.store.generation}
            and not self.promises.unsettled
        )

    def _skip(self) -> None:
        """Pass over the time in which only heartbeats would come and go.

        The troubles of before are too long ago to matter from here on.
        """
        upto = min(self.next_episode_s, *(node.next_s() for node in self.nodes)) - _LOOK_S
        seconds = upto - self.world.time
        if seconds > 1.0 and seconds != float("inf"):
            self.world.skip(seconds)
            for node in self.nodes:
                node.skip(seconds)
            self.promises.forget_settled()
            self.troubles.clear()


@lru_cache(maxsize=4096)
def _planned(name: str, plan: EntryPlan, fingerprint: str) -> PlannedEntry:
    entry = ScheduleEntry.__new__(ScheduleEntry)
    entry.name = name
    return PlannedEntry(
        name, entry, Interval(plan.every_s * 1_000_000), CatchUp(plan.catch_up), plan.jitter_s, True, fingerprint
    )
