"""What a node remembers of an entry is put back, whatever else it holds of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import pytest

from celery_distsched.clock import Clock
from celery_distsched.drivers import Answer, Driver, StoreUrl, Swap
from celery_distsched.drivers.base import Push
from celery_distsched.drivers.memory import MemoryDriver
from celery_distsched.errors import StoreUnavailable
from celery_distsched.holding import Holding, Phase
from celery_distsched.ledger import Ledger
from celery_distsched.node_pool import NodePool, View
from celery_distsched.progress import Progress
from celery_distsched.record import Record
from celery_distsched.records import Records
from celery_distsched.settings import Settings
from celery_distsched.store_loss import StoreLoss
from tests.holding_nodes import NAME, TTL_S, StandingClock, Store, Way


def new_ledger(driver: Driver, pool: NodePool, progress: Progress, clock: Clock, *, first: Record) -> Ledger:
    """Return one that begins each entry with this record."""
    settings = Settings(StoreUrl("test"), node_ttl=TTL_S)
    records = Records(pool, progress, clock, settings)
    return Ledger(driver, records, progress, clock, settings, anchor=lambda _: first)


@pytest.fixture
def ledger() -> Ledger:
    """One that has had the entry, with a record of 10, and has lost it to another node."""
    clock, store = StandingClock(), Store()
    store.record = Record(10)
    ledger = new_ledger(Way(store), NodePool("me", TTL_S, clock), Progress(), clock, first=Record(0))
    ledger.records.own({NAME}, gained={NAME}, lost=())
    ledger.read(ledger.records.unread)
    ledger.records.own((), gained=(), lost={NAME})
    assert ledger.records.memory(NAME) == Record(10)
    return ledger


@pytest.mark.parametrize("stored", [None, Record(3)])
@pytest.mark.parametrize("holds_nothing", [False, True], ids=["no holding", "a holding without a record"])
def test_what_is_remembered_is_put_back(ledger: Ledger, stored: Record | None, holds_nothing: bool) -> None:
    if holds_nothing:
        # So it is after a swap that lost to nothing: otherwise each node would call the others' record a loss for ever.
        ledger.records.holdings[NAME] = Holding()
    move = ledger.records.restoring(NAME, stored.text() if stored else None)
    assert move is not None
    assert move.new == Record(10)


def test_an_entry_of_which_another_puts_back_less_is_not_done() -> None:
    """Both find nothing there; the other, who lost the entry long ago, is quicker, and what it remembers is older."""
    clock, progress = StandingClock(), Progress()
    place: dict[str, Any] = {
        "url": StoreUrl.parse("memory://loss"),
        "namespace": uuid4().hex,
        "ttl_s": TTL_S,
        "timeout_s": 1.0,
    }
    mine, other = MemoryDriver(**place), MemoryDriver(**place)
    mine.join("me#1", "")
    pool = NodePool("me", TTL_S, clock)
    pool.view = View(me="me#1", offset_us=10**15, trusted_until=float("inf"), longest_ttl_s=TTL_S)
    ledger = new_ledger(mine, pool, progress, clock, first=Record(10))
    ledger.records.me = "me#1"
    loss = StoreLoss(mine, ledger, pool, progress, clock, lambda: [NAME])
    ledger.records.own({NAME}, gained={NAME}, lost=())
    assert loss.settled(pool.view)
    clock.now += TTL_S
    ledger.read(ledger.records.unread)
    mine._store.ledger.clear()
    clock.now += 1
    swap = mine.swap

    def after_the_other(swaps: Sequence[Swap], fence: str | None = None) -> list[Answer]:
        if any(one.key == NAME for one in swaps):
            mine.swap = swap  # type: ignore[method-assign]
            other.swap([Swap(NAME, None, Record(3).text())])
        return swap(swaps, fence)

    mine.swap = after_the_other  # type: ignore[method-assign]
    loss.settled(pool.view)
    assert other.read([NAME]) == [Record(10).text()]


@pytest.mark.parametrize("mark", ["me#1", "other#2"])
def test_an_instant_that_is_open_again_after_it_was_confirmed_shows_a_loss(ledger: Ledger, mark: str) -> None:
    """The store went back by one write, and does not name its server: the confirm is gone, and `last` is equal.

    Another may have put the mark back, who had held it before: to take that in would forget that it was sent.
    """
    ledger.records.me = "me#1"
    ledger.records.own({NAME}, gained={NAME}, lost=())
    ledger.read(ledger.records.unread)
    ledger._driver.store.record = Record(10, {10: mark})  # type: ignore[attr-defined]
    ledger.read([NAME])
    assert "was confirmed" in ledger.records.suspicious
    assert ledger.records.memory(NAME) == Record(10)
    assert not ledger.records.busy
    move = ledger.records.restoring(NAME, Record(10, {10: mark}).text())
    assert move is not None
    assert move.new == Record(10)


def test_who_comes_back_twice_from_a_long_absence_still_doubts_what_it_held(ledger: Ledger) -> None:
    """Somebody may have taken it over and sent it, before the store lost all that would tell."""
    ledger.records.rejoined("me#1")
    ledger._driver.store.members.add("me#1")  # type: ignore[attr-defined]
    ledger.records.own({NAME}, gained={NAME}, lost=())
    ledger.read(ledger.records.unread)
    move = ledger.records.advance(NAME, claim=(11,))
    assert move is not None
    ledger.swap({NAME: move})
    ledger.records.rejoined("me#2", doubtful=True)
    ledger.records.rejoined("me#3")
    # Another node has put back what it knew by then.
    assert ledger.records.restoring(NAME, Record(20).text()) is None
    ledger.read(ledger.records.unread)
    ledger.records.whole()
    ledger.records.rejoined("me#4")
    move = ledger.records.restoring(NAME, Record(20).text())
    assert move is not None
    assert move.new == Record(20, {11: "me#4"})


def test_what_was_held_over_a_long_absence_is_in_doubt_until_the_ledger_is_whole_and_read(ledger: Ledger) -> None:
    """Who knows that it has been sent may not have said so yet: what the store holds after a loss shows nothing."""
    records, store = ledger.records, ledger._driver.store  # type: ignore[attr-defined]
    records.rejoined("me#1")
    store.members.add("me#1")
    records.own({NAME}, gained={NAME}, lost=())
    ledger.read(records.unread)
    move = records.advance(NAME, claim=(11,))
    assert move is not None
    ledger.swap({NAME: move})
    store.members.add("me#2")
    records.rejoined("me#2", doubtful=True)
    assert records.doubtful == {NAME}
    store.record = None
    store.claimed.clear()
    move = records.restoring(NAME, None)
    assert move is not None
    ledger.swap({NAME: move})
    assert records.holdings[NAME].instants(Phase.CLAIMED) == (11,)
    records.unread.add(NAME)
    records.whole()
    assert records.doubtful == {NAME}, "it is put back, and not to be sent before it has been read again"
    ledger.read([NAME])
    records.whole()
    assert not records.doubtful


def test_a_call_whose_answer_is_lost_leaves_its_entries_to_be_read_first(ledger: Ledger) -> None:
    """Its claims leave no marks: only the record says whether the messages are in the queue."""
    ledger.records.own({NAME}, gained={NAME}, lost=())
    ledger.read(ledger.records.unread)
    move = ledger.records.advance(NAME, claim=(11,), enqueue=True)
    assert move is not None

    with pytest.raises(AssertionError, match="would be lost"):
        ledger.swap({NAME: move})

    def lost() -> Any:
        raise StoreUnavailable("lost")

    waiting = ledger.enqueue({NAME: (move, [Push("queue", "message")])}, lambda claims, me: lost)
    assert ledger.records.free(NAME) is None, "it is on its way"
    with pytest.raises(StoreUnavailable):
        waiting()
    assert ledger.records.free(NAME) is None
    ledger.read(ledger.records.unread)
    assert ledger.records.free(NAME) is not None
