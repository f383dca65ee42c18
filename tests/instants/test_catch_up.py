from __future__ import annotations

from collections.abc import Callable
from datetime import timezone
from typing import Any, Literal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_distsched.instants.catch_up import MOST_SKIPPED, CatchUp, Due, due, jitter
from celery_distsched.instants.interval import Interval, RelativeInterval
from celery_distsched.instants.rule import SECOND_US, Rule
from celery_distsched.instants.wall_clock import WallClock, WallTimes, bits

MINUTE_US, HOUR_US = 60 * SECOND_US, 3600 * SECOND_US
DAY_US = 24 * HOUR_US
HAND_OVER_S = 10.0
# 2026-10-25 01:00 UTC, when Paris goes back.
NIGHT = 1_792_890_000 * SECOND_US

Policy = Literal["latest", "all", "none"]
POLICIES: tuple[Policy, ...] = ("latest", "all", "none")


def wall(hours: Any = range(24), minutes: Any = range(60), seconds: Any = (0,), zone: str = "Europe/Paris") -> Rule:
    days = WallTimes.days_by(bits(range(1, 32)), bits(range(7)), either=False)
    times = WallTimes(days, bits(range(1, 13)), bits(hours), bits(minutes), bits(seconds))
    return WallClock(times, ZoneInfo(zone), wildcard=len(list(hours)) == 24)


RULES: dict[str, Rule] = {
    "every 30 s": Interval(30 * SECOND_US),
    "every 0.7 s": Interval(700_000),
    "every two hours, rounded": RelativeInterval(2 * HOUR_US, ZoneInfo("Europe/Paris")),
    "every minute, rounded": RelativeInterval(MINUTE_US, ZoneInfo("Europe/Paris")),
    "minutely": wall(),
    "every 10 minutes": wall(minutes=range(0, 60, 10)),
    "every 5 s from two to three": wall(hours=[2], minutes=range(60), seconds=range(0, 60, 5)),
    "half past two": wall(hours=[2], minutes=[30]),
}


def all_instants(rule: Rule, last_us: int, now_us: int) -> list[int]:
    found = []
    instant = rule.after(last_us)
    while instant is not None and instant <= now_us:
        found.append(instant)
        instant = rule.after(instant)
    return found


def minutes_ago(*minutes: float) -> tuple[int, ...]:
    return tuple(NIGHT - round(n * MINUTE_US) for n in minutes)


# Examples: every ten minutes, the last run at 01:00 minus 35 minutes, now two minutes past the last instant


TEN_MINUTES = wall(minutes=range(0, 60, 10))


@pytest.mark.parametrize(
    ("catch_up", "expected"),
    [
        (CatchUp(), Due(minutes_ago(0), NIGHT, 3)),
        (CatchUp("all"), Due(minutes_ago(30, 20, 10, 0), NIGHT, 0)),
        (CatchUp("all", limit=2), Due(minutes_ago(10, 0), NIGHT, 2)),
        (CatchUp("none"), Due((), NIGHT, 4)),
        (CatchUp("all", window_s=900), Due(minutes_ago(10, 0), NIGHT, 2)),
        (CatchUp("all", window_s=720), Due(minutes_ago(10, 0), NIGHT, 2)),
        (CatchUp("all", window_s=719), Due(minutes_ago(0), NIGHT, 3)),
        (CatchUp("latest", window_s=119), Due((), NIGHT, 4)),
        (CatchUp("latest", window_s=3600, deadline_s=60), Due((), NIGHT, 4)),
        (CatchUp("latest", window_s=60, deadline_s=3600), Due((), NIGHT, 4)),
    ],
)
def test_what_was_missed_is_sent_by_policy(catch_up: CatchUp, expected: Due) -> None:
    now = NIGHT + 2 * MINUTE_US
    assert due(TEN_MINUTES, NIGHT - 35 * MINUTE_US, now, catch_up, HAND_OVER_S) == expected


@pytest.mark.parametrize("policy", POLICIES)
def test_a_fresh_instant_is_sent_whatever_the_policy(policy: Policy) -> None:
    catch_up = CatchUp(policy, window_s=1, limit=0, deadline_s=1)
    now = NIGHT + 10 * SECOND_US
    assert due(TEN_MINUTES, NIGHT - MINUTE_US, now, catch_up, HAND_OVER_S) == Due((NIGHT,), NIGHT, 0)
    assert due(TEN_MINUTES, NIGHT - MINUTE_US, now + 1, catch_up, HAND_OVER_S) == Due((), NIGHT, 1)


def test_latest_sends_no_missed_one_beside_a_fresh_one() -> None:
    now = NIGHT + 5 * SECOND_US
    assert due(TEN_MINUTES, NIGHT - HOUR_US, now, CatchUp(), HAND_OVER_S) == Due((NIGHT,), NIGHT, 5)


def test_fresh_ones_are_all_sent_beyond_the_limit() -> None:
    found = due(Interval(SECOND_US), 0, 60 * SECOND_US, CatchUp("all", limit=3), HAND_OVER_S)
    assert found == Due(tuple(n * SECOND_US for n in range(50, 61)), 60 * SECOND_US, 49)


def test_nothing_due_leaves_all_as_it_is() -> None:
    assert due(TEN_MINUTES, NIGHT, NIGHT + MINUTE_US, CatchUp("all"), HAND_OVER_S) == Due((), NIGHT, 0)
    assert due(TEN_MINUTES, NIGHT, NIGHT - HOUR_US, CatchUp("all"), HAND_OVER_S) == Due((), NIGHT, 0)


def test_the_instant_itself_is_due_now() -> None:
    assert due(TEN_MINUTES, NIGHT - 1, NIGHT, CatchUp("none"), HAND_OVER_S) == Due((NIGHT,), NIGHT, 0)
    assert due(TEN_MINUTES, NIGHT - 1, NIGHT - 1, CatchUp("none"), HAND_OVER_S).send == ()


# Jitter


def test_a_delayed_instant_is_due_when_its_delay_is_over() -> None:
    def delay(_instant: int) -> int:
        return 5 * MINUTE_US

    early = due(TEN_MINUTES, NIGHT - MINUTE_US, NIGHT + 5 * MINUTE_US - 1, CatchUp("none"), HAND_OVER_S, delay)
    assert early == Due((), NIGHT - MINUTE_US, 0)
    # It is as fresh as its delay, not as its instant.
    on_time = due(TEN_MINUTES, NIGHT - MINUTE_US, NIGHT + 5 * MINUTE_US, CatchUp("none"), HAND_OVER_S, delay)
    assert on_time == Due((NIGHT,), NIGHT, 0)


def test_a_delayed_newest_instant_does_not_hide_the_one_before() -> None:
    def delay(_instant: int) -> int:
        return 5 * MINUTE_US

    found = due(TEN_MINUTES, NIGHT - 15 * MINUTE_US, NIGHT + MINUTE_US, CatchUp(), HAND_OVER_S, delay)
    assert found == Due(minutes_ago(10), NIGHT - 10 * MINUTE_US, 0)


@settings(max_examples=50, deadline=None)
@given(key=st.text(), instant=st.integers(0, 2**55), spread_s=st.floats(0, 1e5), distance=st.integers(1, 2**40))
def test_jitter_stays_within_its_spread_and_before_the_next_instant(
    key: str, instant: int, spread_s: float, distance: int
) -> None:
    found = jitter(key, instant, spread_s, instant + distance)
    assert 0 <= found < max(1, min(round(spread_s * SECOND_US), distance))
    assert found == jitter(key, instant, spread_s, instant + distance)
    assert 0 <= jitter(key, instant, spread_s, None) < max(1, round(spread_s * SECOND_US))


def test_jitter_is_the_same_in_every_release() -> None:
    """Beats of two releases run together: another number for the same occurrence would be seen."""
    assert jitter("cleanup", NIGHT, 60, None) == 49_452_183
    assert jitter("cleanup", NIGHT, 0, None) == 0
    assert jitter("überprüfen", NIGHT, 60, NIGHT + MINUTE_US) == 39_345_920


def test_jitter_spreads_over_names_and_instants() -> None:
    by_name = [jitter(f"entry-{n}", NIGHT, 100, None) // (10 * SECOND_US) for n in range(1000)]
    by_instant = [jitter("entry", NIGHT + n, 100, None) // (10 * SECOND_US) for n in range(1000)]
    for buckets in (by_name, by_instant):
        assert all(60 < buckets.count(bucket) < 150 for bucket in range(10))


# Properties


def _delay_of(rule: Rule, spread_s: float) -> Callable[[int], int] | None:
    return (lambda instant: jitter("entry", instant, spread_s, rule.after(instant))) if spread_s else None


_CATCH_UPS = st.builds(
    CatchUp,
    policy=st.sampled_from(POLICIES),
    window_s=st.none() | st.floats(0, 10_000),
    limit=st.integers(0, 50) | st.just(1000),
    deadline_s=st.none() | st.floats(0, 10_000),
)
_GAPS = st.integers(0, 30 * SECOND_US) | st.integers(0, 3 * HOUR_US) | st.integers(0, 30 * HOUR_US)


@settings(max_examples=400, deadline=None)
@given(
    name=st.sampled_from(sorted(RULES)),
    ago=_GAPS,
    around=st.integers(-4 * HOUR_US, 4 * HOUR_US),
    catch_up=_CATCH_UPS,
    hand_over_s=st.sampled_from([0.0, 10.0, 60.0]),
    spread_s=st.sampled_from([0, 0, 5, 3600]),
)
def test_what_is_due_is_sent_once_or_counted(
    name: str, ago: int, around: int, catch_up: CatchUp, hand_over_s: float, spread_s: float
) -> None:
    rule = RULES[name]
    now = NIGHT + around
    last = now - ago
    delay = _delay_of(rule, spread_s)
    found = due(rule, last, now, catch_up, hand_over_s, delay)

    ages = {instant: now - instant - (delay(instant) if delay else 0) for instant in all_instants(rule, last, now)}
    ages = {instant: age for instant, age in ages.items() if age >= 0}
    fresh = {instant for instant, age in ages.items() if age <= hand_over_s * SECOND_US}
    reach = min(bound * SECOND_US for bound in (catch_up.window_s, catch_up.deadline_s, 1e9) if bound is not None)
    old = {instant for instant, age in ages.items() if age > max(reach, hand_over_s * SECOND_US)}
    missed = sorted(set(ages) - fresh - old, reverse=True)
    wanted = {"none": 0, "latest": 1, "all": catch_up.limit}[catch_up.policy]

    assert list(found.send) == sorted(set(found.send))
    assert set(found.send) == fresh | set(missed[: max(0, wanted - len(fresh))])
    assert found.upto == max(ages, default=last)
    assert found.skipped == min(len(ages) - len(found.send), MOST_SKIPPED)
    assert due(rule, found.upto, now, catch_up, hand_over_s, delay) == Due((), found.upto, 0)


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(sorted(RULES)),
    steps=st.lists(st.integers(1, 20 * MINUTE_US), min_size=1, max_size=12),
    spread_s=st.sampled_from([0, 60]),
)
def test_looking_often_sends_all_that_looking_once_does(name: str, steps: list[int], spread_s: float) -> None:
    rule = RULES[name]
    delay = _delay_of(rule, spread_s)
    catch_up = CatchUp("all", limit=100_000)
    start = last = now = NIGHT - HOUR_US
    sent: list[int] = []
    for step in steps:
        now += step
        found = due(rule, last, now, catch_up, HAND_OVER_S, delay)
        sent += found.send
        last = found.upto
    assert tuple(sent) == due(rule, start, now, catch_up, HAND_OVER_S, delay).send


# Speed


@pytest.mark.parametrize("catch_up", [CatchUp(), CatchUp("all"), CatchUp("none")], ids=lambda it: it.policy)
def test_a_year_of_seconds_costs_no_more_than_what_is_sent(catch_up: CatchUp) -> None:
    asked = 0

    class Counting(WallClock):
        def after(self, last_us: int) -> int | None:
            nonlocal asked
            asked += 1
            return super().after(last_us)

    days = WallTimes.days_by(bits(range(1, 32)), bits(range(7)), either=False)
    every_second = WallTimes(days, bits(range(1, 13)), bits(range(24)), bits(range(60)), bits(range(60)))
    rule = Counting(every_second, timezone.utc, wildcard=True)
    found = due(rule, NIGHT - 365 * DAY_US, NIGHT + 1, catch_up, hand_over_s=0.5)
    assert len(found.send) == {"latest": 1, "all": 1000, "none": 1}[catch_up.policy]
    assert found.upto == NIGHT
    assert found.skipped == MOST_SKIPPED
    assert asked < 5_000
