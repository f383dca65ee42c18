"""What tells two versions of an entry apart: a digest of all that the user wrote of it.

Beats of different releases compute it, each from its own configuration, so nothing goes into it that differs between
processes: no `repr`, no pickle, no memory address. Of an object that has no canonical form only the class counts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
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
    plain = [entry.task, list(entry.args or ()), dict(entry.kwargs or {}), dict(entry.options or {}), dict(ours)]
    content = [_schedule(entry.schedule), plain]
    try:
        text = _ENCODER.encode(content)
    except (TypeError, ValueError, RecursionError):
        # Keys that are no texts, or values that hold themselves.
        text = json.dumps(_plain(content), sort_keys=True)
    # Equal entries share it, with each other and with their records.
    return sys.intern(blake2b(text.encode(), digest_size=8).hexdigest())


def _schedule(schedule: Any) -> Any:
    kind: Any = type(schedule)
    made_of = schedule.__reduce__()[1:] if _says(kind) else vars(schedule)
    # A `crontab` means another time in another timezone, which it takes from the app; a plain interval does not.
    anywhere = kind is celery.schedules.schedule and not schedule.relative
    return [_name(kind), _plain(made_of), None if anywhere else str(getattr(schedule, "tz", None))]


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
