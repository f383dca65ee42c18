from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_distsched.clock import Clock, microseconds
from celery_distsched.deaths import Deaths
from celery_distsched.drivers import Member
from celery_distsched.info import Info
from celery_distsched.node_pool import NodePool, View, free_ordinal, ring_places

TTL_S = 5.0
#: Trust ends so many seconds before the store could call the node dead.
MARGIN_S = 0.5
DAY_S = 86_400.0
HOUR_S = 3600.0
EPOCH_S = 1_800_000_000.0


class VirtualClock(Clock):
    """Moves by hand; its wall clock is wrong by `skew_s`."""

    def __init__(self) -> None:
        self.now, self.skew_s = 1000.0, 0.0

    def elapsed(self) -> float:
        return self.now

    def wall(self) -> float:
        return EPOCH_S + self.now + self.skew_s


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def pool(clock: VirtualClock) -> NodePool:
    return NodePool("me", TTL_S, clock)


def info(host: str = "there", ordinal: int = 0, *, digest: str = "same", active: bool = True, wall_us: int = 0) -> Info:
    return Info(host, ordinal, digest, "cluster", active, wall_us)


def member(pulse: object, said: Info | None = None) -> Member:
    return Member(str(pulse), (said or info()).text())


def watch(pool: NodePool, clock: VirtualClock, seconds: float, members: Callable[[], dict[str, Member]]) -> View:
    """Poll for so long, at the pace of a heartbeat."""
    until = clock.now + seconds
    while clock.now < until:
        pool.observe(members(), "same")
        clock.now = min(clock.now + 0.25, until)
    return pool.observe(members(), "same")


# Who is dead


def test_a_member_is_dead_when_its_pulse_has_not_changed_for_a_ttl(pool: NodePool, clock: VirtualClock) -> None:
    silent = {"other#1": member(1)}
    assert watch(pool, clock, TTL_S - 0.01, lambda: silent).dead == set()
    assert set(pool.view.alive) == {"other#1"}
    assert watch(pool, clock, 0.01, lambda: silent).dead == {"other#1"}
    assert set(pool.view.alive) == set()
    # Any change is a sign of life: what a pulse is, is the store's affair.
    assert pool.observe({"other#1": member(0)}, "same").dead == set()
    assert set(pool.view.alive) == {"other#1"}


def test_a_member_whose_ttl_is_longer_is_not_dead_before_that(pool: NodePool, clock: VirtualClock) -> None:
    """A deploy changes the TTL: by the shorter one it would be called dead between two renewals, again and again."""
    said = replace(info(), ttl_us=microseconds(6 * TTL_S))
    view = watch(pool, clock, 5.9 * TTL_S, lambda: {"slow#1": member(1, said)})
    assert (set(view.alive), view.longest_ttl_s) == ({"slow#1"}, 6 * TTL_S)
    assert pool.next_death() == pytest.approx(clock.now + 0.1 * TTL_S)
    view = watch(pool, clock, 0.2 * TTL_S, lambda: {"slow#1": member(1, said)})
    assert view.dead == {"slow#1"}


def test_nobody_is_alive_for_ever_by_what_it_says_its_ttl_is() -> None:
    assert Info.parse(replace(info(), ttl_us=10**15).text()) is None
    assert Info.parse(replace(info(), ttl_us=-1).text()) is None


def test_a_heartbeat_is_next_to_die_one_ttl_after_its_last_change(pool: NodePool, clock: VirtualClock) -> None:
    assert pool.next_death() == float("inf")
    pool.renewed("me#1", clock.now, None)
    pool.observe({"me#1": member(1), "other#1": member(1)}, "same")
    clock.now += 1
    pool.observe({"me#1": member(1), "other#1": member(1), "third#1": member(1)}, "same")
    assert pool.next_death() == clock.now - 1 + TTL_S
    clock.now += 1
    pool.observe({"me#1": member(1), "other#1": member(2), "third#1": member(1)}, "same")
    assert pool.next_death() == clock.now - 1 + TTL_S


@given(
    lives=st.dictionaries(st.sampled_from("abc"), st.lists(st.integers(1, 80), max_size=8), min_size=1),
    walls=st.lists(st.integers(-(10**16), 10**16), min_size=4, max_size=4),
    steps=st.lists(st.tuples(st.integers(0, 80), st.floats(-DAY_S, DAY_S)), max_size=4),
)
def test_no_wall_clock_has_a_say_in_who_is_alive(
    lives: dict[str, list[int]], walls: list[int], steps: list[tuple[int, float]]
) -> None:
    """Members that change their pulse at these polls, their clocks and mine and the store's wrong or stepping."""
    clock = VirtualClock()
    pool = NodePool("me", TTL_S, clock)
    changed = dict.fromkeys(lives, clock.now)
    for poll in range(80):
        clock.now += 0.25
        clock.skew_s += sum(by_s for at, by_s in steps if at == poll)
        pool.renewed("me#1", clock.now, None if poll % 2 else walls[poll % 4])
        members = {}
        for name, beats in lives.items():
            pulse = sum(at <= poll for at in beats)
            if poll in beats or not poll:
                changed[name] = clock.now
            members[name] = member(pulse, info(wall_us=walls[pulse % 4] * pulse))
        view = pool.observe(members, "same")
        assert view.dead == {name for name in lives if clock.now - changed[name] >= TTL_S}
        assert set(view.alive) == lives.keys() - view.dead
        assert view.trusted_until > clock.now


def test_i_am_never_dead_to_myself(pool: NodePool, clock: VirtualClock) -> None:
    pool.renewed("me#1", clock.now, None)
    view = watch(pool, clock, 3 * TTL_S, lambda: {"me#1": member(1)})
    assert view.dead == set()
    assert not pool.trusted()


def test_who_has_just_come_calls_nobody_dead_for_a_ttl(pool: NodePool, clock: VirtualClock) -> None:
    view = pool.observe({"other#1": member(700)}, "same")
    assert not view.dead
    assert view.watching_since == clock.now


@pytest.mark.parametrize("gap_s", [0.6 * TTL_S, TTL_S, 10 * TTL_S])
def test_after_a_gap_everybody_gets_a_ttl_to_be_seen_again(pool: NodePool, clock: VirtualClock, gap_s: float) -> None:
    """It may have been me who was without the store; and a store may have let all memberships go meanwhile."""
    both = {"stayed#1": member(1), "expired#1": member(1)}
    watch(pool, clock, TTL_S - 1, lambda: both)
    clock.now += gap_s
    left = {"stayed#1": member(1)}
    assert pool.observe(left, "same").watching_since == clock.now
    assert watch(pool, clock, TTL_S - 0.01, lambda: left).dead == set()
    assert watch(pool, clock, 0.01, lambda: left).dead == {"stayed#1", "expired#1"}


def test_a_member_that_has_gone_is_dead_after_a_ttl_and_forgotten_in_the_end(
    pool: NodePool, clock: VirtualClock
) -> None:
    pool.observe({"other#1": member(1)}, "same")
    assert watch(pool, clock, 0.25, dict).alive == {}
    assert watch(pool, clock, TTL_S - 0.5, dict).dead == set()
    assert watch(pool, clock, 0.25, dict).dead == {"other#1"}
    assert watch(pool, clock, 590, dict).dead == {"other#1"}
    assert watch(pool, clock, 20, dict).dead == set()


def test_a_member_that_has_gone_is_forgotten_though_the_store_is_away_every_few_minutes(
    pool: NodePool, clock: VirtualClock
) -> None:
    pool.observe({"other#1": member(1), "third#1": member(1)}, "same")
    for _ in range(5):
        watch(pool, clock, TTL_S * 1.5, lambda: {"third#1": member(clock.now)})
        clock.now += 4 * 60
    assert set(pool._pulses) == {"third#1"}


def test_who_is_evicted_is_dead_a_ttl_after_it_was_found_gone(pool: NodePool, clock: VirtualClock) -> None:
    """It may have renewed after it was last seen, and trusts in that."""
    watch(pool, clock, 1.0, lambda: {"other#1": member(1)})
    clock.now += 0.25
    assert pool.observe({}, "same").absent == {"other#1"}
    assert watch(pool, clock, TTL_S - 0.01, dict).dead == set()
    assert watch(pool, clock, 0.01, dict).dead == {"other#1"}


def test_who_was_buried_by_another_is_dead_when_its_ttl_is_over(pool: NodePool, clock: VirtualClock) -> None:
    watch(pool, clock, TTL_S - 0.25, lambda: {"other#1": member(1)})
    assert watch(pool, clock, 0.25, dict).dead == {"other#1"}


def test_a_mark_that_was_asked_for_before_its_holder_was_seen_is_not_free_when_that_is_evicted(
    pool: NodePool, clock: VirtualClock
) -> None:
    deaths = Deaths(pool)
    watch(pool, clock, 0.25, dict)
    assert not deaths.gone("other#1", "me#1")
    watch(pool, clock, TTL_S, lambda: {"other#1": member(clock.now)})
    watch(pool, clock, TTL_S - 0.25, dict)
    assert not deaths.gone("other#1", "me#1")
    watch(pool, clock, 0.5, dict)
    assert deaths.gone("other#1", "me#1")


def test_an_outage_alone_makes_nobody_forgotten(pool: NodePool, clock: VirtualClock) -> None:
    pool.observe({"other#1": member(1)}, "same")
    clock.now += 0.25
    pool.observe({}, "same")
    clock.now += HOUR_S
    # It may have been there all the time, and be so now: its marks are its own for another TTL.
    assert pool.observe({}, "same").missing == {"other"}
    assert watch(pool, clock, TTL_S - 0.01, dict).missing == {"other"}


def test_what_is_no_heartbeat_of_ours_is_neither_alive_nor_in_the_way(pool: NodePool) -> None:
    strange = {name: Member("1", text) for name, text in (("a", ""), ("b", "[]"), ("c", "{}"), ("d", "null"))}
    view = pool.observe({**strange, "other#1": member(1)}, "same")
    assert set(view.alive) == {"other#1"}
    assert view.ring.nodes == {"there/0"}


def test_a_heartbeat_of_another_release_is_understood() -> None:
    """Otherwise a rolling upgrade would split the ring, and find nodes dead that are alive."""
    said = info()
    assert Info.parse(said.text()) == said
    assert Info.parse(said.text()[:-1] + ',"more":1}') == said
    earlier = {name: value for name, value in json.loads(said.text()).items() if name not in ("ttl_us", "generation")}
    assert Info.parse(json.dumps(earlier)) == replace(said, ttl_us=0, generation="")
    del earlier["digest"]
    assert Info.parse(json.dumps(earlier)) is None


# Trust


def test_trust_lasts_from_before_the_renewal_was_sent(pool: NodePool, clock: VirtualClock) -> None:
    assert not pool.trusted()
    asked_at = clock.now
    clock.now += 3
    pool.renewed("me#1", asked_at, None)
    pool.observe({"me#1": member(1)}, "same")
    clock.now = asked_at + TTL_S - MARGIN_S - 0.001
    assert pool.trusted()
    clock.now = asked_at + TTL_S - MARGIN_S
    assert not pool.trusted()


def test_a_node_that_has_lost_its_membership_trusts_nothing(pool: NodePool, clock: VirtualClock) -> None:
    pool.renewed("me#1", clock.now, None)
    pool.observe({"me#1": member(1)}, "same")
    assert pool.trusted()
    pool.lost()
    assert not pool.trusted()
    assert (pool.view.me, pool.view.place) == (None, None)


# Whose turn


def test_a_ring_is_shared_by_live_active_nodes_with_the_same_entries(pool: NodePool, clock: VirtualClock) -> None:
    pool.renewed("me#1", clock.now, None)
    members = {
        "me#1": member(1, info("here", active=False)),
        "other#1": member(1, info("there")),
        "joining#1": member(1, info("loading", active=False)),
        "newer#1": member(1, info("newer", digest="another")),
    }
    view = pool.observe(members, "same")
    assert view.ring.nodes == {"here/0", "there/0"}
    assert view.place == "here/0"
    assert set(view.alive) == set(members)
    # As long as the nodes stay the same, so does the ring, and nobody looks at all entries again.
    clock.now += 0.25
    assert pool.observe({**members, "me#1": member(2, info("here"))}, "same").ring is view.ring
    assert pool.observe(members, "another").ring.nodes == {"newer/0"}


def test_a_dead_node_leaves_the_ring(pool: NodePool, clock: VirtualClock) -> None:
    pool.renewed("me#1", clock.now, None)
    members = {"me#1": member(1, info("here")), "other#1": member(1)}
    assert watch(pool, clock, TTL_S - 0.01, lambda: members).ring.nodes == {"here/0", "there/0"}
    assert watch(pool, clock, 0.01, lambda: members).ring.nodes == {"here/0"}


def test_places_come_from_host_and_number_and_are_told_apart_alike_everywhere() -> None:
    peers = {"b#1": ("one", 0), "a#1": ("one", 0), "c#4": ("one", 1), "d#1": ("two", 0)}
    places = {"a#1": "one/0", "b#1": "one/1", "c#4": "one/2", "d#1": "two/0"}
    assert ring_places(peers) == ring_places(dict(reversed(peers.items()))) == places


def test_a_node_takes_the_smallest_number_that_is_free_on_its_host() -> None:
    alive = {"a#1": info("one", 0), "b#1": info("one", 2), "c#1": info("two", 1)}
    assert free_ordinal({}, "one", "me") == 0
    assert free_ordinal(alive, "one", "me") == 1
    assert free_ordinal({**alive, "d#1": info("one", 1)}, "one", "me") == 3
    # An older membership of its own is no other node.
    assert free_ordinal(alive, "one", "a") == 0


# What time it is


def seen_clocks(pool: NodePool, clock: VirtualClock, *skews_s: float) -> float:
    """Let a node join beside others with such clocks; returns by how much cluster time is off."""
    pool.renewed("me#1", clock.now, None)
    for pulse in (0, 1, 2):
        members = {"me#1": member(1, info("here", wall_us=0))}
        for number, skew_s in enumerate(skews_s):
            wall_us = microseconds(EPOCH_S + clock.now + skew_s)
            members[f"other{number}#1"] = member(pulse, info(f"there{number}", wall_us=wall_us))
        pool.observe(members, "same")
    return off(pool, clock)


def off(pool: NodePool, clock: VirtualClock) -> float:
    now = pool.now_us()
    assert now is not None
    return round((now - microseconds(EPOCH_S + clock.now)) / 1e6, 3)


def test_before_joining_there_is_no_cluster_time(pool: NodePool) -> None:
    assert pool.now_us() is None
    pool.observe({"other#1": member(1, info(wall_us=7))}, "same")
    assert pool.now_us() is None


@pytest.mark.parametrize(
    ("mine_s", "others_s", "off_s"),
    [
        (30.0, (), 30.0),
        (0.0, (60.0,), 0.0),
        (60.0, (0.0,), 0.0),
        (60.0, (0.0, 30.0), 30.0),
        (0.0, (DAY_S, 3.0), 3.0),
        (0.0, (-DAY_S, 3.0), 0.0),
        (5.0, (1.0, 2.0, DAY_S), 2.0),
    ],
)
def test_without_a_store_to_ask_the_lower_median_of_all_clocks_is_the_time(
    pool: NodePool, clock: VirtualClock, mine_s: float, others_s: tuple[float, ...], off_s: float
) -> None:
    clock.skew_s = mine_s
    assert seen_clocks(pool, clock, *others_s) == off_s


def test_a_heartbeat_that_is_read_late_makes_no_clock_slow(pool: NodePool, clock: VirtualClock) -> None:
    clock.skew_s = 60.0
    assert seen_clocks(pool, clock, 0.0) == 0.0
    members = {"me#1": member(1, info("here")), "other0#1": member(2, info(wall_us=microseconds(EPOCH_S + clock.now)))}
    clock.now += 2.4
    pool.observe(members, "same")
    assert off(pool, clock) == 0.0


def test_a_heartbeat_of_a_node_that_died_hours_ago_does_not_say_what_time_it_is(
    pool: NodePool, clock: VirtualClock
) -> None:
    """Every beat was killed, and their last heartbeats are still in the store when the next one joins."""
    hours_ago_us = microseconds(EPOCH_S + clock.now - 4 * HOUR_S)
    last_words = Info("there", 0, "same", "cluster", True, hours_ago_us, cluster_us=hours_ago_us)
    members = {"me#1": member(1, info("here")), "dead#1": member(1, last_words)}
    pool.renewed("me#1", clock.now, microseconds(EPOCH_S + clock.now))
    watch(pool, clock, TTL_S - 1, lambda: members)
    # It may be alive, and go by a time of its own: nothing is due before that is known.
    assert pool.now_us() is None
    pool.renewed("me#1", clock.now, microseconds(EPOCH_S + clock.now))
    assert not pool.trusted()
    watch(pool, clock, 1, lambda: members)
    assert off(pool, clock) == 0.0
    assert pool.trusted()


def test_the_time_of_a_live_node_is_taken_over_once_its_heartbeat_is_seen_to_change(
    pool: NodePool, clock: VirtualClock
) -> None:
    def heartbeat(pulse: int) -> Member:
        now_us = microseconds(EPOCH_S + clock.now)
        return member(pulse, Info("there", 0, "same", "cluster", True, now_us, cluster_us=now_us))

    pool.renewed("me#1", clock.now, microseconds(EPOCH_S + clock.now + HOUR_S))
    pool.observe({"me#1": member(1, info("here")), "other#1": heartbeat(1)}, "same")
    for pulse in (2, 3):
        assert pool.now_us() is None
        clock.now += 1
        pool.observe({"me#1": member(1, info("here")), "other#1": heartbeat(pulse)}, "same")
    assert off(pool, clock) == 0.0


def test_a_heartbeat_that_the_store_has_gone_back_to_does_not_say_what_time_it_is(
    pool: NodePool, clock: VirtualClock
) -> None:
    """A snapshot of an hour ago is restored while a node joins: what changes in it changes once."""

    def heartbeat(pulse: int, ago_s: float) -> Member:
        at_us = microseconds(EPOCH_S + clock.now - ago_s)
        return member(pulse, Info("there", 0, "same", "cluster", True, at_us, cluster_us=at_us))

    pool.renewed("me#1", clock.now, microseconds(EPOCH_S + clock.now))
    pool.observe({"other#1": heartbeat(7, 2.0)}, "same")
    clock.now += 0.25
    gone_back = {"other#1": heartbeat(1, HOUR_S)}
    assert watch(pool, clock, TTL_S - 0.25, lambda: gone_back).offset_us is None
    watch(pool, clock, 1.0, lambda: gone_back)
    assert off(pool, clock) == 0.0


@pytest.mark.parametrize("store", [True, False])
def test_a_heartbeat_that_was_written_while_nothing_could_be_read_does_not_say_what_time_it_is(
    pool: NodePool, clock: VirtualClock, store: bool
) -> None:
    """The store is down soon after a node has joined: what it shows then may be as old as the outage is long."""

    def heartbeat(pulse: int, at: float) -> Member:
        at_us = microseconds(EPOCH_S + at)
        return member(pulse, Info("there", 0, "same", "cluster", True, at_us, cluster_us=at_us))

    def renewed() -> None:
        pool.renewed("me#1", clock.now, microseconds(EPOCH_S + clock.now) if store else None)

    renewed()
    pool.observe({"me#1": member(1, info("here")), "other#1": heartbeat(1, clock.now - 7)}, "same")
    last_words_at = clock.now
    clock.now += 26.7
    renewed()
    pool.observe({"me#1": member(2, info("here")), "other#1": heartbeat(2, last_words_at)}, "same")
    assert pool.now_us() is None
    clock.now += 0.25
    pool.observe({"me#1": member(2, info("here")), "other#1": heartbeat(3, clock.now)}, "same")
    assert off(pool, clock) == 0.0


def test_a_heartbeat_that_agrees_with_the_stores_clock_is_believed_at_once(pool: NodePool, clock: VirtualClock) -> None:
    now_us = microseconds(EPOCH_S + clock.now)
    pool.renewed("me#1", clock.now, now_us)
    said = Info("there", 0, "same", "cluster", True, now_us, cluster_us=now_us - 900_000)
    pool.observe({"me#1": member(1, info("here")), "other#1": member(1, said)}, "same")
    assert off(pool, clock) == 0.0


def test_the_first_heartbeat_of_a_node_that_died_at_once_is_of_unknown_age_too(
    pool: NodePool, clock: VirtualClock
) -> None:
    members = {"me#1": member(1, info("here")), "dead#1": member(1, info(wall_us=microseconds(EPOCH_S)))}
    pool.renewed("me#1", clock.now, None)
    watch(pool, clock, TTL_S, lambda: members)
    assert off(pool, clock) == 0.0


def test_the_clock_of_a_dead_node_counts_until_it_is_forgotten(pool: NodePool, clock: VirtualClock) -> None:
    """Whose clock of the two is wrong nobody can tell: cluster time goes on as it was."""
    assert seen_clocks(pool, clock, -60.0) == -60.0
    watch(pool, clock, 590.0, lambda: {"me#1": member(1, info("here"))})
    assert off(pool, clock) == -60.0
    watch(pool, clock, 20.0, lambda: {"me#1": member(1, info("here"))})
    assert off(pool, clock) == 0.0


def test_the_first_to_come_back_after_an_outage_does_not_follow_its_own_clock_alone(
    pool: NodePool, clock: VirtualClock
) -> None:
    assert seen_clocks(pool, clock, 0.0, 0.0) == 0.0
    clock.skew_s = HOUR_S
    # The store comes back empty: the others are gone for longer than a TTL.
    clock.now += TTL_S
    pool.renewed("me#2", clock.now, None)
    watch(pool, clock, 4 * TTL_S, lambda: {"me#2": member(clock.now, info("here"))})
    assert off(pool, clock) == 0.0


def test_the_stores_clock_is_the_time_where_it_has_one(pool: NodePool, clock: VirtualClock) -> None:
    """It was read in the middle of the round trip, as far as is known; of a long one little is."""
    clock.skew_s = DAY_S
    asked_at = clock.now
    clock.now += 2
    pool.renewed("me#1", asked_at, microseconds(EPOCH_S + asked_at + 1 + 7))
    for pulse in (0, 1, 2):
        pool.observe({"me#1": member(1), "other#1": member(pulse, info(wall_us=1))}, "same")
    assert off(pool, clock) == 7.0
    for round_trip_s, store_is_off_s, off_s in [(0.2, 50.0, 7.0), (0.04, 8.0, 8.0)]:
        asked_at = clock.now
        clock.now += round_trip_s
        pool.renewed("me#1", asked_at, microseconds(EPOCH_S + asked_at + round_trip_s / 2 + store_is_off_s))
        pool.observe({"me#1": member(1)}, "same")
        assert off(pool, clock) == off_s
