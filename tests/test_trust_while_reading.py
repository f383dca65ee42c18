"""Between a look at the trust in the view and a write there may be reads, which take their time."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid4

import pytest

from celery_distsched.drivers import StoreUrl
from celery_distsched.drivers.memory import MemoryDriver
from celery_distsched.ledger import Ledger
from celery_distsched.node_pool import NodePool, View
from celery_distsched.progress import Progress
from celery_distsched.record import Record
from celery_distsched.records import Records
from celery_distsched.settings import Settings
from celery_distsched.store_loss import StoreLoss
from tests.holding_nodes import NAME, TTL_S, StandingClock

ME, DEAD = "me#1", "dead#1"


class SlowReads(MemoryDriver):
    """Each read takes so long."""

    read_s = 0.0

    def __init__(self, clock: StandingClock) -> None:
        super().__init__(StoreUrl.parse("memory://slow"), namespace=uuid4().hex, ttl_s=TTL_S, timeout_s=1.0)
        self.clock = clock

    def read(self, keys: Sequence[str]) -> list[str | None]:
        answer = super().read(keys)
        if keys:
            self.clock.now += self.read_s
        return answer

    @property
    def records(self) -> dict[str, str]:
        return dict(self._store.ledger)


class Node:
    """What of a node reads and then writes; its membership stands, so that no fence would stop it."""

    def __init__(self) -> None:
        self.clock, progress = StandingClock(), Progress()
        self.store, self.pool = SlowReads(self.clock), NodePool("me", TTL_S, self.clock)
        settings = Settings(StoreUrl("test"), node_ttl=TTL_S)
        self.ledger = Ledger(
            self.store,
            Records(self.pool, progress, self.clock, settings),
            progress,
            self.clock,
            settings,
            anchor=lambda _: Record(10),
            trusted=self.pool.trusted,
        )
        self.ledger.records.me = ME
        self.loss = StoreLoss(self.store, self.ledger, self.pool, progress, self.clock, lambda: [NAME])
        self.store.join(ME, "")
        self.trust()

    def trust(self) -> None:
        """As a renewal does that was sent now."""
        dead = frozenset({DEAD})
        until = self.clock.now + TTL_S
        self.pool.view = View(me=ME, offset_us=10**15, trusted_until=until, dead=dead, buried=dead, longest_ttl_s=TTL_S)

    def tick(self, reads_take_s: float) -> dict[str, str]:
        """Look at trust, then do what reads and writes; returns what it has written."""
        self.trust()
        before = self.store.records
        self.store.read_s = reads_take_s
        if self.loss.settled(self.pool.view):
            self.ledger.read(self.ledger.records.unread)
            self.ledger.watch()
            self.ledger.take_over()
        return {key: text for key, text in self.store.records.items() if before.get(key) != text}


@pytest.fixture
def node() -> Node:
    """One that has looked after the store's data, and has read the record of its entry."""
    node = Node()
    node.ledger.records.own({NAME}, gained={NAME}, lost=())
    node.tick(reads_take_s=0)
    # In a ledger that looks new nothing begins at once.
    node.clock.now += TTL_S
    for _ in range(2):
        node.tick(reads_take_s=0)
    assert node.store.records[NAME] == Record(10).text()
    return node


def gain(node: Node) -> None:
    """Have the node read the record as that of an entry that it has never seen."""
    node.ledger.records.holdings.clear()
    node.ledger.records._memories._records.clear()
    node.ledger.records.unread.add(NAME)


def test_an_entry_gets_no_first_record(node: Node) -> None:
    gain(node)
    del node.store._store.ledger[NAME]
    assert node.tick(reads_take_s=TTL_S) == {}
    assert node.tick(reads_take_s=0) == {NAME: Record(10).text()}


def test_the_store_gets_no_mark_of_its_own() -> None:
    node = Node()
    assert node.tick(reads_take_s=TTL_S) == {}
    assert len(node.tick(reads_take_s=0)) == 1


def test_nothing_is_taken_over(node: Node) -> None:
    gain(node)
    node.store._store.ledger[NAME] = Record(11, {11: DEAD}).text()
    assert node.tick(reads_take_s=TTL_S) == {}
    assert node.tick(reads_take_s=0) == {NAME: Record(11, {11: ME}).text()}


def test_nothing_is_put_back(node: Node) -> None:
    node.store._store.ledger.clear()
    node.clock.now += TTL_S
    # After the first read the store's new mark may be written; after the second nothing may.
    assert NAME not in node.tick(reads_take_s=0.6 * TTL_S)
    assert node.tick(reads_take_s=0) == {NAME: Record(10).text()}
