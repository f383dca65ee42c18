"""The user's periodic tasks, taken apart one by one, so that a bad one costs no other."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import celery.app.task
import celery.beat
from celery import Celery
from celery.beat import BeatLazyFunc, ScheduleEntry
from celery.schedules import crontab
from kombu.serialization import dumps

from celery_distsched.clock import instant_of
from celery_distsched.errors import ConfigError
from celery_distsched.fingerprint import fingerprint, schedule_text
from celery_distsched.hooks import own
from celery_distsched.instants import CatchUp, Rule, cron, rule_for
from celery_distsched.schedule_epoch import RESERVED
from celery_distsched.settings import CATCH_UPS, Settings, not_negative, one_of, seconds, truth

logger = logging.getLogger(__name__)

#: Our keys of an entry, each with its check.
_CHECKS = {"catch_up": one_of(*CATCH_UPS), "catch_up_window": seconds, "enabled": truth, "jitter": not_negative}
_OURS = frozenset(_CHECKS)
_CELERY_KEYS = ("task", "schedule", "args", "kwargs", "options", "relative")
#: Where it is kept among our keys, if the user gave one. It is no part of what tells versions of an entry apart: it may
#: be "now", and then differs in each process.
_LAST_RUN_AT = "last_run_at"
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
    #: When it last ran, if the user says so: from there its first record counts.
    last_us: int | None = None
    #: The entry's schedule when it was planned.
    schedule: Any = None

    @property
    def outdated(self) -> bool:
        """Whether somebody has given the entry, in place, a schedule that means something else."""
        try:
            schedule = self.entry.schedule
            # Nearly always the very same; an entry of the user's class may make one each time it is asked.
            return schedule is not self.schedule and schedule_text(schedule) != schedule_text(self.schedule)
        except Exception:  # noqa: BLE001  (whatever it is now, to plan it says what is wrong with it)
            return True


def in_turn(planned: Mapping[str, PlannedEntry]) -> Iterator[PlannedEntry]:
    """Yield each of these, again and again."""
    while planned:
        yield from planned.values()


def make_entry(
    name: str, given: Any, app: Celery, settings: Settings, entry_class: Any
) -> tuple[Any, Mapping[str, Any]]:
    """Return the Celery entry for one item of ``beat_schedule``, and our own keys that were in it.

    Raises:
        ConfigError: The entry cannot work; the message says why and how to mend it.
    """
    if not isinstance(given, Mapping):
        raise ConfigError(f"it is {given!r}: a dict was expected, such as {{'task': …, 'schedule': …}}")
    celery_keys, ours = dict(given), dict[str, Any]()
    celery_keys.pop("name", None)
    for key in ("kwargs", "options"):
        if (value := celery_keys.get(key)) and not isinstance(value, Mapping):
            raise ConfigError(f"{key!r} is {value!r}: a dict was expected")
    _move_ours(celery_keys, ours)
    if (options := celery_keys.get("options")) and not _OURS.isdisjoint(options):
        # `app.add_periodic_task(…, catch_up="all")` puts what it does not know into the options.
        celery_keys["options"] = options = dict(options)
        _move_ours(options, ours)
    ours.update(settings.entries.get(name, _NONE))
    if not _ACCEPTED.issuperset(celery_keys):
        raise _unknown(next(key for key in celery_keys if key not in _ACCEPTED), (*_CELERY_KEYS, *_CHECKS))
    if not ours.keys() <= _CHECKS.keys():
        raise _unknown(next(key for key in ours if key not in _CHECKS), tuple(_CHECKS), " in distsched_entries")
    _check_name(name)
    if not celery_keys.get("task"):
        raise ConfigError("it has no 'task': name the task to send")
    if name.startswith(f"{celery_keys['task']}(") and _holds_set([celery_keys.get("args"), celery_keys.get("kwargs")]):
        # As `repr` shows it, in the order that each process has for itself.
        raise _differs()
    if celery_keys.get("schedule") is None:
        raise ConfigError("it has no 'schedule': give it seconds, a timedelta, crontab(…) or cron(…)")
    if isinstance(celery_keys["schedule"], str):
        raise ConfigError(
            f"its schedule is the text {celery_keys['schedule']!r}: write crontab(…), or cron(…) around it"
        )
    if (last_run_at := celery_keys.get("last_run_at")) is not None:
        ours = {**ours, _LAST_RUN_AT: _instant(last_run_at)}
    try:
        if type(celery_keys["schedule"]) in (int, float):
            celery_keys["schedule"] = _interval(celery_keys["schedule"])
        entry = entry_class(**celery_keys, name=name, app=app)
        _check_serializable(entry, app)
    except ConfigError:
        raise
    except Exception as exc:
        raise ConfigError(f"{type(exc).__name__}: {exc}") from exc
    return entry, ours or _NONE


def _differs() -> ConfigError:
    return ConfigError(
        "the name is different in each process, so no two beats would agree on it: give the entry one of its own,"
        " as in app.add_periodic_task(10.0, task.s(…), name='refresh')"
    )


def _holds_set(value: Any) -> bool:
    if isinstance(value, (set, frozenset)):
        return len(value) > 1
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return False
    return any(map(_holds_set, value))


def _instant(last_run_at: Any) -> int:
    if not isinstance(last_run_at, datetime):
        raise ConfigError(f"'last_run_at' is {last_run_at!r}: a datetime was expected")
    return instant_of(last_run_at)


def _check_name(name: Any) -> None:
    if not isinstance(name, str):
        raise ConfigError(f"its name is {name!r}: a text was expected, such as {str(name)!r}")
    try:
        name.encode()
    except UnicodeEncodeError as exc:
        raise ConfigError(f"its name is no text that can be written down ({exc}): give it another") from exc
    if name.startswith(RESERVED):
        raise ConfigError("its name begins with a NUL, which is for the scheduler's own records: give it another")
    if not name or ("0x" in name and _ADDRESS.search(name)):
        raise _differs()


# What Celery makes of a number; many entries share it.
@lru_cache(maxsize=256)
def _interval(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)


def _move_ours(given: dict[str, Any], ours: dict[str, Any]) -> None:
    if not _OURS.isdisjoint(given):
        for key in _OURS & given.keys():
            ours[key] = given.pop(key)


class Planner:
    """Works out how entries are to be run."""

    def __init__(self, app: Celery, settings: Settings, *, decides: bool = False) -> None:
        """Keep what is needed; `decides`: the scheduler's class has an `is_due` of its own."""
        self._settings = settings
        self._decides = decides or not own(ScheduleEntry, "is_due", celery.beat)
        self._cron_deadline_s: float | None = app.conf.beat_cron_starting_deadline

    def plan(
        self, name: str, entry: ScheduleEntry, given: Mapping[str, Any], known: PlannedEntry | None = None
    ) -> PlannedEntry:
        """Plan one entry.

        Args:
            name: Its key in the schedule. Whatever the entry calls itself, it goes by this.
            entry: The entry.
            given: Our own keys of it.
            known: What was planned of it before: returned if nothing has changed.

        Raises:
            ConfigError: The entry cannot be run.
        """
        ours = _checked(given) if given else _NONE
        last_us = given.get(_LAST_RUN_AT)
        schedule = entry.schedule
        if not hasattr(schedule, "is_due"):
            raise ConfigError(
                f"its schedule is {schedule!r}: give it seconds, a timedelta, crontab(…), cron(…) or another schedule"
            )
        settings = self._settings
        catch_up = _catch_up(
            ours.get("catch_up", settings.catch_up),
            ours.get("catch_up_window", settings.catch_up_window),
            settings.catch_up_limit,
            self._cron_deadline_s if isinstance(schedule, (crontab, cron)) else None,
        )
        # Who decides for itself when an entry is due is asked. (`vars` would make a dict of each entry that stays.)
        decides = self._decides or getattr(entry.is_due, "__func__", None) is not ScheduleEntry.is_due
        rule, version = None if decides else rule_for(schedule), fingerprint(entry, ours)
        # What our keys say is in the fingerprint too.
        if (
            known is not None
            and known.entry is entry
            and known.schedule is schedule
            and known.fingerprint == version
            and known.rule is rule
            and known.catch_up is catch_up
        ):
            return known
        # Who puts an entry in at run time may have passed by `make_entry`.
        _check_name(name)
        jitter_s, enabled = ours.get("jitter", 0.0), ours.get("enabled", True)
        if jitter_s and rule is None:
            logger.warning("entry %r: its 'jitter' has no effect, since it decides itself when it is due", name)
        return PlannedEntry(name, entry, rule, catch_up, jitter_s, enabled, version, last_us, schedule)


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    ours: dict[str, Any] = {}
    for key, value in given.items():
        if key == _LAST_RUN_AT:
            continue
        try:
            ours[key] = _CHECKS[key](value)
        except (TypeError, ValueError) as exc:
            raise ConfigError(f"{key!r} is {value!r}: {exc}") from exc
    return ours


# There are few that differ, and many entries.
_catch_up = lru_cache(maxsize=256)(CatchUp)


def _unknown(key: object, known: tuple[str, ...], where: str = "") -> ConfigError:
    near = difflib.get_close_matches(str(key), known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return ConfigError(f"unknown key {key!r}{where}; {hint}Known are {', '.join(known)}")


def _is_converted(task: Any, entry: ScheduleEntry, app: Celery) -> bool:
    """Whether it shows only in sending what an entry's arguments are written as."""
    if app.conf.task_always_eager:
        return True
    if task is None:
        # A task's own serializer prevails over a route's; of a task that only workers know, the route may name one.
        return bool(app.conf.task_routes) and "serializer" not in entry.options
    # Celery 5.7 dumps pydantic's models.
    models = getattr(task, "_dump_pydantic_arguments", None) is not None
    return models or not own(task, "apply_async", celery.app.task)


def _check_serializable(entry: ScheduleEntry, app: Celery) -> None:
    if not entry.args and not entry.kwargs:
        return
    args = [value for value in entry.args or () if not isinstance(value, BeatLazyFunc)]
    kwargs = {key: value for key, value in (entry.kwargs or {}).items() if not isinstance(value, BeatLazyFunc)}
    if not args and not kwargs:
        return
    task = app.tasks.get(entry.task)
    if _is_converted(task, entry, app):
        return
    serializer = entry.options.get("serializer") or getattr(task, "serializer", None) or app.conf.task_serializer
    try:
        dumps([args, kwargs], serializer=serializer)  # type: ignore[no-untyped-call]
    except Exception as exc:
        raise ConfigError(
            f"its arguments cannot be sent as {serializer}: {exc}; pass plain values, or choose another"
            " serializer with options={'serializer': …}"
        ) from exc
