"""What a node remembers of an entry is put back, whatever else it holds of it."""

from __future__ import annotations

import pytest

from celery_distsched.drivers import StoreUrl
from celery_distsched.holding import Holding
from celery_distsched.ledger import Ledger
from celery_distsched.node_pool import NodePool
from celery_distsched.progress import Progress
from celery_distsched.record import Record
from celery_distsched.settings import Settings
from tests.holding_nodes import NAME, TTL_S, StandingClock, Store, Way


@pytest.fixture
def ledger() -> Ledger:
    """One that has had the entry, with a record of 10, and has lost it to another node."""
    clock, store = StandingClock(), Store()
    store.record = Record(10)
    ledger = Ledger(
        Way(store), NodePool("me", TTL_S, clock), Progress(), clock, Settings(StoreUrl("test"), node_ttl=TTL_S),
        anchor=lambda _: Record(0), learnt=lambda _: None,
    )  # fmt: skip
    ledger.own({NAME}, gained={NAME}, lost=())
    ledger.read(ledger.unread)
    ledger.own((), gained=(), lost={NAME})
    assert ledger.memory(NAME) == Record(10)
    return ledger


@pytest.mark.parametrize("stored", [None, Record(3)])
@pytest.mark.parametrize("holds_nothing", [False, True], ids=["no holding", "a holding without a record"])
def test_what_is_remembered_is_put_back(ledger: Ledger, stored: Record | None, holds_nothing: bool) -> None:
    if holds_nothing:
        # So it is after a swap that lost to nothing: otherwise each node would call the others' record a loss for ever.
        ledger.holdings[NAME] = Holding()
    move = ledger.restoring(NAME, stored.text() if stored else None)
    assert move is not None
    assert move.new == Record(10)
