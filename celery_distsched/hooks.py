"""Who hooks into the sending of all messages: whoever does is not passed by, and every entry goes the ordinary way.

A function counts as a module's own if its globals are that module's. A patch has those of where it was written,
whatever name, code or signature it borrows; a proxy that stands for a function is no function.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import FunctionType, MethodType, ModuleType
from typing import Any

import celery.app.amqp
import celery.app.base
import celery.app.routes
import celery.app.task
import celery.beat
import kombu.messaging
import kombu.utils.objects
from celery import Celery, signals


def hooks(scheduler: Any, ours: ModuleType) -> str | None:
    """Say who hooks into the sending of every entry; None: nobody.

    Args:
        scheduler: The scheduler.
        ours: The module in which its class was written.
    """
    app = scheduler.app
    for name in ("before_task_publish", "after_task_publish", "task_sent"):
        if getattr(signals, name).receivers:
            return f"somebody listens to {name}"
    for setting in ("task_send_sent_event", "task_always_eager"):
        if app.conf[setting]:
            return f"{setting} is on"
    if type(app.amqp) is not celery.app.amqp.AMQP:
        return f"app.amqp is of a class of its own, {type(app.amqp).__name__}"
    if not _defined_in(type(app.backend), "on_task_call").startswith("celery.backends."):
        return f"the result backend {type(app.backend).__name__} may want to hear of each task"
    return foreign(_scheduler_and_app(scheduler, ours))


def foreign(methods: Iterator[tuple[str, Any, str, ModuleType]]) -> str | None:
    """Of (what it is called, object, name of a method, module), say which is not that module's own; None: all are."""
    return next(
        (f"{what} is not its own" for what, owner, name, module in methods if not own(owner, name, module)), None
    )


def own(owner: Any, name: str, module: ModuleType) -> bool:
    """Whether what an object, or a class, has by this name was written in this module."""
    found = _static(owner, name)
    if isinstance(found, (staticmethod, classmethod, MethodType)):
        found = found.__func__
    elif type(found) is property:
        found = found.fget
    elif type(found) is kombu.utils.objects.cached_property:
        found = found.func
    return type(found) is FunctionType and found.__globals__ is vars(module)


def _static(owner: Any, name: str) -> Any:
    """Return what is there by this name, and ask nobody for it: `inspect.getattr_static` takes six times as long."""
    kept = {} if isinstance(owner, type) else getattr(owner, "__dict__", {})
    classes = (owner if isinstance(owner, type) else type(owner)).__mro__
    return kept[name] if name in kept else next((vars(one)[name] for one in classes if name in vars(one)), None)


def _defined_in(cls: type, name: str) -> str:
    found = _static(cls, name)
    return str(found.__globals__["__name__"]) if type(found) is FunctionType else ""


def _scheduler_and_app(scheduler: Any, ours: ModuleType) -> Iterator[tuple[str, Any, str, ModuleType]]:
    app: Celery = scheduler.app
    for name in ("apply_entry", "apply_async"):
        yield f"Scheduler.{name}", scheduler, name, ours
        yield f"Scheduler.{name}", celery.beat.Scheduler, name, celery.beat
    for name in ("send_task", "should_sync", "_do_sync", "sync"):
        yield f"Scheduler.{name}", scheduler, name, celery.beat
    yield "app.send_task", app, "send_task", celery.app.base
    yield "Task.apply_async", celery.app.task.Task, "apply_async", celery.app.task
    for name in ("as_task_v2", "_create_task_sender", "Router", "Queues"):
        yield f"app.amqp.{name}", app.amqp, name, celery.app.amqp
    # Made when they are first asked for, and kept in the object.
    for name in ("create_task_message", "send_task_message"):
        yield f"app.amqp.{name}", _Made(getattr(app.amqp, name)), "it", celery.app.amqp
    for name in ("route", "expand_destination", "lookup_route", "query_router"):
        yield f"app.amqp.router.{name}", app.amqp.router, name, celery.app.routes
    for producer in {kombu.messaging.Producer, scheduler.Producer}:
        for name in ("publish", "_publish", "_prepare", "_delivery_details", "maybe_declare"):
            yield f"app.amqp.Producer.{name}", producer, name, kombu.messaging


class _Made:
    """Holds a function, bound or not, so that it is looked at as an attribute."""

    def __init__(self, made: Any) -> None:
        self.it = made
