"""A world of virtual time: every wait is a step of one event loop, so that a seed decides every interleaving.

The nodes run the package's own heartbeat, pool, ledger and dispatch, unchanged; only the clock, the store and the
broker are of this world. Each wait of a node (a store's answer, a broker's, a sleep) lets any other node go first.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet


class World:
    """Virtual time, and everything that happens in it, in the order that the seed makes of it."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._loop: greenlet = getcurrent()
        self.failure: BaseException | None = None

    def at(self, when: float, what: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (max(when, self.now), self._count, what))

    def run(self, until: float) -> None:
        self._loop = getcurrent()
        while self._events and self._events[0][0] <= until:
            self.now, _, what = heapq.heappop(self._events)
            what()
            if self.failure is not None:
                raise self.failure
        self.now = until


class Process:
    """A few threads of one process, which may freeze, and may end at any wait."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.alive = True
        self.frozen_until = 0.0
        self._threads: list[greenlet] = []

    def thread(self, work: Callable[[], Any]) -> None:
        def main() -> None:
            try:
                work()
            except GreenletExit:
                pass
            except BaseException as exc:
                self.world.failure = exc

        new = greenlet(main, parent=self.world._loop)
        self._threads.append(new)
        self.world.at(self.world.now, lambda: self._wake(new))

    def sleep(self, seconds: float) -> None:
        """Let the world go on; come back no earlier than that, and not while frozen."""
        me = getcurrent()
        self.world.at(self.world.now + seconds, lambda: self._wake(me))
        self.world._loop.switch()

    def _wake(self, thread: greenlet) -> None:
        if not self.alive or thread.dead:
            return
        if self.world.now < self.frozen_until:
            self.world.at(self.frozen_until, lambda: self._wake(thread))
        else:
            thread.switch()

    def kill(self) -> None:
        """End it between two steps."""
        self.alive = False
        for thread in self._threads:
            if not thread.dead and thread is not getcurrent():
                thread.throw(GreenletExit)
