from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery import Celery
from celery.schedules import BaseSchedule, crontab, schedstate, schedule, solar
from celery.utils.time import remaining
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from celery_distsched.errors import ConfigError
from celery_distsched.instants.cron import cron
from celery_distsched.instants.interval import RelativeInterval, interval_us
from celery_distsched.instants.kinds import ask, rule_for
from celery_distsched.instants.rule import DAY_US, LATEST_US, SECOND_US, Rule

UTC = timezone.utc
MINUTE_US, HOUR_US = 60 * SECOND_US, 3600 * SECOND_US


@pytest.fixture
def app() -> Iterator[Celery]:
    with Celery("instants", broker="memory://", set_as_current=False) as app:
        yield app


def us(moment: str | datetime) -> int:
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def moment(instant_us: int | None) -> datetime:
    assert instant_us is not None
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=instant_us)


def computed(entry_schedule: BaseSchedule, app: Celery | None = None) -> Rule:
    if app is not None:
        entry_schedule.app = app
    rule = rule_for(entry_schedule)
    assert rule is not None
    return rule


def chain(rule: Rule, last_us: int, upto_us: int) -> list[int]:
    found = []
    instant = rule.after(last_us)
    while instant is not None and instant <= upto_us:
        found.append(instant)
        instant = rule.after(instant)
    return found


# Intervals


def test_an_interval_is_a_grid_without_drift(app: Celery) -> None:
    rule = computed(schedule(0.1), app)
    assert chain(rule, 7, 350_000) == [100_007, 200_007, 300_007]
    assert list(rule.newest_first(7, 350_000)) == [300_007, 200_007, 100_007]
    assert rule.count(7, 300_007) == 3
    assert rule.count(7, 6) == 0


def test_an_interval_beyond_the_calendar_has_no_instant(app: Celery) -> None:
    assert computed(schedule(timedelta.max), app).after(0) is None
    assert computed(schedule(timedelta.max, relative=True), app).after(0) is None
    assert computed(schedule(1), app).after(LATEST_US) is None


@pytest.mark.parametrize("every", [0, -1, 0.009, timedelta(microseconds=9_999)])
def test_an_interval_below_ten_milliseconds_is_refused(every: float | timedelta) -> None:
    with pytest.raises(ConfigError, match=r"its interval .* set 'schedule' to 0\.01 or more"):
        interval_us(schedule(every))
    with pytest.raises(ConfigError):
        rule_for(schedule(every))
    assert interval_us(schedule(0.01)) == 10_000


@pytest.mark.parametrize(
    ("every", "last", "expected"),
    [
        (timedelta(seconds=10), "2026-06-01T10:20:30.400", "2026-06-01T10:20:40"),
        (timedelta(minutes=10), "2026-06-01T10:20:30", "2026-06-01T10:30:00"),
        (timedelta(minutes=90), "2026-06-01T10:20:30", "2026-06-01T11:00:00"),
        (timedelta(hours=2), "2026-06-01T10:20:30", "2026-06-01T12:00:00"),
        (timedelta(days=1), "2026-06-01T10:20:30", "2026-06-01T22:00:00"),
        (timedelta(hours=36), "2026-06-01T10:20:30", "2026-06-02T22:00:00"),
        (timedelta(milliseconds=100), "2026-06-01T10:20:30.250", "2026-06-01T10:20:30.350"),
        # The night in which Paris goes forth, and the one in which it goes back.
        (timedelta(days=1), "2026-03-28T23:00:00", "2026-03-29T22:00:00"),
        (timedelta(days=1), "2026-10-24T22:00:00", "2026-10-25T23:00:00"),
        (timedelta(days=2), "2026-10-24T22:00:00", "2026-10-26T23:00:00"),
        (timedelta(hours=1), "2026-10-25T00:00:00", "2026-10-25T01:00:00"),
        (timedelta(hours=1), "2026-03-29T00:30:00", "2026-03-29T01:00:00"),
    ],
)
def test_a_relative_interval_is_rounded_down_on_the_local_clock(
    app: Celery, every: timedelta, last: str, expected: str
) -> None:
    app.conf.timezone = "Europe/Paris"
    assert computed(schedule(every, relative=True), app).after(us(last)) == us(expected)


@pytest.mark.parametrize(
    ("zone", "every", "last", "expected"),
    [
        # Lord Howe goes forth by half an hour: 02:00, to which 02:35 is rounded, is skipped.
        ("Australia/Lord_Howe", 3600, "2026-10-03T14:35", "2026-10-03T15:30"),
        # It goes back from 02:00 to 01:30: 01:00, to which 01:40 is rounded, was long ago, or before the last one.
        ("Australia/Lord_Howe", 5400, "2026-04-04T13:40", "2026-04-04T14:00"),
        ("Australia/Lord_Howe", 3600, "2026-04-04T14:10", "2026-04-04T15:30"),
        # Havana skips midnight.
        ("America/Havana", 86_400, "2026-03-07T05:00", "2026-03-08T05:00"),
    ],
)
def test_a_relative_interval_is_rounded_over_a_change_as_celery_does(
    zone: str, every: int, last: str, expected: str
) -> None:
    assert RelativeInterval(every * SECOND_US, ZoneInfo(zone)).after(us(last)) == us(expected)


_INTERVALS = st.one_of(
    st.integers(1, 200).map(lambda n: timedelta(seconds=n)),
    st.integers(1, 200).map(lambda n: timedelta(minutes=n)),
    st.integers(1, 80).map(lambda n: timedelta(hours=n)),
    st.integers(1, 12).map(lambda n: timedelta(days=n)),
)
_ZONES = st.sampled_from(
    ["UTC", "Europe/Paris", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "America/Havana", "Asia/Beirut"]
)
_MOMENTS = st.datetimes(datetime(2025, 12, 1), datetime(2027, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


@settings(max_examples=300, deadline=None)
@given(every=_INTERVALS, zone=_ZONES, last=_MOMENTS)
def test_a_relative_interval_agrees_with_celery_between_changes(every: timedelta, zone: str, last: datetime) -> None:
    local = last.astimezone(ZoneInfo(zone))
    late = (last + every + timedelta(days=2)).astimezone(ZoneInfo(zone))
    assume((local - timedelta(days=2)).utcoffset() == local.utcoffset() == late.utcoffset())
    rule = RelativeInterval(every // timedelta(microseconds=1), ZoneInfo(zone))
    expected = local + remaining(local, every, now=local, relative=True)
    assert moment(rule.after(us(last))) == expected.astimezone(UTC)


@settings(max_examples=200, deadline=None)
@given(every=_INTERVALS, zone=_ZONES, last=_MOMENTS, gap=st.integers(0, 40 * 86_400))
def test_the_runs_of_a_relative_interval_are_its_chain(every: timedelta, zone: str, last: datetime, gap: int) -> None:
    assume(gap < 3_000 * every.total_seconds())
    rule = RelativeInterval(every // timedelta(microseconds=1), ZoneInfo(zone))
    first, upto = us(last), us(last) + gap * SECOND_US
    expected = chain(rule, first, upto)
    assert expected == sorted(set(expected))
    assert list(rule.newest_first(first, upto)) == expected[::-1]
    assert rule.count(first, upto) == len(expected)


@pytest.mark.parametrize("every", [1800, 3600, 5400, 7200, 86_400, 200_000])
@pytest.mark.parametrize("zone", ["Australia/Lord_Howe", "Europe/Paris", "America/Havana", "Asia/Beirut"])
def test_a_relative_interval_goes_on_over_every_change(every: int, zone: str) -> None:
    rule = RelativeInterval(every * SECOND_US, ZoneInfo(zone))
    found = chain(rule, us("2025-06-01"), us("2027-06-01"))
    unit = next(unit for unit in (DAY_US, HOUR_US, MINUTE_US) if every * SECOND_US >= unit)
    gaps = {later - earlier for earlier, later in pairwise(found)}
    assert min(gaps) > 0
    assert max(gaps) <= every * SECOND_US + max(unit, HOUR_US)
    assert list(rule.newest_first(us("2025-06-01"), us("2027-06-01"))) == found[::-1]


# Crontab


@pytest.mark.parametrize(
    ("entry_schedule", "after", "expected"),
    [
        (crontab(30, 2), "2026-03-28T22:00", "2026-03-29T01:00"),
        (crontab(30, 2), "2026-10-25T00:30", "2026-10-26T01:30"),
        (crontab(0), "2026-10-25T00:00", "2026-10-25T01:00"),
        (crontab("0", "*/2"), "2026-10-25T00:00", "2026-10-25T01:00"),
        (crontab("0", "0-23"), "2026-10-25T00:00", "2026-10-25T01:00"),
        (crontab(0, [2, 4]), "2026-10-25T00:00", "2026-10-25T03:00"),
        (crontab(0, 0, day_of_week="mon", day_of_month="1-7"), "2026-06-02", "2026-07-05T22:00"),
        (crontab(0, 0, month_of_year=2, day_of_month=29), "2026-06-02", "2028-02-28T23:00"),
    ],
)
def test_crontab_keeps_the_rule_of_cron(app: Celery, entry_schedule: crontab, after: str, expected: str) -> None:
    app.conf.timezone = "Europe/Paris"
    assert moment(computed(entry_schedule, app).after(us(after))) == moment(us(expected))


def test_a_timezone_that_was_set_by_name_is_taken(app: Celery) -> None:
    for entry_schedule in (crontab(0, 12), schedule(timedelta(days=1), relative=True)):
        entry_schedule.tz = "Asia/Tokyo"
        found = moment(computed(entry_schedule, app).after(us("2026-06-01"))).astimezone(ZoneInfo("Asia/Tokyo"))
        assert (found.hour, found.minute) in {(12, 0), (0, 0)}


def _numbers(low: int, high: int) -> st.SearchStrategy[Any]:
    some = st.sets(st.integers(low, high), min_size=1, max_size=3)
    return st.one_of(st.just("*"), some, st.integers(low, high), st.integers(2, 9).map(lambda step: f"*/{step}"))


@settings(max_examples=300, deadline=None)
@given(
    fields=st.tuples(_numbers(0, 59), _numbers(0, 23), _numbers(0, 6), _numbers(1, 28), _numbers(1, 12)),
    zone=st.sampled_from(["UTC", "Asia/Tokyo"]),
    last=_MOMENTS,
)
def test_crontab_agrees_with_celery_where_the_clocks_never_change(
    fields: tuple[Any, ...], zone: str, last: datetime
) -> None:
    app = Celery("crontab", set_as_current=False)
    app.conf.timezone = zone
    last = last.astimezone(ZoneInfo(zone))
    expected = last + crontab(*fields, nowfun=lambda: last, app=app).remaining_estimate(last)
    assert moment(computed(crontab(*fields, app=app)).after(us(last))) == expected.astimezone(UTC)


# Solar


def test_a_sunrise_comes_once_a_day(app: Celery) -> None:
    rule = computed(solar("sunrise", 48.85, 2.35), app)
    found = chain(rule, us("2026-01-01"), us("2027-01-01"))
    assert len(found) == 365
    assert len({moment(instant).date() for instant in found}) == 365
    assert all(3 <= moment(instant).hour <= 8 for instant in found)
    newest = list(rule.newest_first(us("2026-12-01"), us("2027-01-01")))
    # The same sunrise, found from another start, moves by a fraction of a second.
    assert [round(instant / SECOND_US) for instant in newest] == pytest.approx(
        [round(instant / SECOND_US) for instant in found[-1:-32:-1]], abs=1
    )
    assert rule.count(us("2026-12-01"), us("2027-01-01")) == 31


@pytest.mark.parametrize("event", sorted(solar._all_events))
def test_solar_agrees_with_celery(app: Celery, event: str) -> None:
    rule = computed(solar(event, 40.0, -75.0), app)
    last = datetime(2026, 6, 20, 3, tzinfo=UTC)
    theirs = last + solar(event, 40.0, -75.0, nowfun=lambda: last, app=app).remaining_estimate(last)
    assert abs(moment(rule.after(us(last))) - theirs) < timedelta(seconds=1)


def test_an_event_that_is_found_again_from_near_by_is_no_new_one(app: Celery) -> None:
    rule = computed(solar("dusk_astronomical", 48.85, 2.35), app)
    event = rule.after(us("2026-03-01"))
    assert event is not None
    for shift in (-500_000, -1, 0, 1, 500_000):
        following = rule.after(event + shift)
        assert following is not None
        assert following - event > DAY_US // 2


def test_no_event_is_made_up_while_the_sun_stays_away(app: Celery) -> None:
    rule = computed(solar("sunrise", 70.0, 25.0), app)
    # The polar night of the North Cape.
    found = moment(rule.after(us("2026-12-01")))
    assert datetime(2027, 1, 10, tzinfo=UTC) < found < datetime(2027, 1, 25, tzinfo=UTC)


def test_an_event_that_never_happens_has_no_instant(app: Celery) -> None:
    # At the pole the sun rises in no single day.
    assert computed(solar("sunrise", 90.0, 0.0), app).after(us("2026-06-21")) is None


# Opaque schedules


class Fifths(BaseSchedule):  # type: ignore[misc]
    """A schedule of its own kind: due when five seconds have passed."""

    def __init__(self, answer: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.answer = answer
        self.seen: datetime | None = None

    def is_due(self, last_run_at: datetime) -> Any:
        self.seen = last_run_at
        if self.answer is not None:
            return self.answer[0]
        left = 5 - (self.now() - last_run_at).total_seconds()
        return schedstate(left <= 0, left if left > 0 else 5)


class OwnIsDue(crontab):  # type: ignore[misc]
    def is_due(self, last_run_at: datetime) -> Any:
        return super().is_due(last_run_at)


class OwnEstimate(schedule):  # type: ignore[misc]
    def remaining_estimate(self, last_run_at: datetime) -> Any:
        return super().remaining_estimate(last_run_at)


class OwnNow(schedule):  # type: ignore[misc]
    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)


class OwnDelta(crontab):  # type: ignore[misc]
    def remaining_delta(self, *args: Any, **kwargs: Any) -> Any:
        return super().remaining_delta(*args, **kwargs)


class OwnCron(cron):
    def is_due(self, last_run_at: datetime) -> Any:
        return super().is_due(last_run_at)


class Named(crontab):  # type: ignore[misc]
    def __repr__(self) -> str:
        return "named"


def test_a_subclass_that_keeps_the_timing_is_computed() -> None:
    assert rule_for(Named()) is not None


@pytest.mark.parametrize(
    "entry_schedule",
    [
        Fifths(),
        OwnIsDue(),
        OwnEstimate(5),
        OwnNow(5),
        OwnDelta(),
        OwnCron("* * * * *"),
        crontab(nowfun=lambda: datetime.now(UTC)),
        schedule(5, nowfun=lambda: datetime.now(UTC)),
        cron("* * * * *", nowfun=lambda: datetime.now(UTC)),
    ],
    ids=lambda one: f"{type(one).__name__}{' with a nowfun' if one.nowfun else ''}",
)
def test_a_schedule_with_its_own_timing_is_opaque(entry_schedule: BaseSchedule) -> None:
    assert rule_for(entry_schedule) is None


@pytest.mark.parametrize(
    "make",
    [
        lambda app: schedule(timedelta(seconds=30), app=app),
        lambda app: crontab(minute="*/5", hour="3", app=app),
        lambda app: cron("5 */5 3 * * *", app=app),
    ],
)
def test_equal_schedules_share_a_rule(app: Celery, make: Any) -> None:
    one, other = make(app), make(app)
    assert one is not other
    assert rule_for(one) is rule_for(other)
    # In another timezone it is another one, but for intervals.
    with Celery("elsewhere", broker="memory://", set_as_current=False) as elsewhere:
        elsewhere.conf.timezone = "Asia/Tokyo"
        assert (rule_for(make(elsewhere)) is rule_for(one)) == (type(one) is schedule)


def test_what_looks_alike_is_no_equal_schedule(app: Celery) -> None:
    # A star makes it a wildcard rule, which runs in both of a repeated hour.
    every_hour = crontab(minute="0", hour="*/1", app=app)
    each_hour = crontab(minute="0", hour="0-22", app=app)
    assert rule_for(every_hour) is not rule_for(each_hour)
    starred, listed = crontab(minute="0", hour="*/8", app=app), crontab(minute="0", hour="0,8,16", app=app)
    assert (starred.hour, starred.minute) == (listed.hour, listed.minute)
    assert rule_for(starred) is not rule_for(listed)


def test_a_method_that_was_put_on_the_object_makes_it_opaque() -> None:
    entry_schedule = crontab()
    entry_schedule.is_due = lambda last_run_at: (True, 1)
    assert rule_for(entry_schedule) is None


def test_an_interval_that_is_no_timedelta_is_opaque() -> None:
    entry_schedule = schedule(5)
    entry_schedule.run_every = None
    assert rule_for(entry_schedule) is None


def test_an_opaque_schedule_is_asked(app: Celery) -> None:
    app.conf.timezone = "Europe/Paris"
    entry_schedule = Fifths(app=app)
    now_us = us(datetime.now(UTC))
    assert ask(entry_schedule, now_us - 6 * SECOND_US, now_us) == (True, 5)
    assert entry_schedule.seen is not None
    assert entry_schedule.seen.tzinfo == ZoneInfo("Europe/Paris")
    due, look_again_s = ask(entry_schedule, now_us - 2 * SECOND_US, now_us)
    assert not due
    assert 2.5 < look_again_s <= 3


def test_what_counts_for_an_opaque_schedule_is_the_time_that_passed(app: Celery) -> None:
    """Not by how far its own clock, or this host's, is off."""
    shifted = datetime(2030, 7, 1, 12, 0, 0)  # noqa: DTZ001
    entry_schedule = crontab(minute=0, nowfun=lambda: shifted, app=app)
    now_us = us("2026-01-01")
    assert ask(entry_schedule, now_us - 1 * SECOND_US, now_us).due
    assert not ask(entry_schedule, now_us, now_us).due


def test_the_time_that_passed_is_no_wall_time(app: Celery) -> None:
    """An hour and a half before 02:30 of the day that Paris goes back is 02:00 of the first pass."""
    now = datetime(2026, 10, 25, 1, 30, tzinfo=UTC).astimezone(ZoneInfo("Europe/Paris"))
    entry_schedule = Fifths(answer=[(False, 1)], nowfun=lambda: now, app=app)
    ask(entry_schedule, us("2026-01-01"), us("2026-01-01T01:30"))
    assert entry_schedule.seen is not None
    assert us(entry_schedule.seen) == us("2026-10-25T00:00")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (None, (False, 5)),
        (True, (True, 5)),
        (False, (False, 5)),
        ((True, None), (True, 5)),
        ((False, math.nan), (False, 5)),
        ((False, "soon"), (False, 5)),
        ((False, -3), (False, 0.05)),
        ((False, math.inf), (False, 300)),
        ((1, timedelta(seconds=7)), (True, 7)),
        ((False, 7, "more"), (False, 5)),
        ([True, 7], (True, 7)),
    ],
)
def test_an_odd_answer_is_no_error(app: Celery, answer: Any, expected: tuple[bool, float]) -> None:
    assert ask(Fifths(answer=[answer], app=app), 0, SECOND_US) == expected


def test_what_an_opaque_schedule_raises_is_passed_on(app: Celery) -> None:
    with pytest.raises(NotImplementedError):
        ask(BaseSchedule(app=app), 0, SECOND_US)
