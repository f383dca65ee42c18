"""``cron("*/5 * * * * *", tz="Europe/Paris")``: a cron expression as a Celery schedule."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from datetime import datetime, timedelta, timezone, tzinfo
from functools import lru_cache, partial
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

from celery.schedules import BaseSchedule, schedstate
from croniter import CroniterBadDateError, croniter

from celery_distsched.clock import instant_of
from celery_distsched.instants.rule import SECOND_US
from celery_distsched.instants.wall_clock import WallClock, WallTimes, bits
from celery_distsched.instants.zone import Zone

_FIELDS = "5 fields (minute hour day-of-month month day-of-week), or 6 with the seconds first"
_ALIASES = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")
_RANDOM_OR_HASHED = re.compile(r"(?i)(^|,)[rh]($|[(/,])")
# The order in which croniter keeps the fields, wherever the seconds were written.
_MINUTE, _HOUR, _DAY, _MONTH, _WEEKDAY, _SECOND = range(6)


class cron(BaseSchedule):  # type: ignore[misc]  # noqa: N801 - stands beside celery.schedules.crontab
    """Due whenever a cron expression matches the local time.

    It has 5 fields, or 6 with the *seconds first*. A day matches if the day of the month or the day of the week does,
    where both are given, as in cron (Celery's own `crontab` wants both). ``L``, ``W``, ``#`` and the aliases
    such as ``@hourly`` are croniter's. When the clocks change, the rule of Vixie's cron holds.

    Args:
        expression: What is to match.
        tz: The timezone to match in: an IANA name or a `tzinfo`; None: the app's.
        nowfun: As in Celery's schedules.
        app: As in Celery's schedules.

    Raises:
        ValueError: The expression means nothing, or no date; or there is no such timezone.
    """

    def __init__(
        self,
        expression: str,
        tz: str | tzinfo | None = None,
        nowfun: Callable[[], datetime] | None = None,
        app: Any = None,
    ) -> None:
        super().__init__(nowfun=nowfun, app=app)
        self.expression = expression
        self._times, self._wildcard = _parse(_checked(expression))
        self._own_tz = _timezone(expression, tz) if isinstance(tz, str) else tz
        if self._own_tz is not None:
            self.tz = self._own_tz

    def rule(self) -> WallClock:
        """Return when this is due, in the timezone that holds now."""
        return _rule(self._times, Zone.of(self.tz), self._wildcard)

    def is_due(self, last_run_at: datetime) -> schedstate:
        """Return whether a match has passed since the last run, and the seconds until the next one."""
        rule = self.rule()
        now_us = instant_of(self.now())
        missed = rule.after(instant_of(last_run_at))
        due = missed is not None and missed <= now_us
        deadline_s = self.app.conf.beat_cron_starting_deadline
        if due and deadline_s is not None:
            recent = rule.after(now_us - round(deadline_s * SECOND_US) - 1)
            due = recent is not None and recent <= now_us
        return schedstate(due, _ahead(rule, now_us, now_us).total_seconds())

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        """Return how far ahead the first match after the last run is; negative if it has passed."""
        return _ahead(self.rule(), instant_of(last_run_at), instant_of(self.now()))

    def __repr__(self) -> str:
        return f"<cron: {self.expression}{f' ({self._own_tz})' if self._own_tz else ''}>"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, cron):
            return (self.expression.split(), self._own_tz, self.nowfun) == (
                other.expression.split(),
                other._own_tz,
                other.nowfun,
            )
        return NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self.expression.split()))

    def __reduce__(self) -> tuple[type[cron], tuple[Any, ...]]:
        return type(self), (self.expression, self._own_tz, self.nowfun)


@lru_cache(maxsize=4096)
def _rule(times: WallTimes, zone: Zone, wildcard: bool) -> WallClock:
    return WallClock(times, zone.tz, wildcard=wildcard)


def _ahead(rule: WallClock, last_us: int, now_us: int) -> timedelta:
    instant = rule.after(last_us)
    # A wildcard rule may match only what is skipped each year: there is nothing to wait for.
    return timedelta(days=365) if instant is None else timedelta(microseconds=instant - now_us)


def _checked(expression: object) -> str:
    """Return the expression; refuse what croniter takes, but what differs from node to node or means another thing."""
    if not isinstance(expression, str):
        raise ValueError(f"cron({expression!r}): a text with {_FIELDS} was expected")  # noqa: TRY004 - as all others
    fields = expression.split()
    if len(fields) == 1 and fields[0].startswith("@"):
        if fields[0].lower() not in _ALIASES:
            raise ValueError(
                f"cron({expression!r}): this alias is unknown, or names no time; use one of {', '.join(_ALIASES)}"
            )
    elif len(fields) not in (5, 6):
        years = "; a field of years is not supported" if len(fields) == 7 else ""
        raise ValueError(f"cron({expression!r}) has {len(fields)} fields; expected are {_FIELDS}{years}")
    for field in fields:
        if _RANDOM_OR_HASHED.search(field):
            raise ValueError(
                f"cron({expression!r}): {field!r} is random or hashed, and each beat would choose another time; "
                "write the number that you want"
            )
    return " ".join(fields)


@lru_cache(maxsize=1024)
def _parse(expression: str) -> tuple[WallTimes, bool]:
    """Return what an expression matches, and whether it is a wildcard rule."""
    try:
        parsed = croniter(expression, second_at_beginning=True)
    except (ValueError, TypeError, LookupError) as exc:
        raise ValueError(f"cron({expression!r}) is not a cron expression: {exc}; expected are {_FIELDS}") from exc
    ranges = {_MINUTE: (0, 60), _HOUR: (0, 24), _MONTH: (1, 13), _SECOND: (0, 60)}
    sets = {at: _values(parsed.expanded[at], *ranges[at]) for at in ranges if at < len(parsed.expanded)}
    wildcard = any(
        parsed.expressions[at].startswith("*") or sets[at] == bits(range(*ranges[at]))
        for at in (_MINUTE, _HOUR, _SECOND)
        if at in sets
    )
    try:
        days = _days(parsed)
    except CroniterBadDateError:
        days = _no_days
    times = WallTimes(days, sets[_MONTH], sets[_HOUR], sets[_MINUTE], sets.get(_SECOND, 1))
    if times.next(0) is None:
        raise ValueError(f"cron({expression!r}) matches no date: mend its day of month, month or day of week")
    return times, wildcard


def _values(field: list[Any], low: int, high: int) -> int:
    return bits(range(low, high) if "*" in field else field)


def _days(parsed: croniter) -> Callable[[int, int], int]:
    days, weekdays = parsed.expanded[_DAY], parsed.expanded[_WEEKDAY]
    plain = all(value == "*" or str(value).isdigit() for value in (*days, *weekdays))
    if plain and not parsed.nth_weekday_of_month and not getattr(parsed, "nearest_weekday", None):
        either = "*" not in days and "*" not in weekdays
        return WallTimes.days_by(_values(days, 1, 32), _values(weekdays, 0, 7), either=either)
    # Each month without a match costs croniter a search through 50 years: where there is none at all, one is enough.
    parsed.get_next()
    return partial(_special_days, f"0 0 {parsed.expressions[_DAY]} * {parsed.expressions[_WEEKDAY]}")


def _no_days(_year: int, _month: int) -> int:
    return 0


@lru_cache(maxsize=4096)
def _special_days(expression: str, year: int, month: int) -> int:
    """Return the days of a month as `bits`, as croniter finds them (``L``, ``W``, ``#``)."""
    start = datetime(year, month, 1, tzinfo=timezone.utc) - timedelta(seconds=1)
    found = croniter(expression, start, ret_type=datetime)
    days = 0
    try:
        while (match := found.get_next()).month == month and match.year == year:
            days |= 1 << match.day
    except CroniterBadDateError:
        pass  # There is none any more, and so none in this month.
    return days


def _timezone(expression: str, name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError) as exc:
        known = {zone.lower(): zone for zone in available_timezones()}
        near = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f"did you mean {known[near[0]]!r}?" if near else "use an IANA name, such as 'Europe/Paris'"
        raise ValueError(f"cron({expression!r}): there is no timezone {name!r}; {hint}") from exc
