"""A world of virtual time: every wait is a step of one event loop, so that a seed decides every interleaving.

Time is in two parts. `now` is what the threads of the nodes wait by; `time` is what the calendar shows, and runs ahead
of it by what was skipped: while nothing can change, an hour passes between two heartbeats (see `Cluster.skip`).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

EPOCH_S = 1_800_000_000.0


class World:
    """Virtual time, and everything that happens in it, in the order that the seed makes of it."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = 0.0
        self.skipped = 0.0
        self.failure: BaseException | None = None
        self.events = 0
        self._events: list[tuple[float, int, Callable[..., object], Any]] = []
        self._count = 0
        self._loop: greenlet = getcurrent()
        #: How far the loop is to go, on `now`.
        self._until = 0.0

    @property
    def time(self) -> float:
        return self.now + self.skipped

    @property
    def time_us(self) -> int:
        return round((EPOCH_S + self.now + self.skipped) * 1e6)

    def at(self, when: float, what: Callable[..., object], *args: Any) -> None:
        self._count += 1
        heapq.heappush(self._events, (when if when > self.now else self.now, self._count, what, args))

    def after(self, seconds: float, what: Callable[..., object], *args: Any) -> None:
        self.at(self.now + seconds, what, *args)

    def fail(self, failure: BaseException) -> None:
        """End the run with this. Raised in the loop: the code under test catches much of what is raised in it."""
        self.failure = self.failure or failure

    def run(self, until: float) -> None:
        """Let things happen until the calendar shows this time."""
        self._loop = getcurrent()
        self._until = until - self.skipped
        events, pop = self._events, heapq.heappop
        while events and events[0][0] <= self._until:
            self.now, _, what, args = pop(events)
            self.events += 1
            what(*args)
            if self.failure is not None:
                raise self.failure
        self.now = max(self.now, self._until)

    def skip(self, seconds: float) -> None:
        """The calendar moves on, and nothing else."""
        self.skipped += seconds
        self._until -= seconds

    def advance(self, when: float) -> bool:
        """Go on to this time at once, if nothing else happens until then; says whether it did.

        It is what the loop would do, without a way through it and back.
        """
        events = self._events
        if when > self._until or self.failure is not None or (events and events[0][0] <= when):
            return False
        self.now = when
        return True

    def pause(self) -> None:
        """Let the calling thread wait until somebody switches to it."""
        self._loop.switch()


class Thread:
    """A thread of a process; it may hang, alone or with its whole process."""

    def __init__(self, process: Process, work: Callable[[], Any]) -> None:
        self.process, self.world = process, process.world
        self.hangs_until = 0.0
        self.waits = False
        self._turn = 0
        self._greenlet = greenlet(lambda: self._main(work), parent=process.world._loop)
        self.world.at(self.world.now, self._wake, self._turn)

    def _main(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except GreenletExit:
            pass
        except BaseException as exc:
            self.world.fail(exc)

    def wait(self, seconds: float) -> None:
        """Wait for something that may come sooner; see `interrupt`."""
        self.waits = True
        self.process.sleep(seconds)
        self.waits = False

    def interrupt(self) -> None:
        """End a `wait` now."""
        if self.waits:
            self._turn += 1
            self.world.at(self.world.now, self._wake, self._turn)

    def sleep_here(self, seconds: float) -> None:
        world, when = self.world, self.world.now + seconds
        self._turn += 1
        held_until = max(self.hangs_until, self.process.frozen_until)
        if self.process.alive and when >= held_until and world.advance(when):
            return
        world.at(when, self._wake, self._turn)
        world.pause()

    def _wake(self, turn: int) -> None:
        if turn != self._turn or not self.process.alive or self._greenlet.dead:
            return
        until = max(self.hangs_until, self.process.frozen_until)
        if self.world.now < until:
            if until != float("inf"):
                self.world.at(until, self._wake, turn)
            return
        self.process.current = self
        self._greenlet.switch()

    def end(self) -> None:
        if not self._greenlet.dead and self._greenlet is not getcurrent():
            self._greenlet.throw(GreenletExit)


class Process:
    """A few threads of one process, which may freeze, and may end at any wait."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.alive = True
        self.frozen_until = 0.0
        self.current: Thread | None = None
        self._threads: list[Thread] = []

    def thread(self, work: Callable[[], Any]) -> Thread:
        thread = Thread(self, work)
        self._threads.append(thread)
        return thread

    def sleep(self, seconds: float) -> None:
        """Let the world go on; come back no earlier than that, and not while frozen."""
        assert self.current is not None
        self.current.sleep_here(seconds)

    def kill(self) -> None:
        """End it between two steps."""
        self.alive = False
        for thread in self._threads:
            thread.end()
