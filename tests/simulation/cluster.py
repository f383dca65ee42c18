"""A simulated cluster: nodes, a store and a broker that fail by seed, and what must hold whatever happens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from celery.beat import ScheduleEntry

from celery_distsched.broker import Outcome
from celery_distsched.clock import Clock
from celery_distsched.dispatch import Dispatch
from celery_distsched.drivers import Answer, Driver, Member, StoreUrl, Swap
from celery_distsched.entries import PlannedEntry
from celery_distsched.errors import LeaseLost, StoreUnavailable
from celery_distsched.heartbeat import Heartbeat
from celery_distsched.instants import CatchUp
from celery_distsched.instants.interval import Interval
from celery_distsched.node_pool import NodePool
from celery_distsched.progress import Progress
from celery_distsched.settings import Settings
from tests.simulation.world import Process, World

_EPOCH_S = 1_800_000_000.0


class NodeClock(Clock):
    def __init__(self, world: World, skew_s: float) -> None:
        self.world, self.skew_s = world, skew_s

    def elapsed(self) -> float:
        return self.world.now

    def wall(self) -> float:
        return _EPOCH_S + self.world.now + self.skew_s


@dataclass
class Store:
    """What the store holds; each of its methods is one atomic step."""

    world: World
    nodes: dict[str, Member] = field(default_factory=dict)
    ledger: dict[str, str] = field(default_factory=dict)
    #: Until then nobody gets an answer.
    down_until: float = 0.0

    def swap(self, swaps: Sequence[Swap], fence: str | None) -> list[Answer]:
        if fence is not None and fence not in self.nodes:
            raise LeaseLost(fence)
        answers = []
        for swap in swaps:
            found = self.ledger.get(swap.key)
            if found == swap.expected:
                self.ledger[swap.key] = found = swap.new
                answers.append(Answer(True, found))
            else:
                answers.append(Answer(False, found))
        return answers


class SimulatedDriver(Driver):
    """The way of one node to the store: slow, deaf, or cut, as the seed has it."""

    timeout = 1.0

    def __init__(self, node: Node, store: Store, ttl_s: float) -> None:
        super().__init__(StoreUrl("sim"), namespace="sim", ttl_s=ttl_s, timeout_s=self.timeout)
        self.node, self.store, self.random = node, store, store.world.random

    def _call(self, step: Any) -> Any:
        """Run one atomic step in the store, between two waits; or lose it, lose its answer, or have it arrive late."""
        world, process = self.store.world, self.node.process
        process.sleep(self.random.expovariate(1 / 0.002))
        cut = world.now < self.node.cut_until or world.now < self.store.down_until
        fate = self.random.random()
        if cut or fate < self.node.faults.swap:
            if fate < self.node.faults.swap / 3 and not world.now < self.store.down_until:
                with contextlib.suppress(LeaseLost):
                    step()  # the answer is lost
            elif fate < self.node.faults.swap / 2:
                world.at(world.now + self.random.uniform(0.5, 8), lambda: self._late(step))
            process.sleep(self.timeout if self.random.random() < 0.7 else 0.001)
            raise StoreUnavailable("lost")
        answer, error = None, None
        try:
            answer = step()
        except LeaseLost as exc:
            error = exc
        process.sleep(self.random.expovariate(1 / 0.002))
        if error is not None:
            raise error
        return answer

    @staticmethod
    def _late(step: Any) -> None:
        with contextlib.suppress(LeaseLost):
            step()

    def _time(self) -> int:
        return round((_EPOCH_S + self.store.world.now) * 1e6)

    def join(self, membership: str, info: str) -> int:
        def step() -> int:
            self.store.nodes[membership] = Member("1", info)
            return self._time()

        return int(self._call(step))

    def renew(self, membership: str, info: str) -> int:
        def step() -> int:
            if membership not in self.store.nodes:
                raise LeaseLost(membership)
            self.store.nodes[membership] = Member(str(int(self.store.nodes[membership].pulse) + 1), info)
            return self._time()

        return int(self._call(step))

    def members(self) -> dict[str, Member]:
        return dict(self._call(lambda: dict(self.store.nodes)))

    def remove(self, membership: str) -> None:
        self._call(lambda: self.store.nodes.pop(membership, None))

    def read(self, keys: Sequence[str]) -> list[str | None]:
        return list(self._call(lambda: [self.store.ledger.get(key) for key in keys]))

    def swap(self, swaps: Sequence[Swap], fence: str | None = None) -> list[Answer]:
        return list(self._call(lambda: self.store.swap(swaps, fence)))

    def close(self) -> None:
        pass


@dataclass
class Faults:
    """How likely each thing is, per call."""

    swap: float = 0.0
    refused: float = 0.0
    unknown: float = 0.0


@dataclass
class Delivery:
    at: float
    membership: str
    attempt: int


class NoInterrupts:
    pending = False

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        yield


class Node:
    """One beat: the package's own parts on this world's clock."""

    def __init__(self, cluster: Cluster, number: int, faults: Faults) -> None:
        world = cluster.world
        self.cluster, self.faults, self.cut_until = cluster, faults, 0.0
        self.process = Process(world)
        self.node_id = f"host{number % 3}-{number}-x"
        clock = NodeClock(world, world.random.uniform(-cluster.skew_s, cluster.skew_s))
        progress = Progress(at=world.now)
        driver = SimulatedDriver(self, cluster.store, cluster.settings.node_ttl)
        self.pool = NodePool(self.node_id, cluster.settings.node_ttl, clock)
        self.dispatch = Dispatch(
            driver, self.pool, progress, clock, cluster.settings,
            send=self._send, probe=lambda: True, interrupts=NoInterrupts(),  # type: ignore[arg-type]
        )  # fmt: skip
        self.heartbeat = Heartbeat(driver, self.pool, clock, progress, host=f"host{number % 3}", cluster="c")
        self.heartbeat.digest = "d"
        self.dispatch.set_entries(cluster.entries)
        self.process.thread(self._beat)
        self.process.thread(self._tick)

    def _beat(self) -> None:
        while not self.dispatch.closed:
            self.process.sleep(self.heartbeat.step())
        self.heartbeat._farewell = self.dispatch.ledger.hand_back
        self.heartbeat._leave()
        self.process.alive = False

    def _tick(self) -> None:
        while not self.dispatch.closed:
            self.process.sleep(max(self.dispatch.tick(), 0.001))

    def _send(self, planned: PlannedEntry, instant: int, attempt: int) -> Outcome:
        world = self.cluster.world
        fate = world.random.random()
        if fate < self.faults.refused:
            self.process.sleep(0.01)
            return Outcome.REFUSED
        self.process.sleep(world.random.expovariate(1 / 0.001))
        if fate < self.faults.refused + self.faults.unknown:
            self.cluster.excuse(planned.name, instant, "unknown outcome")
            if world.random.random() < 0.5:
                self.cluster.deliver(planned.name, instant, self, attempt)
            self.process.sleep(1.0)
            return Outcome.UNKNOWN
        self.cluster.deliver(planned.name, instant, self, attempt)
        self.process.sleep(world.random.expovariate(1 / 0.001))
        return Outcome.ACCEPTED

    def crash(self) -> None:
        for name, holding in self.dispatch.ledger.holdings.items():
            for instant in holding.phases:
                self.cluster.excuse(name, instant, "its sender crashed")
        self.process.kill()

    def freeze(self, seconds: float) -> None:
        for name, holding in self.dispatch.ledger.holdings.items():
            for instant in holding.phases:
                self.cluster.excuse(name, instant, "its sender was frozen")
        self.process.frozen_until = self.cluster.world.now + seconds

    def leave(self) -> None:
        self.dispatch.closed = True


class Cluster:
    """Nodes that come and go, what they sent, and what they may be forgiven."""

    def __init__(self, seed: int, *, nodes: int = 3, entries: int = 8, delivery: str = "at_least_once") -> None:
        self.world = World(seed)
        self.store = Store(self.world)
        self.settings = Settings(StoreUrl("sim"), node_ttl=5.0, delivery=delivery)
        self.skew_s = 0.0
        self.entries = {
            f"entry{n}": PlannedEntry(_named(f"entry{n}"), Interval(1_000_000 * (1, 2, 3, 31)[n % 4]), CatchUp("all"))
            for n in range(entries)
        }
        self.faults = Faults()
        self.nodes: list[Node] = []
        self.delivered: dict[tuple[str, int], list[Delivery]] = {}
        self.excuses: dict[tuple[str, int], str] = {}
        for _ in range(nodes):
            self.add()

    def add(self) -> Node:
        node = Node(self, len(self.nodes), self.faults)
        self.nodes.append(node)
        return node

    @property
    def living(self) -> list[Node]:
        return [node for node in self.nodes if node.process.alive and not node.dispatch.closed]

    def excuse(self, name: str, instant: int, why: str) -> None:
        self.excuses[name, instant] = why

    def deliver(self, name: str, instant: int, node: Node, attempt: int) -> None:
        before = self.delivered.setdefault((name, instant), [])
        before.append(Delivery(self.world.now, node.dispatch.ledger.me, attempt))
        # A node that is no member was called dead before its confirm.
        void = all(sent.membership not in self.store.nodes for sent in before[:-1])
        if len(before) > 1 and (name, instant) not in self.excuses and not (void and attempt > 1):
            raise AssertionError(f"{name} at {instant} was sent twice without a cause: {before}")
        if len(before) > 1 and self.settings.at_most_once:
            raise AssertionError(f"{name} at {instant} was sent twice: {before}")

    def lost(self, until_us: int) -> list[tuple[str, int]]:
        """Instants between an entry's first run and then that were never sent."""
        lost = []
        for name, planned in self.entries.items():
            sent = sorted(instant for entry, instant in self.delivered if entry == name)
            every = planned.rule.after(0) if planned.rule else None
            assert sent, f"{name} never ran"
            assert every
            lost += [(name, at) for at in range(sent[0], until_us, every) if (name, at) not in self.delivered]
        return lost


def _named(name: str) -> ScheduleEntry:
    entry = ScheduleEntry.__new__(ScheduleEntry)
    entry.name = name
    return entry
