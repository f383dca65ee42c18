"""What Celery's own scheduler and ours write to a Redis broker for one and the same entry, read back key by key."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import redis
from celery import Celery, signals
from celery.beat import Scheduler

from celery_distsched.record import Record
from tests.scheduler.cluster import Beat, Cluster, until

#: Name of the entry that is compared; JSON has its own way with each of its characters.
NAME = 'compared: "über" \\ <b>'


@dataclass
class Written:
    """All that one run of an entry has left in the broker, and said to those who listen to Celery's signals."""

    #: Redis key → the messages in that list.
    lists: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    #: Redis key → members, of each set: the queues that are bound to an exchange.
    bindings: dict[str, set[bytes]] = field(default_factory=dict)
    #: (channel, message) of each that went to whoever listens.
    published: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    #: (signal, what its receivers were given).
    signals: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """Everything that was sent, wherever it went."""
        return [*(message for messages in self.lists.values() for message in messages), *(m for _, m in self.published)]

    @property
    def message(self) -> dict[str, Any]:
        """The one task message."""
        (message,) = self.messages
        return message


class Reader:
    """Reads a Redis database of its own, past Celery and kombu."""

    def __init__(self, url: str) -> None:
        # Any: its types say bytes or str, and these are bytes.
        client: Any = redis.Redis.from_url(url)
        client.flushdb()
        self._client, self._listener = client, client.pubsub()
        self._listener.psubscribe("*")
        until(lambda: self._listener.get_message(timeout=1))

    def take(self) -> Written:
        """Return what was written since the last time, and delete it; the ledger stays."""
        written = Written()
        for key in sorted(self._client.keys("*")):
            if key.startswith(b"distsched:"):
                continue
            kind = self._client.type(key)
            if kind == b"list":
                written.lists[key.decode()] = [json.loads(text) for text in self._client.lrange(key, 0, -1)]
            elif kind == b"set":
                written.bindings[key.decode()] = self._client.smembers(key)
            else:
                raise AssertionError(f"{key!r} is a {kind!r}")
            self._client.delete(key)
        while (said := self._listener.get_message(timeout=0.05)) is not None:
            # Redis says to a listener too how it was unsubscribed, and the like.
            if said["type"] == "pmessage":
                written.published.append((said["channel"].decode(), json.loads(said["data"])))
        return written

    def close(self) -> None:
        self._listener.close()
        self._client.close()


@dataclass
class Pair:
    """The same app, its beat Celery's own or ours."""

    cluster: Cluster
    reader: Reader
    app: Celery
    #: Whether to listen to the signals: who does so hooks into the sending.
    listens: bool = True

    def stock(self, *entries: Mapping[str, Any]) -> Written:
        """Let Celery's scheduler send these."""
        long_ago = self.app.now() - timedelta(hours=2)
        self.app.conf.beat_schedule = {
            name: {**entry, "last_run_at": long_ago} for name, entry in _named(entries).items()
        }
        self._like_a_worker()
        scheduler = Scheduler(self.app)
        with self._heard() as said:
            for _ in entries:
                assert scheduler.tick() == 0
        scheduler.connection.release()
        return self._written(said)

    def ours(self, *entries: Mapping[str, Any], runs: int = 1) -> Written:
        """Let our scheduler send these, each so often; the first run of an hourly entry is a second late."""
        schedule = self.app.conf.beat_schedule = _named(entries)
        self._like_a_worker()
        self.cluster.seed(*schedule)
        beat = Beat(self.app)
        with self._heard() as said, ExitStack() as ends:
            ends.callback(beat.close)
            for _ in range(runs):
                before = {name: self.cluster.record(name) for name in schedule}
                beat.tick_until(partial(self._has_run, before))
        return self._written(said)

    def _has_run(self, before: Mapping[str, Record | None]) -> bool:
        has_changed = (self.cluster.record(name) != record for name, record in before.items())
        return self.cluster.settled(*before) and all(has_changed)

    def _like_a_worker(self) -> None:
        """Declare the queues that the settings name; without a worker's doing so an exchange leads nowhere."""
        if self.app.conf.task_queues:
            with self.app.connection_for_write() as connection:
                for queue in self.app.conf.task_queues:
                    self.app.amqp.queues[queue.name](connection.default_channel).declare()

    def _heard(self) -> AbstractContextManager[list[tuple[str, dict[str, Any]]]]:
        return heard() if self.listens else nullcontext([])

    def _written(self, said: list[tuple[str, dict[str, Any]]]) -> Written:
        written = self.reader.take()
        written.signals = said
        return written


def _named(entries: tuple[Mapping[str, Any], ...]) -> dict[str, dict[str, Any]]:
    names = [NAME, *(f"{NAME} too {number}" for number in range(1, len(entries)))]
    return {name: {"schedule": 3600.0, **entry} for name, entry in zip(names, entries, strict=True)}


@contextmanager
def heard() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """Collect what the receivers of the publishing signals are given."""
    said: list[tuple[str, dict[str, Any]]] = []
    with ExitStack() as ends:

        def listen(name: str, signal: Any) -> None:
            def receive(**given: Any) -> None:
                # The signal and its sender's dict are shared with what comes after.
                given.pop("signal")
                said.append((name, {key: _copied(value) for key, value in given.items()}))

            signal.connect(receive, weak=False)
            ends.callback(signal.disconnect, receive)

        listen("before", signals.before_task_publish)
        listen("after", signals.after_task_publish)
        yield said


def _copied(value: Any) -> Any:
    return copy.deepcopy(value) if isinstance(value, (dict, list, tuple)) else value


NewPair = Callable[..., Pair]
