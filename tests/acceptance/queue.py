"""The broker's queue as somebody outside sees it: every message, and when it was there."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

import redis

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_POLL_S = 0.003


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


class Queue:
    """All that has arrived in the Redis list ``celery``, which nobody empties."""

    def __init__(self, url: str) -> None:
        self.url = url
        #: Oldest first; only ever grows while it is watched.
        self.messages: list[Message] = []

    @contextmanager
    def watched(self) -> Iterator[Queue]:
        """Empty the database and note each message's arrival from now on."""
        client = redis.Redis.from_url(self.url)
        client.flushdb()
        self.messages = []
        over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(client, over), name="queue-watcher")
        watcher.start()
        try:
            yield self
        finally:
            over.set()
            watcher.join()
            client.close()

    def wait_for(self, enough: Callable[[list[Message]], bool], within_s: float, what: str) -> None:
        """Return when the messages are what they should be; raises `AssertionError` if that takes too long."""
        deadline = time.monotonic() + within_s
        while not enough(list(self.messages)):
            assert time.monotonic() < deadline, f"after {within_s:g} s: not {what}"
            time.sleep(0.002)

    def _watch(self, client: Any, over: threading.Event) -> None:
        while not over.wait(_POLL_S):
            # The sender puts new ones at the head, so the oldest keep their places counted from the tail.
            new = client.lrange("celery", 0, -len(self.messages) - 1)
            seen_at = time.time()
            self.messages += [_message(text, seen_at) for text in reversed(new)]


def _message(text: bytes, seen_at: float) -> Message:
    headers = json.loads(text)["headers"]
    return Message(
        entry=headers["periodic_task_name"],
        instant_us=(datetime.fromisoformat(headers["scheduled_at"]) - _EPOCH) // timedelta(microseconds=1),
        task_id=headers["id"],
        node=headers["distsched_node"],
        attempt=headers.get("distsched_attempt", 1),
        seen_at=seen_at,
    )
