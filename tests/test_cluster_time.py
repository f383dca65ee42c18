"""Promise 8: a clock that is wrong, or jumps, changes *when* at most, and is reported."""

from __future__ import annotations

import pytest

from celery_distsched.clock import Clock, microseconds
from celery_distsched.cluster_time import ClusterTime

TTL_S = 5.0
EPOCH_S = 1_800_000_000.0
HOUR_S = 3600.0


class VirtualClock(Clock):
    now, wall_is_off_s = 1000.0, 0.0

    def elapsed(self) -> float:
        return self.now

    def wall(self) -> float:
        return EPOCH_S + self.now + self.wall_is_off_s


class Node:
    """One node beside others, on a store with or without a clock; every clock can be set wrong."""

    def __init__(self, *, store: bool, others: int = 2) -> None:
        self.clock = VirtualClock()
        self.time = ClusterTime(self.clock, TTL_S)
        self.store_is_off_s = 0.0 if store else None
        #: Seconds that the store takes to answer; it reads its clock at the beginning of that.
        self.store_takes_s = 0.0
        self.walls_are_off_s = [0.0] * others
        self.peers_are_off_s: float | None = None

    @property
    def others(self) -> list[str]:
        return [f"other{number}#1" for number in range(len(self.walls_are_off_s))]

    def goes_on(self, seconds: float) -> float:
        """Let time pass with a heartbeat a second; returns by how many seconds cluster time is off."""
        until = self.clock.now + seconds
        while True:
            now = self.clock.now
            if self.store_is_off_s is not None:
                asked_at = now - self.store_takes_s
                self.time.store_said(microseconds(EPOCH_S + asked_at + self.store_is_off_s), asked_at, now)
            for other, off_s in zip(self.others, self.walls_are_off_s, strict=True):
                peer_us = 0 if self.peers_are_off_s is None else microseconds(EPOCH_S + now + self.peers_are_off_s)
                self.time.heard(other, microseconds(EPOCH_S + now + off_s), peer_us, now)
            self.time.settle(self.others, now)
            if now >= until:
                assert self.time.offset_us is not None
                return round(self.time.offset_us / 1e6 - EPOCH_S, 3)
            self.clock.now += 1


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_jump_of_the_stores_clock_alone_is_never_followed(hours: int, caplog: pytest.LogCaptureFixture) -> None:
    node = Node(store=True)
    assert node.goes_on(3) == 0.0
    node.store_is_off_s = hours * HOUR_S
    assert node.goes_on(20 * TTL_S) == 0.0
    node.store_is_off_s = 0.0
    assert node.goes_on(1) == 0.0
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "not followed" in said[0]
    assert "agree with cluster time again" in said[1]


def test_a_store_that_is_always_slow_is_not_followed_in_its_delays_but_in_its_jumps() -> None:
    node = Node(store=True)
    node.store_takes_s = 0.2
    assert node.goes_on(3) == -0.1
    node.store_takes_s = 0.5
    assert node.goes_on(10 * TTL_S) == -0.1
    node.store_is_off_s = HOUR_S
    node.walls_are_off_s, node.clock.wall_is_off_s = [HOUR_S] * 2, HOUR_S
    assert node.goes_on(6 * TTL_S) == HOUR_S - 0.25


@pytest.mark.parametrize("seconds", [-30, HOUR_S])
@pytest.mark.parametrize("others", [1, 2])
def test_a_node_that_alone_goes_by_another_time_than_the_stores_comes_back_to_it(seconds: float, others: int) -> None:
    """Its host has been paused, wall clock and all, or has woken up with a wrong clock."""
    node = Node(store=True, others=others)
    node.peers_are_off_s = 0.0
    assert node.goes_on(3) == 0.0
    assert node.time.offset_us is not None
    node.time.offset_us += microseconds(seconds)
    node.clock.wall_is_off_s = seconds
    assert node.goes_on(TTL_S - 1) == seconds
    assert node.goes_on(2) == 0.0


def test_of_two_that_go_by_different_times_who_is_with_the_store_stays() -> None:
    node = Node(store=True, others=1)
    assert node.goes_on(3) == 0.0
    node.peers_are_off_s, node.walls_are_off_s = -30.0, [-30.0]
    assert node.goes_on(20 * TTL_S) == 0.0


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_jump_that_lasts_and_that_a_second_clock_confirms_is_followed_after_a_ttl(hours: int) -> None:
    node = Node(store=True)
    assert node.goes_on(3) == 0.0
    node.store_is_off_s = hours * HOUR_S
    node.walls_are_off_s = [hours * HOUR_S] * 2
    node.clock.wall_is_off_s = hours * HOUR_S
    assert node.goes_on(TTL_S - 1) == 0.0
    # Of a wall clock that went back, the newer samples have to outnumber the old ones.
    assert node.goes_on(6 * TTL_S) == hours * HOUR_S


def test_without_a_clock_in_the_store_the_nodes_clocks_are_followed_after_a_ttl() -> None:
    node = Node(store=False)
    assert node.goes_on(3) == 0.0
    node.walls_are_off_s = [HOUR_S] * 2
    assert node.goes_on(TTL_S - 1) == 0.0
    assert node.goes_on(2) == HOUR_S


def test_a_change_of_less_than_a_second_is_followed_at_once() -> None:
    node = Node(store=True)
    assert node.goes_on(3) == 0.0
    node.store_is_off_s = -0.9
    assert node.goes_on(0) == -0.9


@pytest.mark.parametrize("store", [True, False])
def test_who_joins_goes_by_the_time_of_the_others(store: bool) -> None:
    node = Node(store=store)
    node.peers_are_off_s = 0.0
    node.walls_are_off_s = [HOUR_S, HOUR_S]
    if store:
        node.store_is_off_s = HOUR_S
    assert node.goes_on(0) == 0.0


@pytest.mark.parametrize("store", [True, False])
def test_a_heartbeat_that_was_there_already_says_nothing_of_the_time(store: bool) -> None:
    for later_s, dead in ((1.0, False), (TTL_S, True)):
        node = Node(store=store, others=0)
        written_us = microseconds(EPOCH_S + node.clock.now - 7)
        if store:
            node.time.store_said(microseconds(EPOCH_S + node.clock.now), node.clock.now, node.clock.now)
        node.time.found("other#1", written_us, written_us, node.clock.now)
        node.time.settle(["other#1"], node.clock.now)
        assert node.time.offset_us is None, "who can tell whether the clocks are wrong, or this is 7 s old?"
        node.clock.now += later_s
        if not dead:
            now_us = microseconds(EPOCH_S + node.clock.now)
            node.time.heard("other#1", now_us, now_us, node.clock.now)
        node.time.settle([] if dead else ["other#1"], node.clock.now)
        assert node.time.offset_us == microseconds(EPOCH_S)


@pytest.mark.parametrize(("off_s", "where"), [(HOUR_S, "ahead of"), (-7.0, "behind")])
def test_a_host_whose_clock_is_off_says_so_once_and_once_when_it_is_over(
    off_s: float, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    node = Node(store=True)
    node.goes_on(3)
    assert not caplog.records
    node.clock.wall_is_off_s = off_s
    assert node.goes_on(10) == 0.0
    node.clock.wall_is_off_s = 0.0
    assert node.goes_on(10) == 0.0
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert f"{abs(off_s):.1f} s {where} cluster time" in said[0]
    assert "agrees with cluster time again" in said[1]


def test_a_slow_clock_beside_one_other_does_not_take_the_cluster_back() -> None:
    node = Node(store=False, others=1)
    assert node.goes_on(3) == 0.0
    node.walls_are_off_s = [-HOUR_S]
    assert node.goes_on(20 * TTL_S) == 0.0
