"""What tells two versions of an entry apart: a digest of all that the user wrote of it.

Beats of different releases compute it, each from its own configuration, so nothing goes into it that differs between
processes: no `repr`, no pickle, no memory address. Of an object that has no canonical form only the class counts.
"""

from __future__ import annotations

import json
import marshal
import sys
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from enum import Enum
from functools import lru_cache, partial
from hashlib import blake2b
from typing import Any

import celery.schedules
from celery.beat import ScheduleEntry


def fingerprint(entry: ScheduleEntry, ours: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that are equal for equal entries, in every process.

    Args:
        entry: The entry.
        ours: Our own keys of it, such as ``catch_up``.
    """
    when = schedule_text(entry.schedule)
    if not (entry.args or entry.kwargs or entry.options or ours) and type(entry.task) is str:
        return _bare(when, entry.task)
    plain = [entry.task, list(entry.args or ()), dict(entry.kwargs or {}), dict(entry.options or {}), dict(ours)]
    try:
        text = f"[{when}, {_ENCODER.encode(plain)}]"
    except (TypeError, ValueError, RecursionError):
        # Keys that are no texts, or values that hold themselves.
        text = f"[{when}, {json.dumps(_plain(plain, 1), sort_keys=True)}]"
    return _digest(text)


# Nearly every entry is but a task and a schedule, and there are fewer kinds of them than there are entries.
@lru_cache(maxsize=4096)
def _bare(when: str, task: str) -> str:
    return _digest(f"[{when}, {_ENCODER.encode([task, [], {}, {}, {}])}]")


def _digest(text: str) -> str:
    # Equal entries share it, with each other and with their records.
    return sys.intern(blake2b(text.encode(), digest_size=8).hexdigest())


def schedule_text(schedule: Any) -> str:
    """Return a schedule as JSON: equal for equal ones, in every process."""
    kind: Any = type(schedule)
    plain = kind is celery.schedules.schedule
    if plain and type(schedule.run_every) is timedelta and schedule.relative is False and schedule.nowfun is None:
        return _interval(schedule.run_every)
    made_of = schedule.__reduce__()[1:] if _says(kind) else vars(schedule)
    # A `crontab` means another time in another timezone, which it takes from the app; a plain interval does not.
    zone = None if plain and not schedule.relative else _zone(getattr(schedule, "tz", None))
    try:
        # Equal bytes for equal values, down to their types; none for what may change behind our back.
        return _schedule_of(kind, marshal.dumps(made_of, 0), zone)
    except ValueError:
        return _written(kind, made_of, zone)


def _zone(tz: Any) -> str:
    text = str(tz)
    if " at 0x" not in text or not isinstance(tz, tzinfo):
        return text
    # It does not say which one it is; what counts of it beside its class is how far from UTC it is, winter and summer.
    offsets = (datetime(2000, month, 1, tzinfo=timezone.utc).astimezone(tz).utcoffset() for month in (1, 7))
    return " ".join((_name(type(tz)), *map(str, offsets)))


@lru_cache(maxsize=4096)
def _interval(every: timedelta) -> str:
    return _written(celery.schedules.schedule, ((every, False, None),), None)


@lru_cache(maxsize=4096)
def _schedule_of(kind: type, made_of: bytes, zone: str | None) -> str:
    return _written(kind, marshal.loads(made_of), zone)  # noqa: S302  (our own bytes)


def _written(kind: type, made_of: Any, zone: str | None) -> str:
    return json.dumps([_name(kind), _plain(made_of), zone], sort_keys=True)


@lru_cache
def _says(kind: type) -> bool:
    """Celery's schedules, and ours, say there what they were made of."""
    return any("__reduce__" in vars(base) for base in kind.__mro__[:-1])


def _plain(value: Any, depth: int = 0) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if depth > 20:
        return _name(type(value))
    if isinstance(value, (list, tuple)):
        return [_plain(held, depth + 1) for held in value]
    if isinstance(value, Mapping):
        pairs = ([_plain(key, depth + 1), _plain(held, depth + 1)] for key, held in value.items())
        return sorted(pairs, key=json.dumps)
    if isinstance(value, (set, frozenset)):
        return sorted((_plain(held, depth + 1) for held in value), key=json.dumps)
    return _canonical(value)


def _canonical(value: Any) -> Any:
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value / timedelta(microseconds=1)
    if isinstance(value, (bytes, bytearray)):
        return value.hex()
    if isinstance(value, Enum):
        return [_name(type(value)), value.name]
    if isinstance(value, partial):
        return [_name(value.func), _plain(value.args), _plain(value.keywords)]
    if isinstance(value, (set, frozenset, Mapping)):
        return _plain(value)
    return _name(value if callable(value) and hasattr(value, "__qualname__") else type(value))


def _name(thing: Any) -> str:
    return f"{thing.__module__}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"


_ENCODER = json.JSONEncoder(sort_keys=True, default=_canonical)
