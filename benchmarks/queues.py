"""The broker's queue as somebody outside sees it: how many messages are there, asked every other millisecond."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import redis
from celery import Celery

#: Celery's default.
NAME = "celery"
#: Seconds between two looks. `parts.limit` shows that this is not what limits.
POLL_S = 0.002


class Queue(Protocol):
    """A queue whose messages are counted and, in the end, read."""

    url: str

    def empty(self) -> None:
        """Take out all that is there."""

    def count(self) -> int:
        """Return how many messages there are."""


class RedisQueue:
    """The list ``celery`` of a Redis database of its own."""

    def __init__(self, url: str, host: str, port: int) -> None:
        self.url = url
        self.client: Any = redis.Redis.from_url(url)
        # A client library would take ten times as long for the question, and it is asked hundreds of times a second.
        self._socket = socket.create_connection((host, port), timeout=10)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        database = self.client.connection_pool.connection_kwargs["db"]
        self._ask(b"SELECT %d\r\n" % database)

    def empty(self) -> None:
        """Empty the whole database."""
        self.client.flushdb()

    def count(self) -> int:
        """Ask for the list's length."""
        return int(self._ask(b"LLEN celery\r\n")[1:])

    def close(self) -> None:
        """Let go of the connections."""
        self._socket.close()
        self.client.close()

    def messages(self) -> list[bytes]:
        """Return all messages, oldest first."""
        found: list[bytes] = self.client.lrange(NAME, 0, -1)
        return found[::-1]

    def cpu_s(self) -> float:
        """Return the processor time that the server has used, in seconds."""
        used = self.client.info("cpu")
        return float(used["used_cpu_user"] + used["used_cpu_sys"])

    def commands(self) -> dict[str, int]:
        """Return how often each command has been called, but for those that ask."""
        stats = self.client.info("commandstats")
        return {name[8:]: int(stat["calls"]) for name, stat in stats.items() if name not in ("cmdstat_info",)}

    def _ask(self, words: bytes) -> bytes:
        self._socket.sendall(words)
        answer = self._socket.recv(64)
        while not answer.endswith(b"\n"):
            answer += self._socket.recv(64)
        return answer


class RabbitQueue:
    """The queue ``celery`` of a RabbitMQ."""

    def __init__(self, url: str) -> None:
        self.url = url
        app = Celery("benchmark", broker=url, set_as_current=False)
        self._channel: Any = app.connection_for_read().channel()
        # As Celery declares it at the first message.
        app.amqp.queues[NAME](self._channel).declare()

    def empty(self) -> None:
        """Purge it."""
        self._channel.queue_purge(NAME)

    def count(self) -> int:
        """Ask by a passive declaration."""
        return int(self._channel.queue_declare(NAME, passive=True).message_count)


class Arrivals(NamedTuple):
    """When how many messages were there: each time, by the wall clock, at which another number was seen."""

    times: list[float]
    counts: list[int]

    @property
    def arrived(self) -> int:
        """How many came."""
        return self.counts[-1] if self.counts else 0

    @property
    def rate(self) -> float:
        """Messages a second, from the first seen to the last; those of the first look count as the start of it."""
        if len(self.times) < 2:
            return float("nan")
        return (self.counts[-1] - self.counts[0]) / (self.times[-1] - self.times[0])

    def arrival(self) -> list[float]:
        """Return the wall time at which each message was seen, oldest first."""
        seen: list[float] = []
        for at, count in zip(self.times, self.counts, strict=True):
            seen += [at] * (count - len(seen))
        return seen


def watch(queue: Queue, upto: int, until: float, check: Callable[[], None] = lambda: None) -> Arrivals:
    """Note arrivals until there are so many, or until a moment of the wall clock.

    Args:
        queue: What is watched.
        upto: How many messages are expected.
        until: When to give up.
        check: Called four times a second; raises what ends the watch.
    """
    arrivals = Arrivals([], [])
    seen, checked = 0, time.time()
    while seen < upto and (now := time.time()) < until:
        count = queue.count()
        if count != seen:
            seen = count
            arrivals.times.append(time.time())
            arrivals.counts.append(count)
        if now - checked > 0.25:
            checked = now
            check()
        time.sleep(POLL_S)
    return arrivals
