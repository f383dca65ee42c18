"""One simulated beat: the package's own heartbeat, pool, ledger and dispatch, unchanged, on this world's clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from celery_distsched.clock import Clock, microseconds
from celery_distsched.dispatch import Dispatch
from celery_distsched.drivers.base import Push
from celery_distsched.entries import PlannedEntry
from celery_distsched.heartbeat import Heartbeat
from celery_distsched.holding import Phase
from celery_distsched.interrupts import _PATIENCE_S
from celery_distsched.node import _TAKING_ON_S
from celery_distsched.node_pool import NodePool
from celery_distsched.outcome import Outcome
from celery_distsched.progress import Progress
from celery_distsched.schedule_epoch import Schedule
from celery_distsched.scheduler import _FAREWELL_S
from tests.one_by_one import OneByOne
from tests.simulation.promises import Promises
from tests.simulation.store import SimulatedDriver
from tests.simulation.world import EPOCH_S, Process, Thread, World

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster


class NodeClock(Clock):
    """The clocks of one host: its boot was at a time of its own, and its wall clock is wrong by `error_s`."""

    def __init__(self, world: World, error_s: float) -> None:
        self.world, self.error_s = world, error_s
        self._booted = world.random.uniform(-1e6, 0)

    def elapsed(self) -> float:
        return self.world.now - self._booted

    def wall(self) -> float:
        return EPOCH_S + self.world.time + self.error_s


class Interrupts:
    """SIGTERM waits for the end of a tick, for half a second at most."""

    def __init__(self, end: Callable[[], None]) -> None:
        self.pending, self.holding, self._end = False, False, end

    @contextmanager
    def held(self) -> Iterator[None]:
        self.holding = True
        yield
        self.holding = False
        if self.pending:
            self.pending = False
            self._end()


class OneStep(OneByOne):
    """Where the queue is in the store: claim and push in one step."""

    def __init__(self, driver: SimulatedDriver) -> None:
        self.claim_and_push = driver.claim_and_push

    def same_redis(self, now: float) -> OneStep:
        return self

    def takes(self, name: str) -> bool:
        return True


class Slices(OneByOne):
    """What is claimed is sent in slices, while the next is being claimed."""

    slicing = True

    def __init__(self, node: Node) -> None:
        self._node = node

    def slices(self, now: float) -> Slices:
        return self

    def send(
        self, entries: Mapping[str, tuple[Sequence[int], Sequence[Push]]]
    ) -> Callable[[], dict[str, list[Outcome]]]:
        slice_ = {name: instants for name, (instants, _) in entries.items()}
        return self._node.cluster.broker.send_slice(self._node, slice_)


class Victim:
    """One process with its two threads, and what may happen to it."""

    cluster: Cluster
    world: World
    process: Process
    _beats: Thread
    _ticks: Thread
    ended_at = float("inf")

    def crash(self) -> None:
        self._end()

    def _end(self) -> None:
        self.ended_at = min(self.ended_at, self.world.now)
        self.process.kill()

    def knows_mark(self, text: str) -> bool:
        """Whether it takes the ledger with this mark for the one that it knows."""
        return False

    def freeze(self, seconds: float) -> None:
        self.process.frozen_until = self.world.now + seconds

    def hang(self, seconds: float) -> None:
        """Let the scheduler's loop stand still, and the heartbeat's thread go on."""
        self._ticks.hangs_until = self.world.now + seconds


class Node(Victim):
    """A beat of ours."""

    driver_class: ClassVar[type[SimulatedDriver]] = SimulatedDriver
    promises_class: ClassVar[type[Promises]] = Promises

    def __init__(self, cluster: Cluster, number: int, version: int) -> None:
        world, settings = cluster.world, cluster.settings_of(number)
        self.cluster, self.world, self.version, self.settings = cluster, world, version, settings
        self.process = Process(world)
        host = f"host{number % 3}"
        self.node_id = f"{host}-{number}-x"
        cluster.ttls_s[self.node_id] = settings.node_ttl
        self.clock = NodeClock(world, cluster.host_error(host))
        self.host = host
        progress = Progress(at=self.clock.elapsed())
        self.driver = self.driver_class(cluster, self, settings.node_ttl)
        self.pool = NodePool(self.node_id, settings.node_ttl, self.clock)
        self.interrupts = Interrupts(self._hand_over)
        self.dispatch = Dispatch(
            self.driver, self.pool, progress, self.clock, settings,
            send=self._send, probe=self._probe,
            fast_way=self._fast_way(),  # type: ignore[arg-type]
            interrupts=self.interrupts,  # type: ignore[arg-type]
        )  # fmt: skip
        self.heartbeat = Heartbeat(self.driver, self.pool, self.clock, progress, host=host, cluster="c")
        self.progress = progress
        self.entries = cluster.entries_of(version)
        self.heartbeat.schedule = Schedule(f"v{version}", tuple(self.entries))
        self.dispatch.set_entries(self.entries)
        self._note_losses()
        self._beats = self.process.thread(self._beat)
        self._ticks = self.process.thread(self._tick)

    def _fast_way(self) -> OneByOne:
        if self.cluster.plan.same_redis:
            return OneStep(self.driver)
        return Slices(self) if self.cluster.plan.slices else OneByOne()

    def _note_losses(self) -> None:
        tally, report = self.dispatch.records.tally, self.dispatch.records.tally.possibly_lost

        def possibly_lost(name: str, instant: int, why: str) -> None:
            self.cluster.promises.counted(name, instant)
            report(name, instant, why)

        tally.possibly_lost = possibly_lost  # type: ignore[method-assign]

    # Its threads

    def _beat(self) -> None:
        while not self.dispatch.closed:
            self._beats.wait(self.heartbeat.step())
        self.heartbeat._farewell = self.dispatch.hand_back
        self.heartbeat._leave()
        self._end()

    def _tick(self) -> None:
        while not self.dispatch.closed:
            self.process.sleep(max(self.dispatch.tick(), 0.001))

    def _send(self, planned: PlannedEntry, instant: int, attempt: int) -> Outcome:
        return self.cluster.broker.send(self, planned.name, instant, attempt)

    def _probe(self) -> bool:
        self.process.sleep(0.005)
        return self.cluster.broker.reachable(self.world, self.node_id)

    # What happens to it

    def leave(self) -> None:
        """SIGTERM."""
        if self.interrupts.holding:
            self.interrupts.pending = True
            self.world.after(_PATIENCE_S, self._lose_patience)
        else:
            self._hand_over()

    def _lose_patience(self) -> None:
        if self.interrupts.pending:
            self._close()

    def _hand_over(self) -> None:
        if len(self.pool.view.ring.nodes) > 1:
            self.heartbeat.leaving = True
            self._beats.interrupt()
            self.world.after(self.pool.poll_s + _TAKING_ON_S, self._close)
        else:
            self._close()

    def _close(self) -> None:
        if not self.dispatch.closed:
            self.dispatch.closed = True
            # The handler runs on the stack of the loop, which does not come back from it.
            self._ticks.hangs_until = float("inf")
            self._beats.interrupt()
            self.world.after(_FAREWELL_S, self._end)

    # What the simulation asks

    @property
    def serves(self) -> bool:
        leaves = self.dispatch.closed or self.interrupts.pending or self.heartbeat.leaving
        return self.process.alive and not leaves

    def trusted_until(self) -> float:
        """The end of its trust by the protocol, on `World.now`, worked out apart from the code under test."""
        ttl_s = self.settings.node_ttl
        return self.driver.renewal_began + ttl_s - min(ttl_s / 10, 0.5)

    def knows_mark(self, text: str) -> bool:
        known = self.dispatch._store_loss._known
        return known is not None and known.text() == text

    @property
    def putting_back(self) -> bool:
        """Whether it reads what is not its own, after the store has lost data."""
        return bool(self.dispatch._store_loss._to_put_back)

    def holds(self, name: str, instant: int) -> bool:
        """Whether it knows that this claim is its own."""
        holding = self.dispatch.records.holdings.get(name)
        return holding is not None and holding.phases.get(instant) in (Phase.CLAIMED, Phase.SENDING, Phase.DONE)

    def quiet(self, members: set[str]) -> bool:
        """Whether nothing changes here until the next instant."""
        view, records = self.pool.view, self.dispatch.records
        settled = (
            not self.interrupts.holding and self.progress.ready and self.dispatch._outbox.open and self.pool.trusted()
        ) and self.pool._time._step is None
        idle = not records.busy and not records.unread and not records.watched and not records.absent
        loss_is_over = not self.dispatch._store_loss._holds_back
        agreed = view.alive.keys() == members and all(info.active for info in view.alive.values())
        # What has come to it with the latest ring it does not know of before its next tick.
        followed = self.dispatch._followed == (view.ring, view.place)
        return settled and idle and loss_is_over and agreed and followed

    def next_s(self) -> float:
        """The calendar's time of the next instant, in seconds since the start."""
        next_us, now_us = self.dispatch._agenda.timetable.next_us(), self.pool.now_us()
        if next_us is None or now_us is None:
            return float("inf")
        return self.world.time + (next_us - now_us) / 1e6

    def skip(self, seconds: float) -> None:
        """The calendar moves on between two heartbeats: cluster time follows, and what is only remembered ages."""
        pool, time, records, moved_us = self.pool, self.pool._time, self.dispatch.records, microseconds(seconds)
        time._store = None if time._store is None else time._store + moved_us
        time._walls = {node: deque((at + moved_us for at in walls), 20) for node, walls in time._walls.items()}
        time._peers = {node: at + moved_us for node, at in time._peers.items()}
        time._undated = {node: (at + moved_us, knew) for node, (at, knew) in time._undated.items()}
        if time._step is not None:
            time._step = time._step[0] + moved_us, time._step[1]
        if time.offset_us is not None:
            time.offset_us += moved_us
        if pool.view.offset_us is not None:
            pool.view = replace(pool.view, offset_us=pool.view.offset_us + moved_us)
        silent_since = self.clock.elapsed() - pool.view.longest_ttl_s
        pool._pulses = {
            member: pulse if pulse.seen_at > silent_since else pulse._replace(seen_at=pulse.seen_at - seconds)
            for member, pulse in pool._pulses.items()
        }
        memories = records._memories
        memories._records = {name: (record, at - seconds) for name, (record, at) in memories._records.items()}
