"""The fast way to a Redis broker: what `apply_async` makes, from a template, to be pushed by the call that claims it.

`apply_async` takes a quarter of a millisecond to make a message of which only ids, times and a few headers are new. So
it makes the first message of each kind, kombu's push of it is caught on its last step, and the others are cut from the
same cloth. A template that does not reproduce the very text that it was made from is not used.

Whoever hooks into the sending is not passed by: with a receiver of a publish signal, a task class with an `apply_async`
of its own, a patched method, lazy arguments, or anything else that is not known here, an entry goes the ordinary way.
`distsched_fast_publish = False` sends all of them that way: the messages are the same, and slower.
"""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from types import ModuleType
from typing import Any
from uuid import uuid4

import celery.app.amqp
import celery.app.base
import celery.app.routes
import celery.app.task
import celery.beat
import kombu.messaging
from celery import Celery, signals
from celery.beat import BeatLazyFunc, Scheduler
from celery.utils.saferepr import saferepr
from celery.utils.time import maybe_make_aware
from kombu.utils.json import dumps

from celery_distsched.clock import iso
from celery_distsched.drivers.base import Push
from celery_distsched.entries import PlannedEntry
from celery_distsched.message import message_entry, task_id

logger = logging.getLogger(__name__)

_FIELDS = ("task_id", "delivery_tag", "scheduled_at", "name", "expires", "body", "argsrepr", "kwargsrepr")
# What stands in a template's text where a message's own value goes. Free of anything that JSON would write differently.
_MARKS = {field: f"<{field} {uuid4()}>" for field in _FIELDS}
_CUT = re.compile("(" + "|".join(map(re.escape, _MARKS.values())) + ")")
_FIELD_OF = {mark: field for field, mark in _MARKS.items()}


class OrdinaryWay(Exception):
    """This entry is sent by `apply_async`; the text says why."""


@dataclass(frozen=True)
class Template:
    """One kind of message: the text between the values, and which value comes where."""

    key: str
    parts: tuple[str, ...]
    fields: tuple[str, ...]
    expires_s: float | None

    def text(self, values: Mapping[str, str]) -> str:
        """Put a message's values in, each as it stands inside a JSON string."""
        pieces = [self.parts[0]]
        for field, part in zip(self.fields, self.parts[1:], strict=True):
            pieces += (values[field], part)
        return "".join(pieces)


@dataclass(frozen=True)
class Kind:
    """A template, and what makes an entry's own part of it."""

    template: Template
    #: What follows arguments in a JSON body: callbacks and the like; None: the body is the template's.
    embed: str | None
    repr_length: int

    def own(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Mapping[str, str]:
        """What these arguments put into the template."""
        if self.embed is None:
            return {}
        return self._own(args, kwargs) if args or kwargs else self._without_arguments

    @cached_property
    def _without_arguments(self) -> Mapping[str, str]:
        return self._own((), {})

    def _own(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Mapping[str, str]:
        # Celery shows no arguments as a tuple, and some as the list that beat makes of them.
        shown = list(args) or ()
        body = f"[{_json(shown)}, {_json(kwargs)}, {self.embed}"
        return {
            "body": base64.b64encode(body.encode()).decode(),
            "argsrepr": _inside(saferepr(shown, self.repr_length)),
            "kwargsrepr": _inside(saferepr(kwargs, self.repr_length)),
        }


class Publisher:
    """Makes the messages of those entries that nobody hooks into."""

    def __init__(
        self, app: Celery, namespace: str, node: str, capture: Callable[[Any], tuple[Any, str, dict[str, Any]]]
    ):
        """Keep what is needed.

        Args:
            app: The app.
            namespace: Part of each task id.
            node: The node id, for the headers.
            capture: Sends an entry by `apply_async` but for the last step; returns the channel, the queue, the payload.
        """
        self._app = app
        self._namespace = namespace
        self._node = node
        self._capture = capture
        self._kinds: dict[Any, Kind] = {}
        #: Entry → its kind and its own values; or why it goes the ordinary way.
        self._ways: dict[str, tuple[PlannedEntry, Kind, Mapping[str, str]] | tuple[PlannedEntry, str]] = {}

    def forget(self) -> None:
        """Make all templates anew: the broker connection or the schedule is another one."""
        self._kinds.clear()
        self._ways.clear()

    def avoid(self, planned: PlannedEntry, why: str) -> None:
        """Send this entry the ordinary way from now on."""
        self._ways[planned.name] = (planned, why)
        logger.debug("entry %r goes the ordinary way: %s", planned.name, why)

    def message(self, planned: PlannedEntry, instant_us: int) -> Push | None:
        """Return the message of one occurrence; None: it goes the ordinary way."""
        way = self._ways.get(planned.name)
        if way is None or way[0] is not planned:
            way = self._way(planned)
        if len(way) == 2:
            return None
        _, kind, own = way
        template = kind.template
        values = {
            **own,
            "name": _inside(planned.name),
            "task_id": task_id(self._namespace, planned.name, instant_us),
            "delivery_tag": str(uuid4()),
            "scheduled_at": iso(instant_us),
        }
        if template.expires_s is not None:
            values["expires"] = self._expires(template.expires_s)
        return Push(template.key, template.text(values))

    def _way(self, planned: PlannedEntry) -> tuple[PlannedEntry, Kind, Mapping[str, str]] | tuple[PlannedEntry, str]:
        try:
            kind, own = self._kind_of(planned)
        except OrdinaryWay as why:
            self.avoid(planned, str(why))
        except Exception as exc:  # noqa: BLE001  (whatever is wrong with it, the ordinary way reports it)
            self.avoid(planned, repr(exc))
        else:
            self._ways[planned.name] = (planned, kind, own)
            logger.debug("entry %r goes the fast way, to %s", planned.name, kind.template.key)
        return self._ways[planned.name]

    def _kind_of(self, planned: PlannedEntry) -> tuple[Kind, Mapping[str, str]]:
        entry = planned.entry
        args, kwargs = entry.args or (), entry.kwargs or {}
        if (args or kwargs) and any(isinstance(value, BeatLazyFunc) for value in (*args, *kwargs.values())):
            raise OrdinaryWay("its arguments are made at each run")
        task = self._app.tasks.get(entry.task)
        if task is not None:
            if not _is_of(type(task).apply_async, celery.app.task) or "apply_async" in vars(task):
                raise OrdinaryWay("its task has an apply_async of its own")
            if task.typing:
                task.__header__(*args, **kwargs)
        key = self._kind_key(planned, task)
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kinds[key] = self._new_kind(planned, alone=key == planned.name)
        return kind, kind.own(args, kwargs)

    def _kind_key(self, planned: PlannedEntry, task: Any) -> Any:
        """What entries of one kind have in common; the name, where an entry is a kind of its own."""
        routes = self._app.amqp.router.routes
        by_arguments = any(not isinstance(route, celery.app.routes.MapRoute) for route in routes or ())
        shadowed = task is not None and not _is_of(type(task).shadow_name, celery.app.task)
        options = planned.entry.options
        if by_arguments or shadowed or "argsrepr" in options or "kwargsrepr" in options:
            return planned.name
        if not options:
            return (planned.entry.task,)
        try:
            return planned.entry.task, json.dumps(options, sort_keys=True)
        except (TypeError, ValueError):
            return planned.name

    def _new_kind(self, planned: PlannedEntry, *, alone: bool) -> Kind:
        instant = 0
        entry = message_entry(planned.entry, instant, 1, namespace=self._namespace, node=self._node)
        if "task_id" in (planned.entry.options or {}):
            raise OrdinaryWay("it has a task id of its own")
        channel, queue, payload = self._capture(entry)
        if queue in (getattr(channel, "_expires", None) or {}):
            raise OrdinaryWay(f"the queue {queue!r} expires")
        headers, properties = payload["headers"], payload["properties"]
        original = _json(payload)
        if headers["eta"] is not None:
            raise OrdinaryWay("it has a countdown or eta")
        expires_s = self._expires_s(planned, headers)
        embed = None if alone else _embed(payload, entry)
        values = {
            "task_id": headers["id"],
            "delivery_tag": properties["delivery_tag"],
            "scheduled_at": headers["scheduled_at"],
            "name": _inside(planned.name),
            "expires": headers["expires"] or "",
            "body": payload["body"],
            "argsrepr": _inside(headers["argsrepr"] or ""),
            "kwargsrepr": _inside(headers["kwargsrepr"] or ""),
        }
        headers.update(id=_MARKS["task_id"], scheduled_at=_MARKS["scheduled_at"], periodic_task_name=_MARKS["name"])
        properties.update(delivery_tag=_MARKS["delivery_tag"])
        for place, name in ((headers, "root_id"), (properties, "correlation_id")):
            if place.get(name) == values["task_id"]:
                place[name] = _MARKS["task_id"]
        if expires_s is not None:
            headers["expires"] = _MARKS["expires"]
        if embed is not None:
            payload["body"] = _MARKS["body"]
            headers.update(argsrepr=_MARKS["argsrepr"], kwargsrepr=_MARKS["kwargsrepr"])
        parts = _CUT.split(_json(payload))
        key = f"{channel.global_keyprefix or ''}{channel._q_for_pri(queue, properties.get('priority') or 0)}"
        template = Template(key, tuple(parts[::2]), tuple(_FIELD_OF[mark] for mark in parts[1::2]), expires_s)
        if template.text(values) != original:
            raise OrdinaryWay("its message does not follow the pattern")
        return Kind(template, embed, self._app.amqp.argsrepr_maxsize)

    def _expires_s(self, planned: PlannedEntry, headers: Mapping[str, Any]) -> float | None:
        if headers["expires"] is None:
            return None
        task = self._app.tasks.get(planned.entry.task)
        expires = planned.entry.options.get("expires", getattr(task, "expires", None))
        if isinstance(expires, bool) or not isinstance(expires, (int, float)):
            raise OrdinaryWay("it expires at a date")
        return float(expires)

    def _expires(self, expires_s: float) -> str:
        when = maybe_make_aware(self._app.now() + timedelta(seconds=expires_s), tz=self._app.timezone)
        return str(when.isoformat())


def _embed(payload: Mapping[str, Any], entry: Any) -> str | None:
    """What follows the arguments in the body; raises `OrdinaryWay` where the body is not JSON in base64."""
    if payload["content-type"] != "application/json" or payload["properties"].get("body_encoding") != "base64":
        raise OrdinaryWay(f"its body is {payload['content-type']}, {payload['properties'].get('body_encoding')}")
    body = base64.b64decode(payload["body"]).decode()
    begins = f"[{_json(list(entry.args or ()))}, {_json(entry.kwargs or {})}, "
    if not body.startswith(begins):
        raise OrdinaryWay("its body does not follow the pattern")
    return body.removeprefix(begins)


def _json(value: Any) -> str:
    return str(dumps(value))  # type: ignore[no-untyped-call]


def _inside(text: str) -> str:
    """A text as it stands between the quotes of a JSON string."""
    return _json(text)[1:-1]


def hooks(scheduler: Any) -> str | None:
    """Say who hooks into the sending of every entry; None: nobody."""
    app = scheduler.app
    for name in ("before_task_publish", "after_task_publish"):
        if getattr(signals, name).receivers:
            return f"somebody listens to {name}"
    if app.conf.task_send_sent_event:
        return "task_send_sent_event is on"
    if app.conf.task_always_eager:
        return "task_always_eager is on"
    patched = next((what for what, method, module in _METHODS(app) if not _is_of(method, module)), None)
    return f"{patched} is not Celery's own" if patched else None


def _METHODS(app: Celery) -> Iterator[tuple[str, Any, ModuleType]]:  # noqa: N802
    yield "Scheduler.apply_entry", Scheduler.apply_entry, celery.beat
    yield "Scheduler.apply_async", Scheduler.apply_async, celery.beat
    yield "Scheduler.send_task", Scheduler.send_task, celery.beat
    yield "app.send_task", app.send_task, celery.app.base
    yield "Task.apply_async", celery.app.task.Task.apply_async, celery.app.task
    yield "app.amqp", type(app.amqp).as_task_v2, celery.app.amqp
    yield "Producer.publish", kombu.messaging.Producer.publish, kombu.messaging


def _is_of(method: Any, module: ModuleType) -> bool:
    """Whether a function was written in this module: a patch is not, whatever name it gives itself."""
    code = getattr(getattr(method, "__func__", method), "__code__", None)
    return code is not None and code.co_filename == module.__file__


@contextmanager
def caught_put(channel: Any) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """Catch what kombu would push on this channel, with all that leads up to it done."""
    caught: list[tuple[str, dict[str, Any]]] = []
    channel._put = lambda queue, message, **options: caught.append((queue, message))
    channel._put_fanout = lambda *args, **options: caught.append(("", {}))
    try:
        yield caught
    finally:
        del channel._put, channel._put_fanout
