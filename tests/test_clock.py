"""A suspended machine's time counts: what was trusted before is not trusted after it."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from celery_distsched.clock import Clock
from celery_distsched.drivers import Member
from celery_distsched.info import Info
from celery_distsched.node_pool import NodePool

TTL_S = 5.0
HOUR_S = 3600.0

linux = pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="only Linux has CLOCK_BOOTTIME")


@pytest.fixture
def suspended(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Answer, from the call on, as the kernel does after an hour of suspend."""
    machines = time.clock_gettime

    def clock_gettime(clock: int, /) -> float:
        # The others stand still while the machine does.
        ahead_s = HOUR_S if clock in (time.CLOCK_BOOTTIME, time.CLOCK_REALTIME) else 0.0
        return machines(clock) + ahead_s

    return lambda: monkeypatch.setattr(time, "clock_gettime", clock_gettime)


@linux
def test_the_time_of_a_suspend_has_elapsed(suspended: Callable[[], None]) -> None:
    clock = Clock()
    before, monotonic_before = clock.elapsed(), time.monotonic()
    suspended()
    passed_s = time.monotonic() - monotonic_before
    assert HOUR_S <= clock.elapsed() - before <= HOUR_S + passed_s + 1


@linux
def test_trust_does_not_outlive_a_suspend(suspended: Callable[[], None]) -> None:
    clock = Clock()
    pool = NodePool("me", TTL_S, clock)
    said = Info("here", 0, "digest", "cluster", active=True, wall_us=0)
    pool.renewed("me#1", clock.elapsed(), round(clock.wall() * 1e6))
    pool.observe({"me#1": Member("1", said.text())}, "digest")
    assert pool.trusted()
    suspended()
    assert not pool.trusted()


def test_time_elapses_where_no_clock_knows_of_suspends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery_distsched.clock._CLOCK", None)
    before = time.monotonic()
    elapsed = Clock().elapsed()
    assert before <= elapsed <= time.monotonic()
