"""Beats of one cluster in one process: each a scheduler with an app of its own, ticked by a thread or by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from queue import Empty
from typing import Any, NamedTuple
from uuid import uuid4

from celery import Celery, signals
from kombu.connection import Connection

from celery_distsched import DistributedScheduler
from celery_distsched.drivers import StoreUrl, Swap, open_driver
from celery_distsched.record import Record

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
HOUR_US = 3_600_000_000
#: Due once an hour: within a test, once.
HOURLY: dict[str, Any] = {"task": "nobody.runs.it", "schedule": 3600.0}


class Crash(BaseException):
    """Ends a beat in mid-step, without its farewell: what `kill -9` does."""


class Sent(NamedTuple):
    """A message of the queue."""

    entry: str
    instant_us: int
    task_id: str
    node: str
    attempt: int
    args: Any


def now_us() -> int:
    return time.time_ns() // 1000


def in_s(seconds: float) -> int:
    """Return the ``last`` of an `HOURLY` entry that is due so many seconds from now."""
    return now_us() - HOUR_US + round(seconds * 1_000_000)


def until(condition: Callable[[], Any], within_s: float = 15.0, why: Callable[[], object] = lambda: "") -> None:
    """Poll; fail with what `why` returns."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {why()}"
        time.sleep(0.01)


class Beat:
    """One node of the cluster."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.scheduler = DistributedScheduler(app)
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        #: What ended its thread.
        self.failure: BaseException | None = None

    @property
    def node(self) -> str:
        return self.scheduler.node_id

    @property
    def inner(self) -> Any:
        """Pool, dispatch and heartbeat of the node."""
        assert self.scheduler._node is not None, "it has not ticked yet"
        return self.scheduler._node

    @property
    def counts(self) -> Mapping[str, int]:
        counts: Mapping[str, int] = self.inner.dispatch.records.tally.counts
        return counts

    @property
    def ready(self) -> bool:
        """Whether the records of its share are loaded, the first ones written too, and the others know it."""
        node = self.scheduler._node
        if node is None or node.dispatch.records.unread or node.dispatch.records.absent:
            return False
        view = node.pool.view if node else None
        mine = view.alive.get(view.me or "") if view else None
        return mine is not None and mine.active

    def tick(self) -> float:
        return self.scheduler.tick()

    def tick_until(self, condition: Callable[[], Any], within_s: float = 15.0) -> None:
        """Tick by hand, as often as Celery's service would at most."""

        def ticked() -> Any:
            self.tick()
            return condition()

        until(ticked, within_s)

    def start(self) -> None:
        """Tick in a thread until `stop`."""
        self._over.clear()
        self._thread = threading.Thread(target=self._run, name="beat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop ticking: to all others this is a stuck beat. `close` is its farewell."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(10)

    def close(self) -> None:
        self.stop()
        self.scheduler.close()

    def _run(self) -> None:
        try:
            while not self._over.wait(min(self.tick(), 0.05)):
                pass
        except BaseException as exc:
            self.failure = exc


class Cluster:
    """The beats of one namespace in one store, the records there, and the messages that were sent."""

    def __init__(self, url: str, broker: str = "memory://", ttl_s: float = 2.0, read_from: str | None = None) -> None:
        self.url = url
        self.broker = broker
        #: The broker past any wire.
        self.read_from = read_from or broker
        self.ttl_s = ttl_s
        self.namespace = self.queue = f"test-{uuid4().hex}"
        self._sent: list[Sent] = []
        self._seeded: dict[str, Record] = {}
        self._ends = ExitStack()
        # A way of its own to the store, past the scheduler and past any wire.
        self.driver = open_driver(StoreUrl.parse(url), namespace=self.namespace, ttl_s=ttl_s, timeout_s=5.0, options={})
        self._ends.callback(self.driver.close)

    def close(self) -> None:
        self._ends.close()

    # Beats

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration that its beats have in common."""
        return {
            "broker_url": self.broker,
            "task_default_queue": self.queue,
            "distsched_url": self.url,
            "distsched_namespace": self.namespace,
            "distsched_node_ttl": self.ttl_s,
            # Without an entry of Celery's own.
            "result_expires": None,
        }

    def app(self, schedule: Mapping[str, Any], **conf: Any) -> Celery:
        app = Celery("cluster", set_as_current=False)
        app.conf.update({**self.settings, "beat_schedule": dict(schedule), **conf})
        return app

    def beat(self, schedule: Mapping[str, Any], **conf: Any) -> Beat:
        """Return a beat that has not ticked yet; it is closed with the test."""
        beat = Beat(self.app(schedule, **conf))
        self._ends.callback(beat.close)
        return beat

    def started(self, schedule: Mapping[str, Any], **conf: Any) -> Beat:
        """Return a beat that ticks in a thread and is active."""
        beat = self.beat(schedule, **conf)
        beat.start()
        until(lambda: beat.ready, why=lambda: beat.failure)
        return beat

    def together(self, *beats: Beat) -> None:
        """Start these and wait until each counts with all of them."""
        for beat in beats:
            beat.start()
        until(lambda: all(len(beat.inner.pool.view.ring.nodes) == len(beats) for beat in beats if beat.ready))
        until(lambda: all(beat.ready for beat in beats))

    def process(
        self,
        *names: str,
        conf: Mapping[str, Any] | None = None,
        main: str = "cluster",
        without: Sequence[str] = (),
        interrupt: Mapping[str, Any] | None = None,
        options: Sequence[str] = (),
        **how: Any,
    ) -> subprocess.Popen[str]:
        """Start `celery beat` in a process of its own; see `tests.scheduler.project`.

        Args:
            names: Its entries, each once an hour.
            conf: Settings beside, or in place of, those of the cluster.
            main: The app's name.
            without: Modules that cannot be imported there.
            interrupt: When it is to send itself SIGTERM.
            options: Options of `celery`.
            how: Options of `Popen`.
        """
        given = {
            "main": main,
            "settings": {**self.settings, **(conf or {})},
            "names": names,
            "without": without,
            "interrupt": interrupt,
        }
        how["env"] = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "SCHEDULER_TEST": json.dumps(given),
            **how.get("env", {}),
        }
        beat = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "tests.scheduler.project", *options, "beat", "-l", "INFO"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **how,
        )
        self._ends.callback(_end, beat)
        return beat

    # Records

    def seed(self, *names: str, last_us: int | None = None, record: Record | None = None) -> int:
        """Write these entries' records as an earlier beat would have left them; one `HOURLY` run is due a second ago.

        Returns:
            The instant of that run.
        """
        if record is None:
            record = Record(last_us if last_us is not None else now_us() - HOUR_US - 1_000_000)
        self.driver.swap([Swap(name, None, record.text()) for name in names])
        self._seeded.update(dict.fromkeys(names, record))
        return record.last + HOUR_US

    def record(self, name: str) -> Record | None:
        text = self.driver.read([name])[0]
        return None if text is None else Record.parse(text)

    def settled(self, *names: str) -> bool:
        """Whether each of these has a record that is not as it was seeded, with nothing open in it."""
        records = {name: self.record(name) for name in names}
        return all(
            record is not None and not record.open and record != self._seeded.get(name)
            for name, record in records.items()
        )

    # Messages

    def before_publish(self, call: Callable[[str, str], None]) -> None:
        """Have `call(node, entry)` called before each message of these beats is written to the broker."""
        self._hook(signals.before_task_publish, call)

    def after_publish(self, call: Callable[[str, str], None]) -> None:
        """Have `call(node, entry)` called when the broker has taken a message."""
        self._hook(signals.after_task_publish, call)

    def _hook(self, signal: Any, call: Callable[[str, str], None]) -> None:
        def receive(sender: Any = None, headers: Any = None, routing_key: Any = None, **kwargs: Any) -> None:
            if routing_key == self.queue:
                call(headers["distsched_node"], headers["periodic_task_name"])

        signal.connect(receive, weak=False)
        self._ends.callback(signal.disconnect, receive)

    def sent(self, entry: str | None = None) -> list[Sent]:
        """Return all messages so far, oldest first."""
        with Connection(self.read_from) as connection, connection.SimpleQueue(self.queue, no_ack=True) as queue:  # type: ignore[no-untyped-call]
            while True:
                try:
                    message = queue.get_nowait()
                except Empty:
                    break
                headers = message.headers
                self._sent.append(
                    Sent(
                        headers["periodic_task_name"],
                        (datetime.fromisoformat(headers["scheduled_at"]) - _EPOCH) // timedelta(microseconds=1),
                        headers["id"],
                        headers["distsched_node"],
                        headers.get("distsched_attempt", 1),
                        message.payload[0],
                    )
                )
        return [sent for sent in self._sent if entry in (None, sent.entry)]


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.kill()
    process.communicate()
