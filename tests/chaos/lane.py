"""One store and one broker with their beats, and what a plan does to them."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psutil  # type: ignore[import-untyped]

from tests.acceptance.cluster import Cluster
from tests.acceptance.outages import Outage
from tests.acceptance.queue import Message, Queue
from tests.chaos.plan import FIRST, Event, Plan, has_own_clock
from tests.servers import Server
from tests.servers.fake_clock import FakeClock, PythonClock

#: As it is by default.
TTL_S = 5.0
ENTRIES = 60
#: Seconds that a beat may take to end on SIGTERM.
END_S = 4.0
#: Seconds without any progress after which what has not been sent is lost.
SETTLE_S = 25.0


@dataclass
class Lane:
    """A place to run a plan in."""

    name: str
    store: str
    queue: Queue
    broker: str
    store_outages: Mapping[str, Outage]
    broker_outages: Mapping[str, Outage]
    #: Has the store lose the data of a namespace.
    lose: Callable[[str], object]
    #: Whether cluster time comes from the store, so that no beat's clock matters.
    clocks: bool = False
    hangs: bool = True
    #: Whether nothing excuses a run that comes twice.
    exactly_once: bool = False
    #: The servers.
    servers: Sequence[Server] = ()
    #: `distsched_driver_options`.
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """What its beats have set beside store and broker."""
        return {"distsched_catch_up": "all", "distsched_driver_options": dict(self.options)}

    def connections(self) -> list[int]:
        """Return how many connections each server has."""
        return [
            sum(one.status == psutil.CONN_ESTABLISHED and one.laddr.port == server.port for one in _connections(server))
            for server in self.servers
        ]


def _connections(server: Server) -> Iterator[Any]:
    process = psutil.Process(server.pid)
    for one in (process, *process.children(recursive=True)):
        # A child that has ended meanwhile, such as one that rewrites a Redis's file, has none.
        with suppress(psutil.NoSuchProcess):
            yield from one.net_connections("tcp")


@dataclass
class Run:
    """What became of a plan."""

    lane: str
    exactly_once: bool
    began: float
    ended: float
    cluster: Cluster
    vanished: list[Message]
    #: What went wrong beside the messages.
    faults: list[str] = field(default_factory=list)


def run(lane: Lane, plan: Plan) -> Run:
    """Do what is planned; return when all has been sent that should have been, or for long enough has not."""
    faults: list[str] = []
    with Cluster(
        lane.store,
        lane.queue,
        entries=ENTRIES,
        ttl_s=TTL_S,
        broker=lane.broker,
        settings=lane.settings,
        hangs=lane.hangs,
    ) as cluster:
        hand = _Hand(lane, cluster, faults)
        cluster.start(FIRST, clocks=[hand.clock_of(0)] if lane.clocks else [])
        began = time.time()
        with ThreadPoolExecutor(16) as doing:
            futures = [doing.submit(hand.do, event, began) for event in plan.events]
            time.sleep(max(0.0, began + plan.seconds - time.time()))
        for future in futures:
            _note_error(future, faults)
        ended = time.time()
        settle(cluster, began, ended)
        for beat in cluster.beats:
            if beat.exit_code not in (None, 0) and not any(
                hurt.pid == beat.beat_pid and hurt.kind in ("kill -9", "SIGTERM") for hurt in cluster.hurts
            ):
                faults.append(f"{beat.name} ended by itself with {beat.exit_code}")
    return Run(lane.name, lane.exactly_once, began, ended, cluster, lane.queue.vanished(), faults)


def settle(cluster: Cluster, began: float, ended: float) -> None:
    """Wait for as long as there is something left to send, and some of it is sent."""
    left, progress_at = float("inf"), time.monotonic()
    while left and time.monotonic() - progress_at < SETTLE_S:
        if (now_left := len(cluster.sent.lost(began, ended))) < left:
            left, progress_at = now_left, time.monotonic()
        time.sleep(1)


class _Hand:
    def __init__(self, lane: Lane, cluster: Cluster, faults: list[str]) -> None:
        self._lane = lane
        self._cluster = cluster
        self._faults = faults
        self._clocks: dict[int, FakeClock] = {}

    def clock_of(self, beat: int) -> FakeClock:
        return self._clocks.setdefault(beat, PythonClock())

    def do(self, event: Event, began: float) -> None:
        time.sleep(max(0.0, began + event.at_s - time.time()))
        acts: dict[str, Callable[[Event], None]] = {
            "kill": self._kill,
            "terminate": self._terminate,
            "stop": self._stop,
            "hang": self._hang,
            "step": self._step,
            "join": self._join,
            "store": self._away,
            "broker": self._away,
            "lose": self._lose,
        }
        acts[event.what](event)

    def _kill(self, event: Event) -> None:
        self._cluster.kill(self._cluster.beats[event.beat])

    def _terminate(self, event: Event) -> None:
        beat = self._cluster.beats[event.beat]
        try:
            self._cluster.terminate(beat, END_S)
        except subprocess.TimeoutExpired:
            self._faults.append(f"{beat.name} did not end within {END_S:g} s of SIGTERM")
            self._cluster.kill(beat)
            return
        if beat.exit_code != 0:
            self._faults.append(f"{beat.name} ended with {beat.exit_code} after SIGTERM")

    def _stop(self, event: Event) -> None:
        with self._cluster.stopped(self._cluster.beats[event.beat]):
            time.sleep(event.lasts_s)

    def _step(self, event: Event) -> None:
        self._cluster.note("clock step")
        self.clock_of(event.beat).step_to(event.ahead_s)

    def _hang(self, event: Event) -> None:
        with self._cluster.hung(self._cluster.beats[event.beat]):
            time.sleep(event.lasts_s)

    def _join(self, event: Event) -> None:
        own = self._lane.clocks and has_own_clock(event.beat)
        self._cluster.note("deploy")
        # Nobody runs it; but who has it has another schedule than all who have not.
        self._cluster.carry({f"of the {event.way} version": {"schedule": 3600, "enabled": False}})
        beat = self._cluster.add(clock=self.clock_of(event.beat) if own else None)
        assert self._cluster.beats[event.beat] is beat, "two joined out of turn"
        beat.launch()

    def _lose(self, event: Event) -> None:
        self._cluster.note("store empty")
        self._lane.lose(self._cluster.namespace)

    def _away(self, event: Event) -> None:
        outages = self._lane.store_outages if event.what == "store" else self._lane.broker_outages
        with self._cluster.during(outages[event.way]):
            time.sleep(event.lasts_s)


def _note_error(future: Future[None], faults: list[str]) -> None:
    error = future.exception()
    if error is not None:
        faults.append(f"{type(error).__name__}: {error}")
