"""From Celery's schedules to rules; what cannot be computed is asked."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from inspect import getattr_static
from typing import Any, NamedTuple

from celery.schedules import BaseSchedule, crontab, schedule, solar
from celery.utils.time import timezone as zones

from celery_distsched.instants.cron import cron
from celery_distsched.instants.interval import Interval, RelativeInterval, interval_us
from celery_distsched.instants.rule import DAY_US, LATEST_US, SECOND_US, Rule
from celery_distsched.instants.wall_clock import WallClock, WallTimes, bits
from celery_distsched.instants.zone import Zone

# What decides when a schedule is due: a class that changes one of these knows better than our arithmetic.
_TIMING = frozenset({"is_due", "remaining_estimate", "remaining_delta", "_delta_to_next", "_next_event", "now"})
_FIELDS = ("run_every", "relative", "minute", "hour", "day_of_week", "day_of_month", "month_of_year")
# When to ask again after an answer that says nothing, and the bounds of any answer, in seconds.
_PAUSE_S = 5.0
_SHORTEST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 300.0


class Asked(NamedTuple):
    """A schedule's own answer."""

    due: bool
    look_again_s: float


def rule_for(entry_schedule: BaseSchedule) -> Rule | None:
    """Return the rule that a schedule stands for; None: it is opaque, and must be asked (see `ask`).

    Opaque are schedules of unknown kinds, those that set `nowfun`, and those whose class overrides
    what decides when they are due.

    Raises:
        ConfigError: The interval is too short.
    """
    # A schedule need not come from Celery's class.
    if getattr(entry_schedule, "nowfun", None) is not None:
        return None
    cls: Any = type(entry_schedule)
    rule_of, timing = _known(cls)
    for name, function in timing:
        # Somebody may have put a method on this very object. (`vars` would make a dict of each that stays.)
        method = getattr(entry_schedule, name)
        if getattr(method, "__func__", method) is not function:
            return None
    return None if rule_of is None else rule_of(entry_schedule)


def ask(
    entry_schedule: BaseSchedule, last_us: int, now_us: int, is_due: Callable[[datetime], Any] | None = None
) -> Asked:
    """Ask an opaque schedule whether it is due; what it raises is passed on.

    Args:
        entry_schedule: The schedule.
        last_us: When it last ran.
        now_us: The time, by the same clock as `last_us`.
        is_due: Asked instead, with the time of the last run.
    """
    answer = (is_due or entry_schedule.is_due)(_shown(entry_schedule, now_us - last_us))
    try:
        due, pause = answer
    except (TypeError, ValueError):
        return Asked(answer is True, _PAUSE_S)
    return Asked(bool(due), _pause_s(pause))


def _shown(entry_schedule: BaseSchedule, elapsed_us: int) -> datetime:
    """Return the last run as the schedule's own clock would have shown it, with a timezone if that has one.

    The time that passed is what counts: a schedule that shifts `now` would otherwise find every run long ago.
    """
    now: datetime = entry_schedule.now()
    elapsed = timedelta(microseconds=elapsed_us)
    if now.tzinfo is None:
        return now - elapsed
    return (now.astimezone(timezone.utc) - elapsed).astimezone(now.tzinfo)


def _pause_s(pause: Any) -> float:
    if isinstance(pause, timedelta):
        pause = pause.total_seconds()
    try:
        seconds = float(pause)
    except (TypeError, ValueError, OverflowError):
        return _PAUSE_S
    return _PAUSE_S if math.isnan(seconds) else min(max(seconds, _SHORTEST_PAUSE_S), _LONGEST_PAUSE_S)


@lru_cache
def _known(cls: Any) -> tuple[Callable[[Any], Rule | None] | None, tuple[tuple[str, Any], ...]]:
    """Return what makes rules of the schedules of a class, and those of Celery's methods that decide when they are due.

    A class that has methods of its own in their place is found out by them.
    """
    for kind, rule_of in _KINDS:
        # A class may look up at each question what Celery's keeps in its objects.
        if issubclass(cls, kind) and not any(isinstance(getattr_static(cls, name, None), property) for name in _FIELDS):
            return rule_of, tuple((name, getattr(kind, name)) for name in sorted(_TIMING) if hasattr(kind, name))
    return None, ()


def _interval(entry_schedule: schedule) -> Rule | None:
    # Celery lets any object through here, but can work with a timedelta only.
    if not isinstance(entry_schedule.run_every, timedelta):
        return None
    every = interval_us(entry_schedule)
    if entry_schedule.relative:
        return RelativeInterval(every, zones.get_timezone(entry_schedule.tz))
    return _plain_interval(every)


# Equal schedules share a rule, and with it what it has worked out: there are fewer of them than there are entries.
@lru_cache(maxsize=4096)
def _plain_interval(every_us: int) -> Interval:
    return Interval(every_us)


def _crontab(entry_schedule: crontab) -> Rule:
    minute, hour = entry_schedule._orig_minute, entry_schedule._orig_hour
    starred = any(isinstance(field, str) and field.startswith("*") for field in (hour, minute))
    fields = (
        entry_schedule.minute,
        entry_schedule.hour,
        entry_schedule.day_of_month,
        entry_schedule.month_of_year,
        entry_schedule.day_of_week,
    )
    # Somebody may have set the timezone to a name.
    zone = Zone.of(zones.get_timezone(entry_schedule.tz))
    return _crontab_rule(tuple(map(frozenset, fields)), starred, zone)


@lru_cache(maxsize=4096)
def _crontab_rule(fields: tuple[frozenset[int], ...], starred: bool, zone: Zone) -> WallClock:
    minutes, hours, days_of_month, months, days_of_week = map(bits, fields)
    days = WallTimes.days_by(days_of_month, days_of_week, either=False)
    wildcard = starred or hours.bit_count() == 24 or minutes.bit_count() == 60
    return WallClock(WallTimes(days, months, hours, minutes), zone.tz, wildcard=wildcard)


class Solar(Rule):
    """The next rising, setting or transit; for one thread, as the observer of `ephem` is.

    The same event, searched from another start, moves by up to 0.14 seconds: one that is
    within ten seconds after the last instant is the last one again.
    """

    __slots__ = ("_observer", "_schedule", "_sun")

    #: Days that the sun may stay above or below the horizon.
    _MOST_DAYS = 366
    _SAME_US = 10 * SECOND_US

    def __init__(self, entry_schedule: solar) -> None:
        self._schedule = entry_schedule
        self._observer = entry_schedule.cal
        self._sun = entry_schedule.ephem.Sun()

    def after(self, last_us: int) -> int | None:
        """Return the next event; None: there is none within 366 days of tries."""
        if last_us >= LATEST_US:
            return None
        ephem = self._schedule.ephem
        find = getattr(self._observer, self._schedule.method)
        options = {"use_center": True} if self._schedule.use_center else {}
        # Ephem's dates are days since noon of 1899-12-31.
        start = ephem.Date(25_567.5 + (last_us + self._SAME_US) / DAY_US)
        for _ in range(self._MOST_DAYS):
            try:
                event = find(self._sun, start=start, **options)
            except ephem.CircumpolarError:
                start = self._observer.next_antitransit(self._sun, start=start)
            else:
                return round((float(event) - 25_567.5) * DAY_US)
        return None


_KINDS: tuple[tuple[type, Callable[[Any], Rule | None]], ...] = (
    (cron, lambda entry_schedule: entry_schedule.rule()),
    (crontab, _crontab),
    (solar, Solar),
    (schedule, _interval),
)
