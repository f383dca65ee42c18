"""What is said of a store that does not answer, and what a node forgets in time."""

from __future__ import annotations

import logging

import pytest

from celery_distsched.clock import Clock
from celery_distsched.errors import StoreUnavailable
from celery_distsched.memories import Memories
from celery_distsched.outage import Outage
from celery_distsched.record import Record


class StandingClock(Clock):
    now = 0.0

    def elapsed(self) -> float:
        return self.now


def test_an_outage_is_told_once_and_again_when_its_reason_changes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "celery_distsched")
    clock = StandingClock()
    outage = Outage("redis://store", clock)
    for clock.now, reason in ((0, "refused"), (1, "refused"), (5, "no password"), (11, "no password"), (30, "refused")):
        outage.met(StoreUnavailable(reason))
    assert outage.lasts
    first, second = caplog.messages
    assert ("refused" in first, "no password" in second) == (True, True)
    outage.over()
    outage.met(StoreUnavailable("refused"))
    assert len(caplog.messages) == 4, "its end, and the next one"


def test_what_is_remembered_of_entries_that_come_and_go_does_not_grow_for_ever() -> None:
    clock = StandingClock()
    memories = Memories(clock)
    for clock.now in range(0, 6000, 10):
        memories.keep(f"entry {clock.now}", Record(1))
    assert len(memories._records) <= 2 * 600 / 10 + 1
