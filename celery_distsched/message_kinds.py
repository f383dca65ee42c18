"""Kinds of messages: a template of each, from two that `apply_async` has made.

kombu's writing of them is caught on its last step. One of the two has marks where the scheduler hands in values, which
shows where they end up; the other is real, and a template that does not reproduce it is not used.
"""

from __future__ import annotations

import marshal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import celery.app.routes
import celery.app.task
import celery.utils.time
from celery.app.defaults import NAMESPACES
from celery.beat import BeatLazyFunc, ScheduleEntry, Scheduler
from celery.utils.saferepr import saferepr
from celery.utils.time import maybe_make_aware
from kombu.serialization import dumps

from celery_distsched.broker import BrokerAway
from celery_distsched.clock import iso
from celery_distsched.entries import PlannedEntry
from celery_distsched.hooks import own
from celery_distsched.message import message_entry, text_of
from celery_distsched.template import Caught, Messages, OrdinaryWay, Template

#: Templates kept: some megabytes. Entries beyond, each of a kind of its own, go the ordinary way.
_MOST_KINDS = 2000
#: What Celery asks of a task to send it.
_ASKED = ("apply_async", "shadow_name", "_get_exec_options")


@dataclass
class Kind:
    """A template, and what is needed to make an entry's own part of it."""

    template: Template
    #: What there was of the task: see `MessageKinds.seen`.
    task: Any
    expires_s: float | None
    #: What follows arguments in a body: callbacks and the like.
    embed: Any
    serializer: str | None
    #: Those of body, argsrepr and kwargsrepr that come of the arguments; the template has the others.
    from_arguments: tuple[str, ...]
    #: What they are where there are no arguments, and of what they were made; None until somebody asks.
    without_arguments: Recipe | None = None


class Recipe(NamedTuple):
    """How an entry's messages are made."""

    kind: Kind
    #: The values that are the same at each run, as they are written.
    common: Mapping[str, Any]
    #: The text of all that went into these, to see when somebody changes the entry in place.
    made_of: bytes


class MessageKinds:
    """The kinds of messages that the entries of one app have, as one connection writes them."""

    def __init__(self, scheduler: Any, node: str, messages: Messages) -> None:
        """Keep what is needed.

        Args:
            scheduler: The scheduler, for its app, its settings and its way to `apply_async`.
            node: The node id, for the headers.
            messages: How the broker's connection of now writes messages.
        """
        self._scheduler = scheduler
        self._app = scheduler.app
        self._namespace = scheduler.settings.namespace
        self._node = node
        self._messages = messages
        self._kinds: dict[Any, Kind | str] = {}
        self._tasks: dict[str, tuple[Any, ...]] = {}

    def recipe_of(self, planned: PlannedEntry) -> Recipe:
        """Find out how an entry's messages are made.

        Raises:
            OrdinaryWay: Not from a template.
            BrokerAway: That cannot be said now.
            Exception: Whatever `apply_async` raises.
        """
        # A kind of its own has the arguments in it.
        self._kinds.pop(planned.name, None)
        return self._recipe_by(self._kind_of(planned), planned.entry)

    def keep(self, used: Iterable[Kind]) -> None:
        """Forget all other kinds, once there are many: of entries that come and go there is no end."""
        if len(self._kinds) > _MOST_KINDS / 2:
            kept = set(map(id, used))
            self._kinds = {key: kind for key, kind in self._kinds.items() if id(kind) in kept}

    def seen(self, name: str) -> Any:
        """Return what is another object once somebody has changed how a task is sent."""
        task = self._app.tasks.get(name)
        if task is None:
            return None
        own_, kind = vars(task), type(task)
        asked = (*(getattr(kind, asked) for asked in _ASKED), *(own_.get(asked) for asked in _ASKED))
        now = (task, *asked, task.ignore_result, task.typing)
        before = self._tasks.get(name)
        if before != now:
            before = self._tasks[name] = now
        return before

    def _recipe_by(self, kind: Kind, entry: ScheduleEntry) -> Recipe:
        made_of = text_of(entry)
        # Of those without arguments there may be many.
        shared = kind.without_arguments
        if shared is not None and shared.made_of == made_of:
            return shared
        values = self._from_arguments(kind, entry)
        recipe = Recipe(
            kind, {name: self._messages.encoded(name, values[name]) for name in kind.from_arguments}, made_of
        )
        if not entry.args and not entry.kwargs:
            kind.without_arguments = recipe
        return recipe

    def _kind_of(self, planned: PlannedEntry) -> Kind:
        entry = planned.entry
        if type(entry) is not ScheduleEntry:
            raise OrdinaryWay(f"it is of a class of its own, {type(entry).__name__}")
        if any(isinstance(value, BeatLazyFunc) for value in (*(entry.args or ()), *(entry.kwargs or {}).values())):
            raise OrdinaryWay("its arguments are made at each run")
        self._check_task(entry)
        if self._app.conf.task_protocol != 2:
            raise OrdinaryWay(f"messages are of protocol {self._app.conf.task_protocol}")
        if not all(type(route) is celery.app.routes.MapRoute for route in self._app.amqp.router.routes or ()):
            raise OrdinaryWay("a router is asked for each message")
        try:
            # Equal texts for equal options, down to types and order; and none for objects of which we know nothing.
            key: Any = (entry.task, marshal.dumps(entry.options or {}, 0))
        except ValueError:
            key = planned.name
        kind = self._kinds.get(key)
        if kind is None or (isinstance(kind, Kind) and kind.task is not self.seen(entry.task)):
            if kind is None and len(self._kinds) >= _MOST_KINDS:
                raise OrdinaryWay(f"there are more than {_MOST_KINDS} kinds of messages")
            try:
                kind = self._new_kind(planned, alone=key == planned.name)
            except OrdinaryWay as why:
                kind = str(why)
            self._kinds[key] = kind
        if isinstance(kind, str):
            raise OrdinaryWay(kind)
        return kind

    def _check_task(self, entry: ScheduleEntry) -> None:
        task = self._app.tasks.get(entry.task)
        if task is None:
            return
        for name in _ASKED:
            if not own(task, name, celery.app.task):
                raise OrdinaryWay(f"its task has {_an(name)} of its own")
        if task._get_app() is not self._app or task.__v2_compat__:
            raise OrdinaryWay("its task is of another app")
        if getattr(task, "_dump_pydantic_arguments", None) is not None:
            raise OrdinaryWay("its arguments are models that are dumped at each run")
        if task.soft_time_limit and task.time_limit and task.soft_time_limit > task.time_limit:
            raise OrdinaryWay("its time limits contradict each other")
        if task.typing:
            task.__header__(*(entry.args or ()), **(entry.kwargs or {}))

    # A new kind

    def _new_kind(self, planned: PlannedEntry, *, alone: bool) -> Kind:
        marks = self._messages.marks
        entry, instant = planned.entry, 0
        for name in ("task_id", "connection", "router"):
            if name in (entry.options or {}):
                raise OrdinaryWay(f"it has {_an(name.replace('_', ' '))} of its own")
        real_entry = message_entry(planned, instant, 1, namespace=self._namespace, node=self._node)
        marked_entry = message_entry(planned, instant, 1, namespace=self._namespace, node=self._node)
        marked_entry.options["task_id"] = marks["task_id"]
        marked_entry.options["headers"].update(periodic_task_name=marks["name"], scheduled_at=marks["scheduled_at"])

        before, task = self._app.now(), self.seen(entry.task)
        real, body, serializer = self._catch(real_entry)
        self._check(real)
        expires_s = self._expires_s(entry, real.headers["expires"], before)
        kind = Kind(None, task, expires_s, body[2], serializer, ())  # type: ignore[arg-type]
        from_arguments = () if alone else ("body", *self._shown_as_computed(entry))
        computed = self._from_arguments(kind, entry)
        generated = real.generated()
        values = {
            "task_id": real_entry.options["task_id"],
            "scheduled_at": iso(instant),
            "delivery_tag": generated.get("delivery_tag"),
            "name": self._messages.encoded("name", planned.name),
            "expires": self._messages.encoded("expires", generated["expires"]),
            **{name: self._messages.encoded(name, computed[name]) for name in from_arguments},
        }

        marked, _, _ = self._catch(marked_entry)
        for name in (*from_arguments, *(name for name, value in generated.items() if value)):
            marked.mark(name, marks[name])
        template = self._messages.template(marked.written())
        if template.fill(values) != real.written():
            raise OrdinaryWay("its message does not follow the pattern")
        return Kind(template, task, expires_s, body[2], serializer, from_arguments)

    def _catch(self, entry: ScheduleEntry) -> tuple[Caught, Any, str | None]:
        """Send an entry by `apply_async` but for the last step; also returns its body and serializer."""
        producer = self._scheduler.broker.producer
        if producer.channel is not self._messages.channel:
            # On another than the channel where it is caught, the message would leave.
            raise BrokerAway("the connection to the broker is another one now")
        prepare, prepared, declare = producer._prepare, [], producer.maybe_declare

        def noted(body: Any, serializer: Any = None, *args: Any, **kwargs: Any) -> Any:
            prepared.append((body, serializer or producer.serializer))
            return prepare(body, serializer, *args, **kwargs)

        def declared(entity: Any, *args: Any, **kwargs: Any) -> Any:
            entities.append(entity)
            return declare(entity, *args, **kwargs)

        entities: list[Any] = []
        producer._prepare, producer.maybe_declare = noted, declared
        try:
            with self._messages.catching() as caught:
                Scheduler.apply_async(self._scheduler, entry, producer=producer, advance=False)
        finally:
            del producer._prepare, producer.maybe_declare
        if len(caught) != 1 or len(prepared) != 1:
            raise OrdinaryWay("its message does not go to one queue")
        if not all(entity.can_cache_declaration for entity in entities):
            # It goes when nobody uses it, and what else there is of it may not come back.
            raise OrdinaryWay("its queue is declared anew for each message")
        exchange = caught[0].exchange
        if exchange and not (self._messages.routed_by_broker and exchange in map(_exchange_of, entities)):
            # Which queues are bound to it is not known here, or whether it is there at all.
            raise OrdinaryWay(f"it goes through the exchange {exchange!r}")
        return (caught[0], *prepared[0])

    def _check(self, caught: Caught) -> None:
        if "compression" in caught.headers:
            raise OrdinaryWay("it is compressed")
        if caught.content_type != "application/json":
            raise OrdinaryWay(f"its body is {caught.content_type}")
        if caught.headers["eta"] is not None:
            raise OrdinaryWay("it has a countdown or eta")

    def _from_arguments(self, kind: Kind, entry: ScheduleEntry) -> dict[str, Any]:
        """What Celery and kombu make of an entry's arguments."""
        # Celery shows no arguments as a tuple, and some as the list that beat makes of them.
        args, kwargs = list(entry.args or ()) or (), dict(entry.kwargs or {})
        amqp, depth = self._app.amqp, {}
        if "repr_maxlevels" in NAMESPACES["task"]:
            depth = {"maxlevels": self._app.conf.task_repr_maxlevels}
        _, _, body = dumps((args, kwargs, kind.embed), serializer=kind.serializer)  # type: ignore[no-untyped-call]
        return {
            "body": body,
            "argsrepr": saferepr(args, amqp.argsrepr_maxsize, **depth),
            "kwargsrepr": saferepr(kwargs, amqp.kwargsrepr_maxsize, **depth),
        }

    def _shown_as_computed(self, entry: ScheduleEntry) -> list[str]:
        """Return which of the two ways to show arguments nothing but the arguments decides."""
        given = [entry.options or {}]
        for routes in self._app.amqp.router.routes or ():
            for route in (*routes.map.values(), *routes.patterns.values()):
                if not isinstance(route, str):
                    given.append(dict(route))
        given += [headers for one in given if (headers := one.get("headers"))]
        return [name for name in ("argsrepr", "kwargsrepr") if not any(name in one for one in given)]

    # Expiry

    def _expires_s(self, entry: ScheduleEntry, expires: str | None, before: datetime) -> float | None:
        """Seconds from sending to expiry, where that is what is given."""
        if expires is None:
            return None
        task = self._app.tasks.get(entry.task)
        expires_s = (entry.options or {}).get("expires", getattr(task, "expires", None))
        if isinstance(expires_s, bool) or not isinstance(expires_s, (int, float)) or expires_s < 0:
            raise OrdinaryWay("it expires at a date")
        # A route, or whatever else, may have had the last word.
        earliest, latest = (self._expiry(now, expires_s).timestamp() for now in (before, self._app.now()))
        if not earliest - 0.001 <= datetime.fromisoformat(expires).timestamp() <= latest + 0.001:
            raise OrdinaryWay("it expires at a date")
        return float(expires_s)

    def expires(self, expires_s: float) -> str:
        """Return the expiry of what is sent now, as Celery writes it."""
        return self._expiry(self._app.now(), expires_s).isoformat()

    def _expiry(self, now: datetime, expires_s: float) -> datetime:
        aware: datetime = maybe_make_aware(_later(now, expires_s), tz=self._app.timezone)
        return aware


def _exchange_of(declared: Any) -> str:
    """Return the name of an exchange, or of a queue's."""
    return str(getattr(declared, "exchange", declared).name)


def _an(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


#: Since Celery 5.7 a moment is moved by elapsed time; before, by the clock on the wall.
_later = getattr(celery.utils.time, "add_seconds_to_datetime", None) or (
    lambda now, seconds: now + celery.utils.time.timedelta(seconds=seconds)
)
