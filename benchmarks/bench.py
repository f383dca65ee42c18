"""What all parts of one run share: how much is asked for, the servers, and the time that is left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from benchmarks.contenders import OURS, PEERS, Contender
from benchmarks.queues import RabbitQueue, RedisQueue
from tests.servers import ConsulServer, EtcdServer, RabbitServer, RedisServer

_T = TypeVar("_T")


class Bench:
    """One run of the benchmarks; as a context manager it stops its servers on exit."""

    def __init__(self, *, runs: int, sizes: tuple[int, ...], quick: bool, peers: bool) -> None:
        """Keep what is asked for.

        Args:
            runs: How often each is measured, in turn with the others.
            sizes: Numbers of entries; empty: those of each part.
            quick: Less of everything.
            peers: Whether to measure those that are installed.
        """
        self.runs = runs
        self.quick = quick
        self.peers = [peer for peer in PEERS if peers and peer.installed]
        self._sizes = sizes
        self._ends = ExitStack()
        self._began = time.monotonic()
        self._part_until = float("inf")

    @property
    def contenders(self) -> list[Contender]:
        """All, ours first."""
        return [OURS, *self.peers]

    def sizes(self, full: tuple[int, ...], quick: tuple[int, ...]) -> tuple[int, ...]:
        """Return the numbers of entries to measure: those asked for, or these."""
        return self._sizes or self.choose(full, quick)

    def choose(self, full: _T, quick: _T) -> _T:
        """Return the one or the other."""
        return quick if self.quick else full

    def begin(self, budget_s: float) -> None:
        """Begin a part, which is to be content with fewer rounds where it would take longer than that."""
        self._part_until = time.monotonic() + budget_s

    def rounds(self, most: int | None = None) -> Iterator[int]:
        """Yield the numbers of the rounds to make; the first is always made."""
        for number in range(min(self.runs, most or self.runs)):
            if number and time.monotonic() > self._part_until:
                self.say("no time for another round")
                return
            yield number

    def say(self, what: str) -> None:
        """Tell whoever waits."""
        print(f"{time.monotonic() - self._began:6.0f} s  {what}", file=sys.stderr, flush=True)

    # Servers, started at their first use

    @cached_property
    def redis_server(self) -> RedisServer:
        """Keeps nothing on disk."""
        return self._ends.enter_context(RedisServer())

    @cached_property
    def redis(self) -> RedisQueue:
        """The broker of nearly all runs."""
        server = self.redis_server
        return self._ends.enter_context(closing(RedisQueue(server.url(), server.host, server.port)))

    def redis_store(self, _: Path) -> str:
        """Return a store in a database of its own."""
        self.redis.client.execute_command("FLUSHALL")
        return self.redis_server.url(path="/1")

    @cached_property
    def rabbit_server(self) -> RabbitServer:
        """Keeps its messages on disk, as they ask."""
        return self._ends.enter_context(RabbitServer())

    @cached_property
    def rabbit(self) -> RabbitQueue:
        """Another broker."""
        return RabbitQueue(self.rabbit_server.url())

    @cached_property
    def _etcd(self) -> EtcdServer:
        return self._ends.enter_context(EtcdServer())

    @cached_property
    def _consul(self) -> ConsulServer:
        return self._ends.enter_context(ConsulServer())

    def etcd_store(self, _: Path) -> str:
        """Return an empty store."""
        self._etcd.flush()
        return self._etcd.url()

    def consul_store(self, _: Path) -> str:
        """Return an empty store."""
        self._consul.flush()
        return self._consul.url()

    @staticmethod
    def sqlite_store(folder: Path) -> str:
        """Return a store in an empty folder."""
        return f"sqlite:///{folder}/store.sqlite3"

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *exc: object) -> None:
        self._ends.close()
