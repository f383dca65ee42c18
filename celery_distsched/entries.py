"""The user's periodic tasks, taken apart one by one, so that a bad one costs no other."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from celery import Celery
from celery.beat import BeatLazyFunc, ScheduleEntry
from celery.schedules import crontab
from kombu.serialization import dumps

from celery_distsched.errors import ConfigError
from celery_distsched.fingerprint import fingerprint
from celery_distsched.instants import CatchUp, Rule, cron, rule_for
from celery_distsched.schedule_epoch import RESERVED
from celery_distsched.settings import CATCH_UPS, Settings, not_negative, one_of, seconds, truth

logger = logging.getLogger(__name__)

#: Our keys of an entry, each with its check.
_CHECKS = {"catch_up": one_of(*CATCH_UPS), "catch_up_window": seconds, "enabled": truth, "jitter": not_negative}
_CELERY_KEYS = ("task", "schedule", "args", "kwargs", "options", "relative")
_ACCEPTED = frozenset((*_CELERY_KEYS, "app", "last_run_at", "total_run_count"))
#: What nearly every entry has of our keys.
_NONE: Mapping[str, Any] = MappingProxyType({})
# What `repr` makes of an object without one of its own, as in "tasks.add(<Thing object at 0x7f…>)".
_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]{4,}")


@dataclass(frozen=True, slots=True)
class PlannedEntry:
    """One entry, understood."""

    #: The key in ``beat_schedule``.
    name: str
    entry: ScheduleEntry
    #: None: the schedule is of a class of its own, and must be asked whether it is due.
    rule: Rule | None
    catch_up: CatchUp
    jitter_s: float = 0.0
    enabled: bool = True
    #: Tells versions of the entry apart.
    fingerprint: str = "0"


def make_entry(name: str, given: Any, app: Celery, settings: Settings, of: Any) -> Any:
    """Return the Celery entry for one item of ``beat_schedule``, our own keys taken out and kept beside it.

    Raises:
        ConfigError: The entry cannot work; the message says why and how to mend it.
    """
    if not isinstance(given, Mapping):
        raise ConfigError(f"it is {given!r}: a dict was expected, such as {{'task': …, 'schedule': …}}")
    celery_keys, ours = dict(given), dict[str, Any]()
    celery_keys.pop("name", None)
    for key in ("kwargs", "options"):
        if not isinstance(celery_keys.get(key) or {}, Mapping):
            raise ConfigError(f"{key!r} is {celery_keys[key]!r}: a dict was expected")
    options = dict(celery_keys.get("options") or {})
    # `app.add_periodic_task(…, catch_up="all")` puts what it does not know into the options.
    for place in (celery_keys, options):
        for key in _CHECKS.keys() & place.keys():
            ours[key] = place.pop(key)
    celery_keys["options"] = options
    ours.update(settings.entries.get(name, _NONE))
    if not celery_keys.keys() <= _ACCEPTED:
        raise _unknown(next(key for key in celery_keys if key not in _ACCEPTED), (*_CELERY_KEYS, *_CHECKS))
    if not ours.keys() <= _CHECKS.keys():
        raise _unknown(next(key for key in ours if key not in _CHECKS), tuple(_CHECKS), " in distsched_entries")
    if name.startswith(RESERVED):
        raise ConfigError("its name begins with a NUL, which is for the scheduler's own records: give it another")
    if not name or _ADDRESS.search(name):
        raise ConfigError(
            "the name is different in each process, so no two beats would agree on it: give the entry one of its own,"
            " as in app.add_periodic_task(10.0, task.s(…), name='refresh')"
        )
    if not celery_keys.get("task"):
        raise ConfigError("it has no 'task': name the task to send")
    if celery_keys.get("schedule") is None:
        raise ConfigError("it has no 'schedule': give it seconds, a timedelta, crontab(…) or cron(…)")
    if isinstance(celery_keys["schedule"], str):
        raise ConfigError(
            f"its schedule is the text {celery_keys['schedule']!r}: write crontab(…), or cron(…) around it"
        )
    try:
        entry = of(**celery_keys, name=name, app=app)
        _check_serializable(entry, app)
    except ConfigError:
        raise
    except Exception as exc:
        raise ConfigError(f"{type(exc).__name__}: {exc}") from exc
    if ours:
        entry.distsched = ours
    return entry


def plan(entry: ScheduleEntry, app: Celery, settings: Settings) -> PlannedEntry:
    """Work out how an entry is to be run; raises `ConfigError`."""
    ours: dict[str, Any] = {}
    for key, value in getattr(entry, "distsched", _NONE).items():
        try:
            ours[key] = _CHECKS[key](value)
        except (TypeError, ValueError) as exc:
            raise ConfigError(f"{key!r} is {value!r}: {exc}") from exc
    schedule = entry.schedule
    if not hasattr(schedule, "is_due"):
        raise ConfigError(
            f"its schedule is {schedule!r}: give it seconds, a timedelta, crontab(…), cron(…) or another schedule"
        )
    deadline_s = app.conf.beat_cron_starting_deadline if isinstance(schedule, (crontab, cron)) else None
    return PlannedEntry(
        name=str(entry.name),
        entry=entry,
        rule=rule_for(schedule),
        catch_up=_catch_up(
            policy=ours.get("catch_up", settings.catch_up),
            window_s=ours.get("catch_up_window", settings.catch_up_window),
            limit=settings.catch_up_limit,
            deadline_s=deadline_s,
        ),
        jitter_s=ours.get("jitter", 0.0),
        enabled=ours.get("enabled", True),
        fingerprint=fingerprint(entry, ours),
    )


@lru_cache(maxsize=256)
def _catch_up(**chosen: Any) -> CatchUp:
    """Return the one of these values: there are few, and many entries."""
    return CatchUp(**chosen)


def _unknown(key: object, known: tuple[str, ...], where: str = "") -> ConfigError:
    near = difflib.get_close_matches(str(key), known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return ConfigError(f"unknown key {key!r}{where}; {hint}Known are {', '.join(known)}")


def _check_serializable(entry: ScheduleEntry, app: Celery) -> None:
    if not entry.args and not entry.kwargs:
        return
    args = [value for value in entry.args or () if not isinstance(value, BeatLazyFunc)]
    kwargs = {key: value for key, value in (entry.kwargs or {}).items() if not isinstance(value, BeatLazyFunc)}
    if not args and not kwargs:
        return
    task = app.tasks.get(entry.task)
    serializer = entry.options.get("serializer") or getattr(task, "serializer", None) or app.conf.task_serializer
    try:
        dumps([args, kwargs], serializer=serializer)  # type: ignore[no-untyped-call]
    except Exception as exc:
        raise ConfigError(
            f"its arguments cannot be sent as {serializer}: {exc}; pass plain values, or choose another"
            " serializer with options={'serializer': …}"
        ) from exc
