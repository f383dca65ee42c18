"""The broker's queue as somebody outside sees it: every message, and when it was there."""

from __future__ import annotations

import json
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_POLL_S = 0.003
#: Seconds until a broker that did not answer is asked again.
AGAIN_S = 0.02


class Message(NamedTuple):
    """One message in the queue."""

    entry: str
    instant_us: int
    task_id: str
    #: Node id of the beat that sent it.
    node: str
    attempt: int
    #: Wall clock, in seconds, at which it was seen: a few milliseconds after the broker took it.
    seen_at: float

    @property
    def pid(self) -> int:
        """The process id of the sender."""
        return int(self.node.rsplit("-", 2)[1])

    @property
    def sent_at(self) -> datetime:
        """The time of its arrival, to be read by people."""
        return datetime.fromtimestamp(self.seen_at, timezone.utc)


class Queue(ABC):
    """All that has arrived in the queue ``celery``, which nobody empties."""

    def __init__(self, url: str) -> None:
        self.url = url
        #: Oldest first; only ever grows while it is watched.
        self.messages: list[Message] = []

    @contextmanager
    def watched(self) -> Iterator[Queue]:
        """Empty the queue and note each message's arrival from now on; a broker that is away is waited for."""
        self.empty()
        self.messages = []
        over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(over,), name="queue-watcher")
        watcher.start()
        try:
            yield self
        finally:
            over.set()
            watcher.join()

    def wait_for(self, enough: Callable[[list[Message]], bool], within_s: float, what: str) -> None:
        """Return when the messages are what they should be; raises `AssertionError` if that takes too long."""
        deadline = time.monotonic() + within_s
        while not enough(list(self.messages)):
            assert time.monotonic() < deadline, f"after {within_s:g} s: not {what}"
            time.sleep(0.002)

    @abstractmethod
    def empty(self) -> None:
        """Take everything out."""

    @abstractmethod
    def vanished(self) -> list[Message]:
        """Return what was there once and is not any more: accepted, it seemed, and yet not kept."""

    @abstractmethod
    def _watch(self, over: threading.Event) -> None:
        """Add what arrives to `messages` until it is over."""


class RedisQueue(Queue):
    """The list ``celery`` of one Redis database."""

    def empty(self) -> None:
        with self._client() as client:
            client.flushdb()

    def vanished(self) -> list[Message]:
        with self._client() as client:
            there = Counter(
                identity(message_of(json.loads(text)["headers"], 0)) for text in client.lrange("celery", 0, -1)
            )
        return missing(self.messages, there)

    def _client(self) -> Any:
        # A frozen server must not keep the watcher from its end.
        return redis.Redis.from_url(self.url, socket_timeout=2, retry=Retry(NoBackoff(), 0))

    def _watch(self, over: threading.Event) -> None:
        with self._client() as client:
            while not over.wait(_POLL_S):
                # The sender puts new ones at the head, so the oldest keep their places counted from the tail.
                try:
                    new = client.lrange("celery", 0, -len(self.messages) - 1)
                except redis.RedisError:
                    over.wait(AGAIN_S)
                    continue
                seen_at = time.time()
                self.messages += [message_of(json.loads(text)["headers"], seen_at) for text in reversed(new)]


def message_of(headers: Mapping[str, Any], seen_at: float) -> Message:
    """Return what is of interest of a message with these headers."""
    return Message(
        entry=headers["periodic_task_name"],
        instant_us=(datetime.fromisoformat(headers["scheduled_at"]) - _EPOCH) // timedelta(microseconds=1),
        task_id=headers["id"],
        node=headers["distsched_node"],
        attempt=headers.get("distsched_attempt", 1),
        seen_at=seen_at,
    )


def identity(message: Message) -> tuple[str, str, int]:
    """What no two messages have in common."""
    return message.task_id, message.node, message.attempt


def missing(messages: Iterable[Message], there: Counter[tuple[str, str, int]]) -> list[Message]:
    """Return those of these messages of whose run nothing is there.

    A broker that dies may have shown a message to a consumer and neither kept it nor said that it would: then the
    sender has sent it again, and that one is there.
    """
    kept = {task_id for task_id, _, _ in there}
    return [message for message in messages if message.task_id not in kept]
