from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone, tzinfo
from functools import cache, lru_cache
from itertools import pairwise
from typing import NamedTuple
from zoneinfo import ZoneInfo, available_timezones

import pytest
from celery import Celery
from celery.schedules import BaseSchedule, crontab
from celery.utils.time import LocalTimezone
from dateutil import tz as dateutil_tz  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_distsched.instants import cron, rule_for
from celery_distsched.instants.rule import LATEST_US, SECOND_US, Rule
from celery_distsched.instants.wall_clock import WallClock, WallTimes, bits
from celery_distsched.instants.zone import Zone

MINUTE_US = 60 * SECOND_US
HOUR_US = 60 * MINUTE_US
PARIS, NEW_YORK = "Europe/Paris", "America/New_York"
EVERY_DAY = WallTimes.days_by(bits(range(1, 32)), bits(range(7)), either=False)
ANY_MONTH = bits(range(1, 13))

# A moment near a change of each kind: an hour forth and back, half an hour, two hours, at midnight, negative summer
# time, a change that stays, a day that is skipped or comes twice, and none at all.
CHANGES = [
    (PARIS, "2026-03-29T01:00"),
    (PARIS, "2026-10-25T01:00"),
    (NEW_YORK, "2026-03-08T07:00"),
    (NEW_YORK, "2026-11-01T06:00"),
    ("Australia/Lord_Howe", "2026-04-04T15:00"),
    ("Australia/Lord_Howe", "2026-10-03T15:30"),
    ("Antarctica/Troll", "2026-03-29T01:00"),
    ("Antarctica/Troll", "2026-10-25T01:00"),
    ("America/Santiago", "2026-04-05T03:00"),
    ("America/Santiago", "2026-09-06T04:00"),
    ("America/Havana", "2026-03-08T05:00"),
    ("America/Havana", "2026-11-01T05:00"),
    ("America/St_Johns", "2006-10-29T02:31"),
    ("Europe/Dublin", "2026-10-25T01:00"),
    ("America/Caracas", "2016-05-01T07:00"),
    ("America/Caracas", "2007-12-09T07:00"),
    ("Africa/Casablanca", "2026-02-15T02:00"),
    ("Pacific/Apia", "2011-12-30T10:00"),
    ("Pacific/Kwajalein", "1993-08-20T12:00"),
    ("Antarctica/Vostok", "1994-01-31T17:00"),
    ("Asia/Kathmandu", "2026-06-01T00:00"),
]
# From here on the clock had been 44 minutes and 30 seconds behind.
TO_THE_SECOND = ("Africa/Monrovia", "1972-01-07T00:44")


def us(text: str) -> int:
    """An instant from an ISO time, in UTC where it says nothing else."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return round(moment.timestamp()) * SECOND_US


def local(instant_us: int, name: str) -> str:
    return datetime.fromtimestamp(instant_us // SECOND_US, ZoneInfo(name)).isoformat()


def at(hours: set[int] | None = None, minutes: set[int] | None = None) -> WallTimes:
    return WallTimes(
        EVERY_DAY,
        ANY_MONTH,
        bits(range(24) if hours is None else hours),
        bits(range(60) if minutes is None else minutes),
    )


def instants(rule: Rule, after_us: int, upto_us: int) -> list[int]:
    found = []
    instant = rule.after(after_us)
    while instant is not None and instant <= upto_us:
        found.append(instant)
        instant = rule.after(instant)
    return found


def shown(name: str, times: WallTimes, start: str, hours: int, *, wildcard: bool) -> list[str]:
    """The local times at which a rule runs, from `start` on for so many hours."""
    rule = WallClock(times, ZoneInfo(name), wildcard=wildcard)
    return [local(instant, name) for instant in instants(rule, us(start) - 1, us(start) + hours * HOUR_US - 1)]


@lru_cache
def clock_readings(name: str, start_us: int, end_us: int, step_us: int) -> list[tuple[int, datetime]]:
    """What the local clock shows at each step, after the standard library."""
    zone = ZoneInfo(name)
    return [
        (instant, datetime.fromtimestamp(instant // SECOND_US, zone).replace(tzinfo=None))
        for instant in range(start_us, end_us, step_us)
    ]


def by_brute_force(
    readings: list[tuple[int, datetime]], matches: Callable[[datetime], bool], step: timedelta, *, wildcard: bool
) -> list[int]:
    """Run through the readings: the rule as one would tell it to a friend."""
    if wildcard:
        return [instant for instant, wall in readings if matches(wall)]
    found = []
    highest = readings[0][1] - step
    for instant, wall in readings:
        new = False
        while highest < wall:
            highest += step
            new |= matches(highest)
        if new:
            found.append(instant)
    return found


# Pinned days


def test_a_fixed_time_in_a_skipped_hour_runs_at_the_change() -> None:
    half_past_two = at({2}, {30})
    assert shown(PARIS, half_past_two, "2026-03-28T00:00", 72, wildcard=False) == [
        "2026-03-28T02:30:00+01:00",
        "2026-03-29T03:00:00+02:00",
        "2026-03-30T02:30:00+02:00",
    ]
    assert shown(NEW_YORK, half_past_two, "2026-03-08T05:00", 48, wildcard=False) == [
        "2026-03-08T03:00:00-04:00",
        "2026-03-09T02:30:00-04:00",
    ]


def test_a_fixed_time_in_a_repeated_hour_runs_the_first_time() -> None:
    assert shown(PARIS, at({2}, {30}), "2026-10-25T00:00", 48, wildcard=False) == [
        "2026-10-25T02:30:00+02:00",
        "2026-10-26T02:30:00+01:00",
    ]
    assert shown(NEW_YORK, at({1}, {30}), "2026-11-01T04:00", 48, wildcard=False) == [
        "2026-11-01T01:30:00-04:00",
        "2026-11-02T01:30:00-05:00",
    ]


def test_the_end_of_a_repeated_hour_is_read_once() -> None:
    assert shown(PARIS, at({3}, {0}), "2026-10-25T00:00", 24, wildcard=False) == ["2026-10-25T03:00:00+01:00"]


def test_all_that_a_gap_swallows_runs_once() -> None:
    assert shown(PARIS, at({2, 3}, {0, 20, 40}), "2026-03-29T00:00", 24, wildcard=False) == [
        "2026-03-29T03:00:00+02:00",
        "2026-03-29T03:20:00+02:00",
        "2026-03-29T03:40:00+02:00",
    ]


@pytest.mark.parametrize(("name", "start"), [(PARIS, "2026-10-25T00:00"), (NEW_YORK, "2026-11-01T05:00")])
def test_an_hourly_rule_runs_in_both_repeated_hours(name: str, start: str) -> None:
    runs = shown(name, at(None, {0}), start, 3, wildcard=True)
    assert len(runs) == 3
    assert runs[0][:16] == runs[1][:16] or runs[1][:16] == runs[2][:16]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (PARIS, "2026-03-29T01:00"),
        (PARIS, "2026-10-25T01:00"),
        (NEW_YORK, "2026-03-08T07:00"),
        (NEW_YORK, "2026-11-01T06:00"),
    ],
)
def test_every_ten_minutes_stays_every_ten_minutes(name: str, change: str) -> None:
    rule = WallClock(at(None, set(range(0, 60, 10))), ZoneInfo(name), wildcard=True)
    start = us(change) - 12 * HOUR_US
    runs = instants(rule, start - 1, start + 24 * HOUR_US)
    assert runs == list(range(start, start + 24 * HOUR_US + 1, 10 * MINUTE_US))


def test_a_wildcard_rule_that_names_a_skipped_hour_does_not_run_in_it() -> None:
    runs = shown(PARIS, at({2}, None), "2026-03-28T12:00", 24, wildcard=True)
    assert runs == []


def test_a_skipped_day_runs_at_the_change_and_a_repeated_one_once() -> None:
    noon = at({12}, {0})
    assert shown("Pacific/Apia", noon, "2011-12-29T12:00", 72, wildcard=False) == [
        "2011-12-29T12:00:00-10:00",
        "2011-12-31T00:00:00+14:00",
        "2011-12-31T12:00:00+14:00",
        "2012-01-01T12:00:00+14:00",
    ]


def test_a_change_that_is_no_summer_time() -> None:
    assert shown("America/Caracas", at({2}, {45}), "2016-04-30T00:00", 48, wildcard=False) == [
        "2016-04-30T02:45:00-04:30",
        "2016-05-01T03:00:00-04:00",
    ]


# Ends


def test_a_rule_that_matches_no_date_has_no_instant() -> None:
    never = WallTimes(WallTimes.days_by(bits([31]), bits(range(7)), either=False), bits([2, 4]), 1, 1)
    assert WallClock(never, timezone.utc, wildcard=False).after(0) is None
    assert WallClock(never, timezone.utc, wildcard=True).after(0) is None


def test_a_wildcard_rule_that_matches_skipped_times_only_has_no_instant() -> None:
    # The second Sunday of March from two to three: New York skips just that.
    days = WallTimes.days_by(bits(range(8, 15)), bits([0]), either=False)
    times = WallTimes(days, bits([3]), bits([2]), bits(range(60)))
    assert WallClock(times, ZoneInfo(NEW_YORK), wildcard=True).after(us("2026-01-01")) is None


def test_an_empty_field_never_matches() -> None:
    assert WallClock(at(set()), timezone.utc, wildcard=False).after(0) is None


def test_a_leap_day_on_a_weekday_is_found_over_forty_years() -> None:
    monday_29th = WallTimes(WallTimes.days_by(bits([29]), bits([1]), either=False), bits([2]), 1, 1)
    rule = WallClock(monday_29th, timezone.utc, wildcard=False)
    assert rule.after(us("2072-02-29")) == us("2112-02-29")


def test_the_last_years_of_the_calendar_end_the_search() -> None:
    rule = WallClock(at({0}, {0}), ZoneInfo(PARIS), wildcard=False)
    assert rule.after(LATEST_US) is None
    last = rule.after(LATEST_US - 1)
    assert last is not None
    assert last > LATEST_US - 1


# Against the standard library


def _some(numbers: range) -> st.SearchStrategy[set[int]]:
    few = st.sets(st.sampled_from(numbers), min_size=1, max_size=4)
    return few | st.just(set(numbers)) | st.sampled_from([2, 3, 5, 10]).map(lambda step: set(numbers[::step]))


@settings(max_examples=150, deadline=None)
@given(change=st.sampled_from(CHANGES), hours=_some(range(24)), minutes=_some(range(60)), wildcard=st.booleans())
def test_agrees_with_a_walk_minute_by_minute(
    change: tuple[str, str], hours: set[int], minutes: set[int], wildcard: bool
) -> None:
    name, moment = change
    start, end = us(moment) - 40 * HOUR_US, us(moment) + 40 * HOUR_US
    expected = by_brute_force(
        clock_readings(name, start - 60 * HOUR_US, end + 1, MINUTE_US),
        lambda wall: wall.hour in hours and wall.minute in minutes,
        timedelta(minutes=1),
        wildcard=wildcard,
    )
    expected = [instant for instant in expected if instant > start]
    rule = WallClock(at(hours, minutes), ZoneInfo(name), wildcard=wildcard)
    assert instants(rule, start, end) == expected
    assert list(rule.newest_first(start, end)) == expected[::-1]
    assert rule.count(start, end) == len(expected)


@settings(max_examples=60, deadline=None)
@given(
    change=st.sampled_from([*CHANGES, TO_THE_SECOND]),
    minutes=_some(range(60)),
    seconds=_some(range(60)),
    wildcard=st.booleans(),
    shift=st.integers(-HOUR_US, HOUR_US),
)
def test_agrees_with_a_walk_second_by_second(
    change: tuple[str, str], minutes: set[int], seconds: set[int], wildcard: bool, shift: int
) -> None:
    name, moment = change
    start, end = us(moment) - HOUR_US // 2 + shift, us(moment) + HOUR_US // 2 + shift
    expected = by_brute_force(
        clock_readings(name, us(moment) - 8 * HOUR_US, us(moment) + 2 * HOUR_US, SECOND_US),
        lambda wall: wall.minute in minutes and wall.second in seconds,
        timedelta(seconds=1),
        wildcard=wildcard,
    )
    expected = [instant for instant in expected if start < instant <= end]
    times = WallTimes(EVERY_DAY, ANY_MONTH, bits(range(24)), bits(minutes), bits(seconds))
    rule = WallClock(times, ZoneInfo(name), wildcard=wildcard)
    assert instants(rule, start, end) == expected
    assert list(rule.newest_first(start, end)) == expected[::-1]
    assert rule.count(start, end) == len(expected)


@settings(max_examples=200, deadline=None)
@given(
    days_of_month=_some(range(1, 32)),
    days_of_week=_some(range(7)),
    months=_some(range(1, 13)),
    either=st.booleans(),
    start=st.dates(datetime(1970, 1, 2).date(), datetime(2100, 1, 1).date()),  # noqa: DTZ001
)
def test_agrees_with_a_walk_day_by_day(
    days_of_month: set[int], days_of_week: set[int], months: set[int], either: bool, start: datetime
) -> None:
    together = any if either else all
    days = [start + timedelta(days=n) for n in range(1, 500)]
    expected = [
        us(day.isoformat())
        for day in days
        if day.month in months and together((day.day in days_of_month, day.isoweekday() % 7 in days_of_week))
    ]
    choose = WallTimes.days_by(bits(days_of_month), bits(days_of_week), either=either)
    rule = WallClock(WallTimes(choose, bits(months), 1, 1), timezone.utc, wildcard=False)
    first, last = us(start.isoformat()), us(days[-1].isoformat())
    assert instants(rule, first, last) == expected
    assert rule.count(first, last) == len(expected)


class Change(NamedTuple):
    """A local clock is set, at the beginning of a second."""

    second: int
    before: timedelta
    after: timedelta

    @property
    def what_is_skipped_or_repeated(self) -> tuple[datetime, datetime]:
        """What a local clock does not show at all, or shows twice: from the one until just before the other."""
        utc = datetime.fromtimestamp(self.second, timezone.utc).replace(tzinfo=None)
        return utc + min(self.before, self.after), utc + max(self.before, self.after)


def _changes(name: str) -> Iterator[Change]:
    """Each change from 2020 to 2035 that the standard library knows."""
    zone = ZoneInfo(name)

    def offset(second: int) -> timedelta:
        offset = datetime.fromtimestamp(second, zone).utcoffset()
        assert offset is not None
        return offset

    samples = range(1_577_836_800, 2_082_758_400, 3 * 86_400)
    for before, after in pairwise(samples):
        if offset(before) != offset(after):
            second = bisect_left(range(before, after + 1), True, key=lambda second: offset(second) != offset(before))
            yield Change(before + second, offset(before), offset(after))


@cache
def all_changes() -> dict[str, tuple[Change, ...]]:
    """Those of each timezone, but of several that change alike only those of one."""
    names = {tuple(_changes(name)): name for name in sorted(available_timezones(), reverse=True)}
    return {name: changes for changes, name in names.items()}


def test_no_change_of_any_timezone_until_2035_loses_or_doubles_a_run() -> None:
    """At every quarter, by elapsed time and at fixed times, over every change that the standard library knows."""
    quarters = set(range(0, 60, 15))
    for name, changes in all_changes().items():
        for second, _, _ in changes:
            start, end = second // 60 * MINUTE_US - HOUR_US, second // 60 * MINUTE_US + 4 * HOUR_US
            readings = clock_readings.__wrapped__(name, start - 3 * HOUR_US, end + 1, MINUTE_US)
            for wildcard in (True, False):
                expected = by_brute_force(
                    readings, lambda wall: wall.minute in quarters, timedelta(minutes=1), wildcard=wildcard
                )
                rule = WallClock(at(None, quarters), ZoneInfo(name), wildcard=wildcard)
                assert instants(rule, start, end) == [instant for instant in expected if instant > start], name
    assert sum(map(len, all_changes().values())) > 1_000


class Case(NamedTuple):
    """A schedule as a user writes it, which wall times it names, and whether it runs by elapsed time."""

    schedule: BaseSchedule
    matches: Callable[[datetime], bool]
    wildcard: bool


def cases(wall: datetime, name: str, app: Celery) -> list[Case]:
    """Schedules of each kind that name this minute; the app is in the timezone of this name."""
    hour, minute = wall.hour, wall.minute

    def same_minute(shown: datetime) -> bool:
        return shown.minute == minute and shown.hour == hour

    def each_ten(shown: datetime) -> bool:
        return shown.minute % 10 == 0 and shown.second == 0 and shown.hour == hour

    return [
        Case(cron(f"{minute} {hour} * * *", name), lambda shown: same_minute(shown) and shown.second == 0, False),
        Case(crontab(minute, hour, app=app), lambda shown: same_minute(shown) and shown.second == 0, False),
        Case(cron(f"30 {minute} {hour} * * *", name), lambda shown: same_minute(shown) and shown.second == 30, False),
        Case(cron(f"*/30 {minute} {hour} * * *", name), same_minute, True),
        Case(cron(f"*/10 {hour} * * *", name), each_ten, True),
        Case(crontab("*/10", hour, app=app), each_ten, True),
    ]


def test_what_a_change_of_any_timezone_until_2035_skips_or_repeats_runs_as_its_schedule_says() -> None:
    """Of each change the middle of what is skipped or repeated, in each way in which a user can ask for it."""
    step = timedelta(seconds=30)
    for name, changes in all_changes().items():
        with Celery("in this timezone", broker="memory://", set_as_current=False) as app:
            app.conf.timezone = name
            for change in changes:
                first, last = change.what_is_skipped_or_repeated
                is_skipped = change.after > change.before
                between = [first + number * step for number in range((last - first) // step)]
                length_us, change_us = (last - first) // timedelta(microseconds=1), change.second * SECOND_US
                start, end = change_us - length_us - HOUR_US, change_us + length_us + HOUR_US
                readings = clock_readings.__wrapped__(name, start, end + 1, step // timedelta(microseconds=1))
                for schedule, matches, wildcard in cases(first + (last - first) / 2, name, app):
                    what = f"{schedule} in {name} at {change}"
                    named = [wall for wall in between if matches(wall)]
                    shown = [wall for _, wall in readings if first <= wall < last and matches(wall)]
                    assert named, what
                    assert sorted(shown) == sorted([] if is_skipped else 2 * named), what
                    expected = by_brute_force(readings, matches, step, wildcard=wildcard)
                    if is_skipped and not wildcard:
                        assert expected == [change_us], what
                    rule = rule_for(schedule)
                    assert rule is not None
                    assert instants(rule, start - 1, end) == expected, what
                    assert rule.count(start - 1, end) == len(expected), what


# Timezones


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(sorted(available_timezones())), second=st.integers(0, 4_000_000_000))
def test_a_zone_has_the_offset_of_the_standard_library(name: str, second: int) -> None:
    span = Zone.of(ZoneInfo(name)).span(second * SECOND_US)
    expected = datetime.fromtimestamp(second, ZoneInfo(name)).utcoffset()
    assert timedelta(microseconds=span.offset) == expected
    assert span.start <= second * SECOND_US < span.end


@pytest.mark.parametrize(
    "tz",
    [
        timezone.utc,
        timezone(timedelta(hours=-3, minutes=-30)),
        ZoneInfo("UTC"),
        dateutil_tz.tzoffset(None, 20_700),
        dateutil_tz.UTC,
    ],
)
def test_a_fixed_offset_is_a_timezone_too(tz: tzinfo) -> None:
    start = us("2026-06-01")
    found = WallClock(at({2}, {30}), tz, wildcard=False).after(start)
    assert found is not None
    moment = datetime.fromtimestamp(found // SECOND_US, tz)
    assert (moment.hour, moment.minute) == (2, 30)
    assert start < found <= start + 24 * HOUR_US


def test_a_timezone_that_cannot_be_hashed_works() -> None:
    zone = dateutil_tz.gettz(NEW_YORK)
    assert zone is not None
    rule = WallClock(at({1}, {30}), zone, wildcard=False)
    same = WallClock(at({1}, {30}), ZoneInfo(NEW_YORK), wildcard=False)
    start, end = us("2026-10-30"), us("2026-11-04")
    assert instants(rule, start, end) == instants(same, start, end)


def test_a_timezone_without_an_offset_is_refused() -> None:
    class Nowhere(tzinfo):
        def utcoffset(self, dt: datetime | None) -> None:
            return None

        def dst(self, dt: datetime | None) -> None:
            return None

        def tzname(self, dt: datetime | None) -> str:
            return "nowhere"

        def fromutc(self, dt: datetime) -> datetime:
            return dt

    with pytest.raises(ValueError, match="does not say how far"):
        WallClock(at({1}), Nowhere(), wildcard=False).after(0)


@pytest.fixture
def system_in_new_york() -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = NEW_YORK
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


@pytest.mark.usefixtures("system_in_new_york")
@pytest.mark.parametrize("wildcard", [True, False])
@pytest.mark.parametrize("start", ["2026-03-07", "2026-10-31"])
def test_celerys_own_local_timezone_follows_the_system(start: str, wildcard: bool) -> None:
    times = at({1, 2}, {0, 30})
    rule = WallClock(times, LocalTimezone(), wildcard=wildcard)
    same = WallClock(times, ZoneInfo(NEW_YORK), wildcard=wildcard)
    first, last = us(start), us(start) + 72 * HOUR_US
    assert instants(rule, first, last) == instants(same, first, last)


# Speed


def test_a_year_of_seconds_is_not_walked_to_find_the_newest() -> None:
    asked = 0

    class Counting(WallClock):
        def after(self, last_us: int) -> int | None:
            nonlocal asked
            asked += 1
            return super().after(last_us)

    every_second = WallTimes(EVERY_DAY, ANY_MONTH, bits(range(24)), bits(range(60)), bits(range(60)))
    rule = Counting(every_second, ZoneInfo(PARIS), wildcard=True)
    start, end = us("2026-01-01"), us("2027-01-01")
    newest = rule.newest_first(start, end)
    assert [next(newest) for _ in range(1000)] == [end - n * SECOND_US for n in range(1000)]
    assert rule.count(start, end) == 365 * 86_400
    assert asked < 10_000


def test_runs_that_come_in_bursts_are_found_without_walking_through_them() -> None:
    asked = 0

    class Counting(WallClock):
        def after(self, last_us: int) -> int | None:
            nonlocal asked
            asked += 1
            return super().after(last_us)

    new_year = WallTimes.days_by(bits([1]), bits(range(7)), either=False)
    times = WallTimes(new_year, bits([1]), bits(range(24)), bits(range(60)), bits(range(60)))
    rule = Counting(times, timezone.utc, wildcard=True)
    newest = next(rule.newest_first(us("2020-06-01"), us("2026-06-01")))
    assert newest == us("2026-01-01T23:59:59")
    assert asked < 10_000
