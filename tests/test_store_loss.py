"""What a node that joins, or joins again, takes a ledger for that has lost its data."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid4

import pytest

from celery_distsched.drivers import Answer, StoreUrl, Swap
from celery_distsched.drivers.memory import MemoryDriver
from celery_distsched.errors import LeaseLost, StoreUnavailable
from celery_distsched.holding import Move
from celery_distsched.info import Info
from celery_distsched.ledger import Ledger
from celery_distsched.node_pool import NodePool, View
from celery_distsched.progress import Progress
from celery_distsched.record import Record
from celery_distsched.records import Records
from celery_distsched.settings import Settings
from celery_distsched.store_loss import Generation, StoreLoss
from tests.holding_nodes import NAME, TTL_S, StandingClock


class Shop:
    """One store, one clock, and nodes that are told who else is alive."""

    def __init__(self) -> None:
        self.clock, self.namespace = StandingClock(), uuid4().hex
        self.nodes: list[Node] = []

    def node(self, name: str) -> Node:
        node = Node(self, name)
        self.nodes.append(node)
        return node

    def look_around(self) -> None:
        for node in self.nodes:
            node.look_around()

    def lose(self) -> None:
        store = self.nodes[0].driver._store
        store.ledger.clear()
        store.nodes.clear()
        self.look_around()

    def record(self) -> str | None:
        (text,) = self.nodes[0].driver.read([NAME])
        return text


class Node:
    """The ledger of one node, and what looks after it."""

    def __init__(self, shop: Shop, name: str) -> None:
        self.shop, self.name, self.joins, self.me = shop, name, 0, ""
        self.driver = MemoryDriver(
            StoreUrl.parse("memory://loss"), namespace=shop.namespace, ttl_s=TTL_S, timeout_s=1.0
        )
        self.pool, self.progress = NodePool(name, TTL_S, shop.clock), Progress()
        self.begins_at, self.offset_us, self.longest_ttl_s = 10, 10**15, TTL_S
        settings = Settings(StoreUrl("test"), node_ttl=TTL_S)
        self.ledger = Ledger(
            self.driver,
            Records(self.pool, self.progress, shop.clock, settings),
            self.progress,
            shop.clock,
            settings,
            anchor=lambda _: Record(self.begins_at),
            may_begin=lambda: self.loss.unchanged(),
        )
        self.loss = StoreLoss(self.driver, self.ledger, self.pool, self.progress, shop.clock, lambda: [NAME])

    def join(self) -> None:
        self.joins += 1
        self.me = f"{self.name}#{self.joins}"
        self.driver.join(self.me, "")
        self.shop.look_around()

    def look_around(self) -> None:
        alive = {
            node.me: Info("host", 0, "same", "cluster", True, 0, generation=node.progress.generation)
            for node in self.shop.nodes
            if node.me in self.driver.members()
        }
        self.pool.view = View(
            me=self.me or None,
            alive=alive,
            offset_us=self.offset_us,
            trusted_until=float("inf"),
            longest_ttl_s=self.longest_ttl_s,
        )

    def tick(self) -> None:
        """What a tick does before it claims; the entry belongs to everybody."""
        self.look_around()
        if self.me != self.ledger.records.me:
            self.ledger.records.rejoined(self.me)
            self.ledger.records.own({NAME}, gained={NAME}, lost=())
        if self.loss.settled(self.pool.view):
            self.ledger.read(self.ledger.records.unread)
            self.ledger.watch()


@pytest.fixture
def shop() -> Shop:
    return Shop()


def run(shop: Shop, seconds: float, nodes: Sequence[Node]) -> None:
    for _ in range(round(seconds / 0.05)):
        for node in nodes:
            node.tick()
        shop.clock.now += 0.05


@pytest.fixture
def old(shop: Shop) -> Node:
    """It has begun the entry."""
    node = shop.node("old")
    node.join()
    run(shop, TTL_S, [node])
    assert shop.record() == Record(10).text()
    return node


def test_in_a_ledger_that_looks_new_nothing_starts_for_half_a_ttl(shop: Shop) -> None:
    first, second = shop.node("first"), shop.node("second")
    for node in (first, second):
        node.join()
    run(shop, TTL_S / 2 - 0.1, [first, second])
    assert shop.record() is None
    assert not first.ledger.records.unread, "it is as ready as it can be"
    run(shop, 0.3, [first, second])
    assert shop.record() == Record(10).text()


def test_in_a_ledger_that_looks_new_nothing_starts_for_half_of_the_longest_ttl(shop: Shop) -> None:
    """One of a longer TTL, as before a deploy, may take so long to see what has happened."""
    hasty = shop.node("hasty")
    hasty.longest_ttl_s = 3 * TTL_S
    hasty.join()
    run(shop, 1.5 * TTL_S - 0.1, [hasty])
    assert shop.record() is None
    run(shop, 0.3, [hasty])
    assert shop.record() == Record(10).text()


def test_who_joins_an_emptied_store_before_those_who_remember_starts_nothing_from_now(shop: Shop, old: Node) -> None:
    shop.lose()
    newcomer = shop.node("newcomer")
    newcomer.begins_at = 99
    newcomer.join()
    run(shop, TTL_S * 0.4, [newcomer])
    old.join()
    run(shop, 3 * TTL_S, [newcomer, old])
    assert shop.record() == Record(10).text()
    assert newcomer.ledger.records.memory(NAME) == Record(10)


def test_who_joins_just_after_a_loss_waits_for_those_who_are_not_members_again(shop: Shop, old: Node) -> None:
    """The one that is back may remember less than the one that is not."""
    behind, newcomer = shop.node("behind"), shop.node("newcomer")
    behind.join()
    run(shop, 1, [old, behind])
    shop.lose()
    behind.join()
    newcomer.join()
    run(shop, TTL_S / 2 - 0.1, [behind, newcomer])
    assert not newcomer.loss.settled(newcomer.pool.view)
    run(shop, 0.2, [behind, newcomer])
    assert newcomer.loss.settled(newcomer.pool.view)


def test_what_is_put_back_into_a_ledger_that_was_taken_for_new_is_not_taken_for_whole(shop: Shop, old: Node) -> None:
    """Who came first knew nothing. Who comes third, and finds what the second remembers, waits for a fourth."""
    better = shop.node("better")
    better.join()
    run(shop, 1, [better])
    better.driver.swap([Swap(NAME, Record(10).text(), Record(20).text())], None)
    better.ledger.read([NAME])
    shop.lose()
    first, third = shop.node("first"), shop.node("third")
    first.join()
    first.tick()
    old.join()
    old.tick()
    assert shop.record() == Record(10).text()
    third.join()
    third.tick()
    assert not third.loss.settled(third.pool.view)
    better.join()
    run(shop, TTL_S, [first, old, third, better])
    assert third.ledger.records.memory(NAME) == Record(20)


def test_what_nobody_remembers_waits_for_two_ttls_where_one_who_remembers_has_joined(shop: Shop, old: Node) -> None:
    shop.lose()
    newcomer = shop.node("newcomer")
    newcomer.join()
    run(shop, TTL_S * 0.3, [newcomer])
    old.join()
    old.ledger.records.holdings.clear()
    run(shop, 2 * TTL_S - 0.1, [newcomer])
    assert shop.record() is None


def test_who_is_behind_in_time_waits_no_longer_than_the_others(shop: Shop, old: Node) -> None:
    """Nobody remembers the entry, so that it starts from now after two TTLs."""
    shop.lose()
    old.ledger.records.holdings.clear()
    old.join()
    old.tick()
    late = shop.node("late")
    late.offset_us -= 3_600_000_000
    late.join()
    run(shop, 2 * TTL_S + 0.2, [late])
    assert shop.record() == Record(10).text()


def test_who_joins_again_looks_first_whether_the_ledger_is_still_the_same(shop: Shop, old: Node) -> None:
    """It has just looked, and since then another server has taken the store's place."""
    old.tick()
    shop.lose()
    old.begins_at = 99
    old.join()
    old.tick()
    assert shop.record() == Record(10).text()


def test_a_ledger_that_has_gone_between_two_looks_is_not_new(shop: Shop, old: Node) -> None:
    """It was evicted, and an entry comes to a node that has never had it."""
    other = shop.node("other")
    other.begins_at = 99
    other.join()
    run(shop, TTL_S, [old, other])
    other.ledger.records.own((), gained=(), lost={NAME})
    other.ledger.records._memories._records.clear()
    old.driver._store.ledger.clear()
    other.ledger.records.own({NAME}, gained={NAME}, lost=())
    other.tick()
    assert shop.record() is None
    run(shop, TTL_S, [other, old])
    assert shop.record() == Record(10).text()


@pytest.mark.parametrize("slow", ["\0generation", NAME])
def test_nothing_is_written_when_trust_has_run_out_while_reading(shop: Shop, old: Node, slow: str) -> None:
    read = old.driver.read

    def read_slowly(keys: Sequence[str]) -> list[str | None]:
        if slow in keys:
            old.pool.view = View(me=old.me, offset_us=10**15)
        return read(keys)

    shop.lose()
    old.join()
    old.driver.read = read_slowly  # type: ignore[method-assign]
    assert not old.loss.settled(old.pool.view)
    assert slow not in old.driver._store.ledger


def test_who_has_put_back_all_says_so_though_trust_ran_out_while_reading(shop: Shop, old: Node) -> None:
    read = old.driver.read

    def read_slowly(keys: Sequence[str]) -> list[str | None]:
        if NAME in keys:
            old.pool.view = View(me=old.me, offset_us=10**15)
        return read(keys)

    shop.lose()
    old.join()
    old.driver._store.ledger[NAME] = Record(10).text()
    old.driver.read = read_slowly  # type: ignore[method-assign]
    old.loss.settled(old.pool.view)
    assert old.progress.generation in old.driver._store.ledger["\0generation"]


def test_a_store_that_goes_back_to_before_a_loss_is_a_loss_to_those_too_who_missed_the_first(
    shop: Shop, old: Node
) -> None:
    away = shop.node("away")
    away.join()
    run(shop, 1, [old, away])
    store = old.driver._store
    before = dict(store.ledger)
    # What it alone knows when it loses sight of the store, with the mark of before.
    away.driver.swap([Swap(NAME, Record(10).text(), Record(20).text())], None)
    away.ledger.read([NAME])
    store.ledger.clear()
    run(shop, 2 * TTL_S, [old])
    store.ledger.clear()
    store.ledger.update(before)
    run(shop, 1, [old])
    run(shop, 2 * TTL_S, [old, away])
    assert shop.record() == Record(20).text()


def test_a_claim_that_was_not_answered_cannot_arrive_when_its_record_has_been_put_back(shop: Shop, old: Node) -> None:
    """It would find what it expects, and its sender has been told that it was lost."""
    swap, late = old.driver.swap, list[tuple[Sequence[Swap], str | None]]()

    def unanswered(swaps: Sequence[Swap], fence: str | None = None) -> list[Answer]:
        late.append((swaps, fence))
        raise StoreUnavailable("no answer")

    old.driver.swap = unanswered  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        old.ledger.swap({NAME: Move(Record(10).text(), Record(20, {20: old.me}), fenced=True, claimed=(20,))})
    old.driver.swap = swap  # type: ignore[method-assign]
    old.driver._store.ledger.clear()
    run(shop, 1, [old])
    old.ledger.repeat()
    run(shop, TTL_S, [old])
    assert (old.progress.outlived, shop.record()) == (old.me, None), "nothing is put back before it has joined anew"
    old.driver.remove(old.me)
    old.join()
    run(shop, 2 * TTL_S, [old])
    assert shop.record() == Record(10).text()
    with pytest.raises(LeaseLost):
        swap(*late[0])


_MARK = '{"name":"a","server":"b","since_us":%s,"new":true,"found":false}'


@pytest.mark.parametrize("garbage", ["", "[]", "[" * 5000, _MARK % "1e999", _MARK % "-1", _MARK % ("9" * 4000)])
def test_a_mark_of_the_ledger_that_is_garbage_is_none(garbage: str) -> None:
    assert Generation.parse(garbage) is None
