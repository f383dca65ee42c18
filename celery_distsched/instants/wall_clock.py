"""Rules by the wall clock: which wall times match, and at which instants a local clock reads them.

When the clocks change, the rule of Vixie's cron holds:

- A *wildcard* rule (second, minute or hour begin with ``*``, or cover their whole range) runs by elapsed time: at each
  moment whose wall time matches. So it runs in both of a repeated hour, and not in a skipped one.
- A *fixed* rule runs the first time that the clock reads a matching time, or has passed it. So it runs once in a
  repeated hour, and for a skipped one at the moment of the change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import date, tzinfo
from functools import lru_cache, partial
from itertools import islice
from typing import NamedTuple

from celery_distsched.instants.rule import DAY_US, LATEST_US, SECOND_US, Rule
from celery_distsched.instants.zone import Zone

_EPOCH_DAY = date(1970, 1, 1).toordinal()
# The 29th of February on a given weekday may be 40 years away (when a century is no leap year).
_SEARCH_YEARS = 41
_SEARCH_US = _SEARCH_YEARS * 366 * DAY_US
# Most often one instant is due, or two: then the first look finds all. A long gap is walked back in pieces.
_FEW = 4
_MANY = 256
_FIRST_WINDOW_US = 10 * SECOND_US
_MOST_KNOWN = 256


def bits(values: Iterable[int]) -> int:
    """Return a set of small numbers as an integer with those bits."""
    mask = 0
    for value in values:
        mask |= 1 << value
    return mask


def _first(mask: int, at_least: int) -> int:
    """Return the lowest number in the set that is not below `at_least`, or -1."""
    rest = mask >> at_least
    return at_least + (rest & -rest).bit_length() - 1 if rest else -1


@lru_cache(maxsize=4096)
def _days(days_of_month: int, days_of_week: int, either: bool, year: int, month: int) -> int:
    first = date(year, month, 1).toordinal()
    length = date(year + month // 12, month % 12 + 1, 1).toordinal() - first
    # Sunday is 0, and day 0 of the month is the one before the first.
    shift = (first - 1) % 7
    week = days_of_week >> shift | days_of_week << 7 - shift
    weekdays = sum((week & 127) << 7 * n for n in range(5))
    return (days_of_month | weekdays if either else days_of_month & weekdays) & (2 << length) - 2


class WallTimes(NamedTuple):
    """A set of wall times, in whole seconds: those whose fields are all among the given.

    Fields are sets as `bits`. Wall times are microseconds since 1970-01-01 00:00 on the local clock.
    """

    #: The matching days of a year's month, as `bits`.
    days: Callable[[int, int], int]
    months: int
    hours: int
    minutes: int
    seconds: int = 1

    @staticmethod
    def days_by(days_of_month: int, days_of_week: int, *, either: bool) -> Callable[[int, int], int]:
        """Return `days` for sets of days; Sunday is 0.

        Args:
            days_of_month: As `bits`.
            days_of_week: As `bits`.
            either: Is it enough that one of both matches?
        """
        return partial(_days, days_of_month, days_of_week, either)

    def next(self, wall_us: int) -> int | None:
        """Return the first match strictly after a wall time; None: none within 41 years."""
        if not (self.hours and self.minutes and self.seconds):
            return None
        day, second = divmod(wall_us // SECOND_US + 1, 86_400)
        today = date.fromordinal(day + _EPOCH_DAY)
        year, month = today.year, today.month
        days = self.days(year, month) if self.months >> month & 1 else 0
        if days >> today.day & 1:
            in_day = self._time_from(second)
            if in_day >= 0:
                return day * DAY_US + in_day * SECOND_US
        next_day = _first(days, today.day + 1)
        while next_day < 0:
            month += 1
            if month > 12:
                year, month = year + 1, 1
                if year > today.year + _SEARCH_YEARS:
                    return None
            if self.months >> month & 1:
                next_day = _first(self.days(year, month), 1)
        day = date(year, month, next_day).toordinal() - _EPOCH_DAY
        return day * DAY_US + self._time_from(0) * SECOND_US

    def matches(self, after_us: int, upto_us: int) -> int:
        """Return how many matches there are in (after, upto]."""
        return self._count_from_month(after_us, upto_us) - self._count_from_month(after_us, after_us)

    def _time_from(self, second: int) -> int:
        """Return the first match of a day, in seconds of the day, not before `second`; -1: none is left."""
        minute, second = divmod(second, 60)
        hour, minute = divmod(minute, 60)
        if self.hours >> hour & 1:
            if self.minutes >> minute & 1:
                found = _first(self.seconds, second)
                if found >= 0:
                    return hour * 3600 + minute * 60 + found
            found = _first(self.minutes, minute + 1)
            if found >= 0:
                return hour * 3600 + found * 60 + _first(self.seconds, 0)
        found = _first(self.hours, hour + 1)
        return found if found < 0 else found * 3600 + _first(self.minutes, 0) * 60 + _first(self.seconds, 0)

    def _count_from_month(self, origin_us: int, upto_us: int) -> int:
        """Return how many matches there are from the start of the origin's month up to and at `upto_us`."""
        start = date.fromordinal(origin_us // DAY_US + _EPOCH_DAY)
        day, rest_us = divmod(upto_us, DAY_US)
        last = date.fromordinal(day + _EPOCH_DAY)
        year, month, whole_days = start.year, start.month, 0
        while (year, month) < (last.year, last.month):
            whole_days += self._days_in(year, month).bit_count()
            year, month = year + month // 12, month % 12 + 1
        days = self._days_in(year, month)
        whole_days += (days & (1 << last.day) - 1).bit_count()
        counted = whole_days * self.hours.bit_count() * self.minutes.bit_count() * self.seconds.bit_count()
        return counted + (self._count_in_day(rest_us // SECOND_US) if days >> last.day & 1 else 0)

    def _days_in(self, year: int, month: int) -> int:
        return self.days(year, month) if self.months >> month & 1 else 0

    def _count_in_day(self, second: int) -> int:
        minute, second = divmod(second, 60)
        hour, minute = divmod(minute, 60)
        per_minute = self.seconds.bit_count()
        counted = (self.hours & (1 << hour) - 1).bit_count() * self.minutes.bit_count() * per_minute
        if self.hours >> hour & 1:
            counted += (self.minutes & (1 << minute) - 1).bit_count() * per_minute
            if self.minutes >> minute & 1:
                counted += (self.seconds & (2 << second) - 1).bit_count()
        return counted


class WallClock(Rule):
    """The instants at which a timezone's clock reads one of a set of wall times."""

    __slots__ = ("_known", "_times", "_wildcard", "_zone")

    def __init__(self, times: WallTimes, tz: tzinfo, *, wildcard: bool) -> None:
        self._times = times
        self._zone = Zone.of(tz)
        self._wildcard = wildcard
        self._known: dict[int, int] = {}

    def after(self, last_us: int) -> int | None:
        """Return the first instant strictly after *any* instant; None: none within some 41 years."""
        # Entries that share a rule have run at the same instants.
        instant = self._known.get(last_us)
        if instant is None:
            instant = self._after(last_us)
            if instant is not None:
                if len(self._known) >= _MOST_KNOWN:
                    self._known.clear()
                self._known[last_us] = instant
        return instant

    def _after(self, last_us: int) -> int | None:
        if last_us >= LATEST_US:
            return None
        if self._wildcard:
            return self._next_by_elapsed_time(last_us)
        wall = self._times.next(self._zone.high_water(last_us))
        return None if wall is None else self._zone.reached(wall, last_us)

    def newest_first(self, last_us: int, upto_us: int) -> Iterator[int]:
        """Yield the instants in (last, upto], newest first, without a walk through all that came before."""
        few = list(islice(self._chain(last_us, upto_us), _FEW + 1))
        if len(few) <= _FEW:
            yield from reversed(few)
            return
        window = _FIRST_WINDOW_US
        while upto_us > last_us:
            start = max(last_us, upto_us - window)
            piece = list(islice(self._chain(start, upto_us), _MANY + 1))
            if len(piece) > _MANY:
                window //= 4
                continue
            yield from reversed(piece)
            upto_us = start
            window *= 4

    def count(self, last_us: int, upto_us: int) -> int:
        """Return how many instants there are in (last, upto], by arithmetic."""
        if upto_us <= last_us:
            return 0
        counted = 0
        high = self._zone.high_water(last_us)
        span = self._zone.span(last_us)
        while True:
            until = min(span.end - 1, upto_us)
            wall = until + span.offset
            if self._wildcard:
                counted += self._times.matches(max(last_us, span.start - 1) + span.offset, wall)
            elif wall > high:
                landing = span.start + span.offset
                if high < landing:
                    # All that was skipped, and what is read at the change itself, is one instant.
                    counted += self._times.matches(high, landing) > 0
                    high = landing
                counted += self._times.matches(high, wall)
                high = wall
            if until == upto_us:
                return counted
            span = self._zone.span(span.end)

    def _next_by_elapsed_time(self, last_us: int) -> int | None:
        span = self._zone.span(last_us)
        wall = last_us + span.offset
        # A rule may match only what is skipped every year: then the search ends, not the matches.
        while span.start <= last_us + _SEARCH_US:
            match = self._times.next(wall)
            if match is None:
                return None
            if match - span.offset < span.end:
                return match - span.offset
            span = self._zone.span(span.end)
            wall = span.start + span.offset - 1
        return None
