from __future__ import annotations

import pickle
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery import Celery
from celery.beat import ScheduleEntry, Scheduler
from croniter import CroniterError, croniter
from dateutil import tz as dateutil_tz  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_distsched.instants.cron import _special_days, cron
from celery_distsched.instants.rule import SECOND_US

UTC = timezone.utc


@pytest.fixture
def app() -> Iterator[Celery]:
    with Celery("cron", broker="memory://", set_as_current=False) as app:
        yield app


def times(schedule: cron, start: datetime, count: int = 5) -> list[datetime]:
    rule = schedule.rule()
    instant = round(start.timestamp()) * SECOND_US
    found = []
    for _ in range(count):
        following = rule.after(instant)
        assert following is not None
        instant = following
        found.append(datetime.fromtimestamp(instant // SECOND_US, UTC))
    return found


def day(year: int, month: int, of_month: int, hour: int = 0, minute: int = 0, second: int = 0) -> datetime:
    return datetime(year, month, of_month, hour, minute, second, tzinfo=UTC)


# What an expression means


def test_six_fields_have_the_seconds_first() -> None:
    assert times(cron("*/20 59 23 * * *", "UTC"), day(2026, 1, 1), 4) == [
        day(2026, 1, 1, 23, 59, 0),
        day(2026, 1, 1, 23, 59, 20),
        day(2026, 1, 1, 23, 59, 40),
        day(2026, 1, 2, 23, 59, 0),
    ]


def test_five_fields_run_at_the_full_minute() -> None:
    assert times(cron("*/30 * * * *", "UTC"), day(2026, 1, 1, 0, 0, 1), 2) == [
        day(2026, 1, 1, 0, 30),
        day(2026, 1, 1, 1, 0),
    ]


def test_one_of_day_of_month_and_day_of_week_is_enough() -> None:
    assert times(cron("0 0 13 * fri", "UTC"), day(2026, 2, 6), 3) == [
        day(2026, 2, 13),
        day(2026, 2, 20),
        day(2026, 2, 27),
    ]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0 0 L * *", [(1, 31), (2, 28), (3, 31)]),
        ("0 0 * * mon#2", [(1, 12), (2, 9), (3, 9)]),
        ("0 0 * * L5", [(1, 30), (2, 27), (3, 27)]),
        ("0 0 L 2 *", [(2, 28)]),
        ("@monthly", [(2, 1), (3, 1)]),
        ("0 0 14 * 1#2", [(1, 12), (2, 9), (3, 9)]),
    ],
)
def test_special_days_and_aliases(expression: str, expected: list[tuple[int, int]]) -> None:
    assert times(cron(expression, "UTC"), day(2026, 1, 1), len(expected)) == [day(2026, *date) for date in expected]


def test_the_timezone_is_the_rules_own_or_the_apps(app: Celery) -> None:
    app.conf.timezone = "America/New_York"
    assert times(cron("0 12 * * *", app=app), day(2026, 1, 1), 1) == [day(2026, 1, 1, 17)]
    assert times(cron("0 12 * * *", "Asia/Tokyo", app=app), day(2026, 1, 1), 1) == [day(2026, 1, 1, 3)]
    assert times(cron("0 12 * * *", timezone(timedelta(hours=2)), app=app), day(2026, 1, 1), 1) == [day(2026, 1, 1, 10)]


@pytest.mark.parametrize(
    ("expression", "wildcard"),
    [
        ("0 * * * *", True),
        ("*/10 * * * *", True),
        ("30 0-23 * * *", True),
        ("30 */2 * * *", True),
        ("0 30 0-23 * * *", True),
        ("*/5 30 2 * * *", True),
        ("0 30 2 * * *", False),
        ("30 2 * * *", False),
        ("30 1,2,3 * * *", False),
        ("@daily", False),
        ("@hourly", True),
    ],
)
def test_wildcard_rules_run_twice_in_a_repeated_hour_and_fixed_ones_once(expression: str, wildcard: bool) -> None:
    # From 2026-10-24 22:00 UTC this day of Paris lasts 25 hours.
    rule = cron(expression, "Europe/Paris").rule()
    start = round(day(2026, 10, 24, 22).timestamp()) * SECOND_US
    long_day = rule.count(start - 1, start + 25 * 3600 * SECOND_US - 1)
    short_hour = {"*/10 * * * *": 6, "*/5 30 2 * * *": 12, "30 */2 * * *": 1}.get(expression, 1)
    usual = rule.count(start + 25 * 3600 * SECOND_US - 1, start + 49 * 3600 * SECOND_US - 1)
    assert long_day == usual + (short_hour if wildcard else 0)


# Against croniter


def _field(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    spans = st.tuples(number, number).filter(lambda pair: pair[0] < pair[1])
    part = st.one_of(
        number.map(str),
        spans.map(lambda pair: f"{pair[0]}-{pair[1]}"),
        st.tuples(spans, st.integers(2, 9)).map(lambda pair: f"{pair[0][0]}-{pair[0][1]}/{pair[1]}"),
        st.integers(2, 9).map(lambda step: f"*/{step}"),
    )
    return st.one_of(st.just("*"), st.lists(part, min_size=1, max_size=3).map(",".join))


_DAYS = _field(1, 28) | st.sampled_from(["L", "1,L", "31", "1-31", "*/1", "?", "15W"])
_WEEKDAYS = _field(0, 6) | st.sampled_from(["mon-fri", "7", "mon#1", "5#3,1#1", "L4", "sat-mon", "0-6", "?"])
_EXPRESSIONS = st.tuples(st.none() | _field(0, 59), _field(0, 59), _field(0, 23), _DAYS, _field(1, 12), _WEEKDAYS).map(
    lambda fields: " ".join(field for field in fields if field is not None)
)


@settings(max_examples=250, deadline=None)
@given(
    expression=_EXPRESSIONS,
    start=st.datetimes(datetime(1999, 12, 1), datetime(2060, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
)
def test_agrees_with_croniter_where_the_clocks_never_change(expression: str, start: datetime) -> None:
    start = start.replace(microsecond=0)
    try:
        theirs = croniter(expression, start, ret_type=datetime, second_at_beginning=True)
        expected = [theirs.get_next() for _ in range(4)]
    except CroniterError:
        # Releases of croniter differ in what they take: what this one refuses, so do we.
        with pytest.raises(ValueError, match=r"matches no date|not a cron expression"):
            cron(expression, "UTC")
        return
    assert times(cron(expression, "UTC"), start, 4) == expected


# What is refused


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("31 2 * *", "4 fields"),
        ("* * * * * * 2026", "years"),
        ("", "0 fields"),
        (5, "a text"),
        ("R * * * *", "write the number"),
        ("0 H(0-3) * * *", "write the number"),
        ("0 0 1,h * *", "write the number"),
        ("@reboot", "@hourly"),
        ("@never", "@hourly"),
        ("61 * * * *", "out of range"),
        ("a b c d e", "seconds first"),
        ("*/0 * * * *", "not a cron expression"),
        ("0 0 31 2 *", "matches no date"),
        ("0 0 0 31 4,6 *", "matches no date"),
        ("0 0 1 * 1#5", "matches no date"),
    ],
)
def test_what_cannot_work_is_refused_with_its_mend(expression: Any, words: str) -> None:
    with pytest.raises(ValueError, match=r"^cron\(") as caught:
        cron(expression)
    assert words in str(caught.value)
    assert repr(expression) in str(caught.value)


def test_a_day_that_never_comes_is_not_searched_month_by_month() -> None:
    before = _special_days.cache_info().misses
    with pytest.raises(ValueError, match="matches no date"):
        cron("0 0 2 * 2#5")
    assert _special_days.cache_info().misses == before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Europe/Pariss", "did you mean 'Europe/Paris'"),
        ("europe/paris", "did you mean 'Europe/Paris'"),
        ("../../etc/passwd", "there is no timezone"),
        ("", "an IANA name"),
    ],
)
def test_an_unknown_timezone_names_the_nearest(name: str, words: str) -> None:
    with pytest.raises(ValueError, match="there is no timezone") as caught:
        cron("* * * * *", name)
    assert words in str(caught.value)


def test_march_is_no_random_field() -> None:
    assert times(cron("0 0 1 MAR thu", "UTC"), day(2026, 1, 1), 1) == [day(2026, 3, 1)]


# As one of Celery's schedules


def test_equal_schedules_are_equal_and_hash_alike() -> None:
    assert cron("0  0 * * *", "UTC") == cron("0 0 * * *", ZoneInfo("UTC"))
    assert hash(cron("0  0 * * *", "UTC")) == hash(cron("0 0 * * *", ZoneInfo("UTC")))
    assert cron("0 0 * * *") != cron("0 1 * * *")
    assert cron("0 0 * * *") != cron("0 0 * * *", "UTC")
    assert cron("0 0 * * *") != "0 0 * * *"
    assert hash(cron("0 0 * * *", dateutil_tz.gettz("Europe/Paris")))


@pytest.mark.parametrize("schedule", [cron("*/5 * * * * *"), cron("@daily", "Europe/Paris"), cron("0 0 * * 1#2", UTC)])
def test_a_pickled_schedule_is_the_same(schedule: cron) -> None:
    again = pickle.loads(pickle.dumps(schedule))
    assert again == schedule
    assert times(again, day(2026, 1, 1)) == times(schedule, day(2026, 1, 1))


def test_a_schedule_shows_its_expression() -> None:
    assert repr(cron("*/5 * * * * *")) == "<cron: */5 * * * * *>"
    assert repr(cron("@daily", "Europe/Paris")) == "<cron: @daily (Europe/Paris)>"


def test_is_due_says_when_to_look_again(app: Celery) -> None:
    now = day(2026, 1, 1, 12, 0, 30)
    schedule = cron("*/10 * * * *", nowfun=lambda: now, app=app)
    assert schedule.is_due(day(2026, 1, 1, 11, 59)) == (True, 570)
    assert schedule.is_due(day(2026, 1, 1, 12, 0)) == (False, 570)
    assert schedule.is_due(day(2026, 1, 1, 12, 0).replace(tzinfo=None)) == (False, 570)
    assert schedule.remaining_estimate(day(2026, 1, 1, 11, 59)) == timedelta(seconds=-30)


def test_is_due_honours_the_starting_deadline(app: Celery) -> None:
    app.conf.beat_cron_starting_deadline = 60
    schedule = cron("0 * * * *", nowfun=lambda: day(2026, 1, 1, 12, 1), app=app)
    assert schedule.is_due(day(2026, 1, 1, 7)).is_due
    app.conf.beat_cron_starting_deadline = 59
    assert not schedule.is_due(day(2026, 1, 1, 7)).is_due


def test_a_rule_that_is_always_skipped_is_never_due(app: Celery) -> None:
    # From two to three on the second Sunday of March, which is just what New York skips.
    now = day(2026, 1, 1)
    schedule = cron("* 2 * 3 sun#2", "America/New_York", nowfun=lambda: now, app=app)
    assert not schedule.is_due(day(2025, 1, 1)).is_due
    assert schedule.remaining_estimate(now) > timedelta(days=1)


def test_stock_beat_sends_it(app: Celery) -> None:
    scheduler = Scheduler(app=app)
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    scheduler.schedule["tick"] = ScheduleEntry(
        "tick", "tasks.tick", an_hour_ago, schedule=cron("*/5 * * * *", "Europe/Paris"), app=app
    )
    pause = scheduler.tick()
    assert pause <= 300
    with app.connection_for_read() as connection:
        message = connection.default_channel.basic_get("celery", no_ack=True)
        assert message is not None
        assert message.headers["task"] == "tasks.tick"
        scheduler.tick()
        assert connection.default_channel.basic_get("celery", no_ack=True) is None
