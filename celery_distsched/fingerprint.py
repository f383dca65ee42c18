"""What tells two versions of an entry apart: a digest of all that the user wrote of it.

Beats of different releases compute it, each from its own configuration, so nothing goes into it that differs between
processes: no `repr`, no pickle, no memory address. Of an object that has no canonical form only the class counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from enum import Enum
from functools import partial
from hashlib import blake2b
from typing import Any

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
        text = json.dumps(content, sort_keys=True, default=_canonical)
    except (TypeError, ValueError, RecursionError):
        # Keys that are no texts, or values that hold themselves.
        text = json.dumps(_plain(content), sort_keys=True)
    return blake2b(text.encode(), digest_size=8).hexdigest()


def _schedule(schedule: Any) -> Any:
    # Celery's schedules, and ours, say there what they were made of.
    says = "__reduce__" in {name for kind in type(schedule).__mro__[:-1] for name in vars(kind)}
    made_of = schedule.__reduce__()[1:] if says else vars(schedule)
    # A `crontab` means another time in another timezone, which it takes from the app.
    return [_name(type(schedule)), _plain(made_of), str(getattr(schedule, "tz", None))]


def _plain(value: Any, depth: int = 0) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if depth > 20:
        return _name(type(value))
    if isinstance(value, Mapping):
        pairs = ([_plain(key, depth + 1), _plain(held, depth + 1)] for key, held in value.items())
        return sorted(pairs, key=json.dumps)
    if isinstance(value, (list, tuple)):
        return [_plain(held, depth + 1) for held in value]
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
