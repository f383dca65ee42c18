"""Of other schedules in one namespace the log tells: in a deploy a line, and a warning where it has no end."""

from __future__ import annotations

import logging

import pytest

from celery_distsched.clock import Clock
from celery_distsched.other_schedules import OtherSchedules


class StandingClock(Clock):
    now = 0.0

    def elapsed(self) -> float:
        return self.now


def test_a_deploy_is_told_when_it_begins_and_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "celery_distsched")
    clock = StandingClock()
    others = OtherSchedules(clock)
    for clock.now, live in ((0, {0, 1}), (10, {1, 2}), (20, {1, 2}), (30, {1}), (40, {1}), (2000, {1})):
        others.look(1, live)
    first, second = caplog.messages
    assert "number 1: number 2" in first
    assert "all live nodes carry this node's schedule" in second


def test_two_apps_in_one_namespace_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "celery_distsched")
    clock = StandingClock()
    others = OtherSchedules(clock)
    for clock.now in (0, 600, 899, 900, 1800, 3600):
        others.look(1, {1, 2})
    assert [record.levelno for record in caplog.records] == [logging.INFO, logging.WARNING]
    assert "distsched_namespace" in caplog.messages[1]
