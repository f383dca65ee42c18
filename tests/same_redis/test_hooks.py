"""What somebody has put into the way of all messages is passed by none, and the log says why."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ClassVar

import pytest
from celery import Celery, Task, signals
from celery.app.amqp import AMQP
from celery.app.routes import Router
from celery.backends.base import DisabledBackend
from celery.beat import Scheduler
from kombu import messaging
from kombu.transport import redis

from celery_distsched import DistributedScheduler
from tests.same_redis.sending import run
from tests.same_redis.storm import NOT_IN_FORCE
from tests.same_redis.watched import ORDINARY, Watch
from tests.scheduler.cluster import HOURLY, Beat, Cluster

# Any: kombu's calls have no types.
kombu_redis: Any = redis

NAMES = ("one", "two")
SCHEDULE = dict.fromkeys(NAMES, HOURLY)
BOTH_ORDINARY = {name: [ORDINARY] for name in NAMES}


class Proxy:
    """Wraps a function as `wrapt` does, on which most tracers build: it passes itself off as what it wraps."""

    def __init__(self, wrapped: Any, note: Callable[[], None]) -> None:
        self._wrapped, self._note = wrapped, note

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._note()
        return self._wrapped(*args, **kwargs)

    def __get__(self, instance: Any, owner: Any) -> Any:
        return self if instance is None else Proxy(self._wrapped.__get__(instance, owner), self._note)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)


def wrapper(wrapped: Any, note: Callable[[], None]) -> Any:
    """As a patch by hand."""

    @wraps(wrapped)
    def call(*args: Any, **kwargs: Any) -> Any:
        note()
        return wrapped(*args, **kwargs)

    return call


PATCHED = {
    "Scheduler.apply_entry": (Scheduler, "apply_entry"),
    "Scheduler.apply_async": (Scheduler, "apply_async"),
    "Scheduler.send_task": (Scheduler, "send_task"),
    "DistributedScheduler.apply_entry": (DistributedScheduler, "apply_entry"),
    "DistributedScheduler.apply_async": (DistributedScheduler, "apply_async"),
    "Celery.send_task": (Celery, "send_task"),
    "AMQP.as_task_v2": (AMQP, "as_task_v2"),
    "Producer.publish": (messaging.Producer, "publish"),
    "Producer._publish": (messaging.Producer, "_publish"),
    "Producer._prepare": (messaging.Producer, "_prepare"),
    "Router.route": (Router, "route"),
    "Channel._put": (kombu_redis.Channel, "_put"),
    "Channel.basic_publish": (kombu_redis.Channel, "basic_publish"),
}


@pytest.mark.parametrize("how", [wrapper, Proxy], ids=["by hand", "by a proxy"])
@pytest.mark.parametrize(("owner", "method"), PATCHED.values(), ids=PATCHED)
def test_what_is_patched_is_called_for_each_message(
    cluster: Cluster,
    watch: Watch,
    log: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    method: str,
    how: Callable[[Any, Callable[[], None]], Any],
) -> None:
    calls = []
    monkeypatch.setattr(owner, method, how(getattr(owner, method), lambda: calls.append(1)))
    run(cluster, cluster.app(SCHEDULE))
    assert watch.ways() == BOTH_ORDINARY
    assert len(calls) == len(NAMES)
    assert [line for line in log() if line.startswith(NOT_IN_FORCE)]


@pytest.mark.parametrize("how", [wrapper, Proxy], ids=["by hand", "by a proxy"])
def test_a_patched_task_apply_async_is_called_for_each_message(
    cluster: Cluster, watch: Watch, monkeypatch: pytest.MonkeyPatch, how: Callable[[Any, Callable[[], None]], Any]
) -> None:
    calls = []
    monkeypatch.setattr(Task, "apply_async", how(Task.apply_async, lambda: calls.append(1)))
    app = cluster.app({name: {**HOURLY, "task": "plain"} for name in NAMES})

    @app.task(name="plain", shared=False)  # type: ignore[untyped-decorator]
    def plain() -> None: ...

    run(cluster, app)
    assert watch.ways() == BOTH_ORDINARY
    assert len(calls) == len(NAMES)


@pytest.mark.parametrize("name", ["before_task_publish", "after_task_publish", "task_sent"])
def test_a_receiver_of_a_publish_signal_hears_of_each_message(
    cluster: Cluster, watch: Watch, log: Callable[[], list[str]], name: str
) -> None:
    heard = []
    signal = getattr(signals, name)

    def receive(**given: Any) -> None:
        heard.append(given)

    signal.connect(receive, weak=False)
    try:
        run(cluster, cluster.app(SCHEDULE))
    finally:
        signal.disconnect(receive)
    assert watch.ways() == BOTH_ORDINARY
    assert len(heard) == len(NAMES)
    assert [line for line in log() if line.startswith(NOT_IN_FORCE) and name in line]


def test_a_receiver_that_comes_later_hears_of_the_next_message(cluster: Cluster, watch: Watch) -> None:
    heard = []

    def receive(**given: Any) -> None:
        heard.append(given)

    beat = Beat(cluster.app({"often": {"task": "nobody.runs.it", "schedule": 0.3}}))
    try:
        beat.tick_until(watch.ways)
        signals.before_task_publish.connect(receive, weak=False)
        before = len(watch.ways()["often"])
        beat.tick_until(lambda: len(watch.ways()["often"]) > before)
    finally:
        signals.before_task_publish.disconnect(receive)
        beat.close()
    assert watch.ways()["often"][before:] == [ORDINARY] * len(heard)


class OwnMessages(AMQP):  # type: ignore[misc]
    def as_task_v2(self, *args: Any, **kwargs: Any) -> Any:
        message = super().as_task_v2(*args, **kwargs)
        message.headers["amqp"] = "own"
        return message


class OwnSender(AMQP):  # type: ignore[misc]
    def _create_task_sender(self) -> Any:
        send = super()._create_task_sender()

        def sender(producer: Any, name: str, message: Any, **options: Any) -> Any:
            message.headers["amqp"] = "own"
            return send(producer, name, message, **options)

        return sender


class OwnRouter(AMQP):  # type: ignore[misc]
    def Router(self, *args: Any, **kwargs: Any) -> Any:  # noqa: N802
        router = super().Router(*args, **kwargs)
        route = router.route
        router.route = lambda options, *args, **kwargs: route({**options, "priority": 3}, *args, **kwargs)
        return router


class OwnProducer(AMQP):  # type: ignore[misc]
    class Producer(messaging.Producer):
        def _publish(self, *args: Any, **kwargs: Any) -> Any:
            return super()._publish(*args, **kwargs)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("amqp", [OwnMessages, OwnSender, OwnRouter, OwnProducer])
def test_an_amqp_of_its_own_makes_each_message(
    cluster: Cluster, watch: Watch, log: Callable[[], list[str]], amqp: Any
) -> None:
    app = cluster.app(SCHEDULE)
    app.amqp = amqp(app)
    run(cluster, app)
    assert watch.ways() == BOTH_ORDINARY
    assert [line for line in log() if line.startswith(NOT_IN_FORCE) and "amqp" in line]


def test_an_amqp_that_is_patched_in_place_makes_each_message(cluster: Cluster, watch: Watch) -> None:
    app = cluster.app(SCHEDULE)
    app.amqp.send_task_message = wrapper(app.amqp.send_task_message, lambda: None)
    run(cluster, app)
    assert watch.ways() == BOTH_ORDINARY


class OwnScheduler(DistributedScheduler):
    """A scheduler of somebody's own on ours."""

    applied: int = 0

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        self.applied += 1
        super().apply_entry(entry, producer=producer)


def test_a_scheduler_on_ours_applies_each_entry(cluster: Cluster, watch: Watch, log: Callable[[], list[str]]) -> None:
    beat = run(cluster, cluster.app(SCHEDULE), scheduler=OwnScheduler)
    assert watch.ways() == BOTH_ORDINARY
    assert isinstance(beat.scheduler, OwnScheduler)
    assert beat.scheduler.applied == len(NAMES)
    assert [line for line in log() if line.startswith(NOT_IN_FORCE) and "apply_entry" in line]


class OwnChannel(kombu_redis.Channel):  # type: ignore[misc]
    def _put(self, queue: str, message: Any, **options: Any) -> None:
        message["headers"]["channel"] = "own"
        super()._put(queue, message, **options)


class OwnTransport(kombu_redis.Transport):  # type: ignore[misc]
    """A transport that nobody here knows."""

    Channel = OwnChannel


class OwnSync(DistributedScheduler):
    """A scheduler that wants to be told now and then what was sent."""

    synced: int = 0

    def sync(self) -> None:
        self.synced += 1


def test_a_scheduler_that_syncs_does_so_as_often_as_it_says(cluster: Cluster, watch: Watch) -> None:
    beat = run(cluster, cluster.app(SCHEDULE, beat_sync_every=1), scheduler=OwnSync)
    assert watch.ways() == BOTH_ORDINARY
    assert isinstance(beat.scheduler, OwnSync)
    assert beat.scheduler.synced >= len(NAMES)


def test_a_transport_of_its_own_pushes_each_message(
    cluster: Cluster, watch: Watch, log: Callable[[], list[str]]
) -> None:
    own = f"{__name__}:OwnTransport"
    run(cluster, cluster.app(SCHEDULE, broker_transport=own))
    assert watch.ways() == BOTH_ORDINARY
    assert [line for line in log() if line.startswith(NOT_IN_FORCE) and "OwnChannel" in line]


class OwnBackend(DisabledBackend):  # type: ignore[misc]
    """A result backend that notes each task that is called, as some do to show it as pending."""

    called: ClassVar[list[str]] = []

    def on_task_call(self, producer: Any, task_id: str) -> Any:
        self.called.append(task_id)
        return super().on_task_call(producer, task_id)


def test_a_result_backend_of_its_own_hears_of_each_message(cluster: Cluster, watch: Watch) -> None:
    OwnBackend.called.clear()
    run(cluster, cluster.app(SCHEDULE, result_backend=f"{__name__}:OwnBackend"))
    assert watch.ways() == BOTH_ORDINARY
    assert sorted(OwnBackend.called) == sorted(sent.task_id for sent in cluster.sent())


def test_an_event_for_each_message_is_sent(cluster: Cluster, watch: Watch, log: Callable[[], list[str]]) -> None:
    run(cluster, cluster.app(SCHEDULE, task_send_sent_event=True))
    assert watch.ways() == BOTH_ORDINARY
    assert [line for line in log() if line.startswith(NOT_IN_FORCE) and "task_send_sent_event" in line]
