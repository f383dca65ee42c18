"""Entries of every kind whose messages are compared with those of Celery's own beat."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

import celery
from celery import Celery, Task
from celery.beat import BeatLazyFunc
from kombu import entity

# Any: kombu's calls have no types.
Exchange: Any = entity.Exchange
Queue: Any = entity.Queue
#: No worker knows it, and beat need not.
UNKNOWN = "nobody.runs.it"


class OwnWay(Task):  # type: ignore[misc]
    """A task class with an `apply_async` of its own, as many projects have."""

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        options["headers"] = {**options.get("headers", {}), "tenant": "acme"}
        return super().apply_async([*(args or ()), "added"], kwargs, **{**options, "priority": 6})


def register(app: Celery) -> None:
    def plain(*args: Any, **kwargs: Any) -> None: ...

    def bound(self: Any, left: int, right: int = 0) -> None: ...

    # `shared`: a task would else belong to the apps of all tests.
    app.task(plain, name="plain", shared=False)
    app.task(bound, name="bound", bind=True, shared=False)
    app.task(plain, name="own way", base=OwnWay, shared=False)
    app.task(
        plain,
        name="defaults",
        serializer="pickle",
        compression="zlib",
        expires=90,
        ignore_result=True,
        time_limit=30,
        soft_time_limit=20,
        shared=False,
    )
    app.finalize()


class Case(NamedTuple):
    """An entry, and the settings beside it."""

    entry: dict[str, Any]
    conf: dict[str, Any] = {}  # noqa: RUF012  (never written to)


def options(task: str = UNKNOWN, **options: Any) -> Case:
    return Case({"task": task, "options": options})


TOMORROW = datetime.now(timezone.utc).replace(microsecond=0) + timedelta(days=1)
NAMED = Exchange("reports", type="direct")
BOUND = {
    "task_queues": [Queue("celery"), Queue("daily", NAMED, routing_key="report.daily")],
    "task_create_missing_queues": True,
}

CASES: dict[str, Case] = {
    "nothing but a task": Case({"task": UNKNOWN}),
    "arguments": Case({"task": UNKNOWN, "args": (1, "zwei", None), "kwargs": {"three": [3.5], "vier": {"ü": True}}}),
    "a registered task": Case({"task": "plain", "args": [1], "kwargs": {"b": 2}}),
    "a bound task": Case({"task": "bound", "args": [1], "kwargs": {"right": 2}}),
    "a task with options of its own": Case({"task": "defaults"}),
    "options over the task's own": options("defaults", queue="ours", priority=9, serializer="json", expires=5),
    "a task class with its own apply_async": Case({"task": "own way", "args": ["given"]}),
    "lazy arguments": Case(
        {
            "task": UNKNOWN,
            "args": (BeatLazyFunc(lambda: "made"), 2),
            "kwargs": {"made": BeatLazyFunc(lambda left, right: left + right, 1, right=2), "plain": 1},
        }
    ),
    "lazy arguments of a registered task": Case({"task": "plain", "args": (BeatLazyFunc(lambda: "made"),)}),
    "queue": options(queue="reports"),
    "queue object": options(queue=Queue("reports", NAMED, routing_key="any")),
    "exchange and routing key": Case(
        {"task": UNKNOWN, "options": {"exchange": "reports", "routing_key": "report.daily"}}, BOUND
    ),
    "routing key": Case({"task": UNKNOWN, "options": {"routing_key": "report.daily"}}, BOUND),
    "a queue that is declared": Case({"task": UNKNOWN, "options": {"queue": "daily"}}, BOUND),
    "fanout": Case(
        {"task": UNKNOWN, "options": {"queue": "all"}},
        {"task_queues": [Queue("all", Exchange("everybody", type="fanout"))]},
    ),
    "route": Case({"task": UNKNOWN}, {"task_routes": {"nobody.*": {"queue": "routed", "priority": 9}}}),
    "route by function": Case({"task": "plain"}, {"task_routes": (lambda name, *_, **__: {"queue": f"for-{name}"},)}),
    "options over a route": Case(
        {"task": UNKNOWN, "options": {"queue": "asked"}}, {"task_routes": {"nobody.*": {"queue": "routed"}}}
    ),
    "priority": options(priority=4),
    "priority by default": Case({"task": UNKNOWN}, {"task_default_priority": 7}),
    "priority steps": Case(
        {"task": UNKNOWN, "options": {"priority": 5}},
        {"broker_transport_options": {"priority_steps": [0, 5], "sep": ":", "queue_order_strategy": "priority"}},
    ),
    "key prefix": Case({"task": UNKNOWN}, {"broker_transport_options": {"global_keyprefix": "mine:"}}),
    "expires in seconds": options(expires=60),
    "expires at a date": options(expires=TOMORROW),
    "expires after a timedelta's seconds": options(expires=timedelta(hours=1).total_seconds()),
    "countdown": options(countdown=30),
    "eta": options(eta=TOMORROW),
    "headers": options(headers={"tenant": "acme", "nested": {"list": [1, 2]}}),
    "serializer": options(serializer="pickle"),
    "serializer by default": Case({"task": UNKNOWN}, {"task_serializer": "pickle"}),
    "compression": options(compression="gzip"),
    "compression by default": Case({"task": UNKNOWN}, {"task_compression": "zlib"}),
    "ignore_result": options(ignore_result=True),
    "time limits": options(time_limit=30, soft_time_limit=20),
    "shadow": options(shadow="another name"),
    "delivery mode": options(delivery_mode=1),
    "callbacks": options(link=celery.signature("next", args=(1,)), link_error=celery.signature("on.error")),
    "reply_to": options(reply_to="answers"),
    "group and parent": options(group_id="the group", parent_id="the parent", root_id="the root"),
    "argsrepr": Case({"task": UNKNOWN, "args": ["secret"], "options": {"argsrepr": "(…)", "kwargsrepr": "{…}"}}),
    "a retry policy": options(retry=True, retry_policy={"max_retries": 1}),
    "the older protocol": Case({"task": UNKNOWN, "args": [1]}, {"task_protocol": 1}),
    "an event for each message": Case({"task": UNKNOWN, "args": [1]}, {"task_send_sent_event": True}),
    "expires in a timezone": Case({"task": UNKNOWN, "options": {"expires": 60}}, {"timezone": "Asia/Tokyo"}),
    "countdown in a timezone": Case({"task": UNKNOWN, "options": {"countdown": 30}}, {"timezone": "Asia/Tokyo"}),
}

#: Cases that the fast way leaves to `apply_async`.
ORDINARY = {
    "a task with options of its own",
    "options over the task's own",
    "a task class with its own apply_async",
    "lazy arguments",
    "lazy arguments of a registered task",
    "fanout",
    "exchange and routing key",
    "route by function",
    "expires at a date",
    "countdown",
    "countdown in a timezone",
    "eta",
    "serializer",
    "serializer by default",
    "compression",
    "compression by default",
    "the older protocol",
    "an event for each message",
}
