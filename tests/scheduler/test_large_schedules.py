"""What must not grow with the number of entries: an idle tick, and a change of membership for those that stay."""

from __future__ import annotations

import gc
import sys
import time
import tracemalloc
from typing import Any

import pytest

from celery_distsched import collector
from celery_distsched.ledger import batches
from celery_distsched.timetable import Timetable
from tests.scheduler.cluster import HOURLY, Cluster, until
from tests.servers import RedisServer

_ENTRIES = {f"entry-{number}": HOURLY for number in range(2_000)}


def test_an_entry_takes_little_memory(cluster: Cluster) -> None:
    def held(size: int) -> int:
        beat = cluster.beat({f"entry-{number}": HOURLY for number in range(size)})
        gc.collect()
        tracemalloc.start()
        try:
            beat.tick_until(lambda: beat.ready)
            gc.collect()
            return tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
            beat.close()

    held(100)
    # Beside Celery's own entries, which are made before. Python 3.10 needs a little more than the others.
    assert (held(12_000) - held(2_000)) / 10_000 < 560


def test_records_are_read_in_order(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """New ones in any order would change nearly all pages of a database, batch after batch."""
    beat, batches = cluster.beat(_ENTRIES), list[list[str]]()
    read = beat.scheduler.driver.read

    def noted(names: list[str]) -> Any:
        batches.append(names)
        return read(names)

    monkeypatch.setattr(beat.scheduler.driver, "read", noted)
    beat.tick_until(lambda: beat.ready)
    # Twice: in a ledger that looks new nothing begins at once.
    assert [name for batch in batches if len(batch) > 1 for name in batch] == 2 * sorted(_ENTRIES)


@pytest.mark.parametrize("scheme", ["redis+zset", "sqlite"])
def test_a_burst_that_is_longer_than_the_ttl_costs_no_lease_and_makes_nobody_wait_for_its_end(cluster: Cluster) -> None:
    ttl_s, names = 1.0, [f"entry {number}" for number in range(16_000)]
    for batch in batches(names, 500):
        cluster.seed(*batch)
    # One after the other, as slowly as that can be.
    quick = {"quick": {"task": "nobody.runs.it", "schedule": 0.2}}
    conf = {"distsched_node_ttl": ttl_s, "distsched_fast_publish": False}
    beat = cluster.beat({**dict.fromkeys(names, HOURLY), **quick}, **conf)
    beat.tick_until(lambda: beat.counts["accepted"])
    began, me = time.monotonic(), beat.inner.pool.view.me
    beat.tick_until(lambda: beat.counts["accepted"] > len(names), within_s=60)
    took_s, order = time.monotonic() - began, [one.entry for one in cluster.sent()]
    assert took_s > ttl_s, "that was no burst"
    assert beat.inner.pool.view.me == me
    last = max(at for at, name in enumerate(order) if name != "quick")
    assert order[:last].count("quick") > took_s / 0.2 / 2


def test_an_idle_tick_walks_through_nothing_that_was_large_once(cluster: Cluster) -> None:
    beat = cluster.beat(_ENTRIES)
    beat.tick_until(lambda: beat.ready)
    beat.tick()
    records = beat.inner.dispatch.records
    assert len(records.holdings) == len(_ENTRIES)
    for names in (records.unread, records.busy):
        assert sys.getsizeof(names) == sys.getsizeof(set())


def test_an_idle_tick_asks_nobody_which_way_messages_go(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """That takes longer than all the rest of it; it is done once a second, and as soon as something is due."""
    beat, looks = cluster.beat(_ENTRIES), list[float]()
    beat.tick_until(lambda: beat.ready)
    way = beat.inner.dispatch._fast_way
    beat.tick_until(lambda: not way.surveying)
    look = way._look

    def noted(now: float) -> Any:
        looks.append(now)
        return look(now)

    monkeypatch.setattr(way, "_look", noted)
    began = time.monotonic()
    for _ in range(200):
        beat.tick()
    assert len(looks) <= 1 + (time.monotonic() - began)


def test_an_idle_beat_asks_the_store_of_no_entry(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    beat, asked = cluster.beat(_ENTRIES), set[str]()
    beat.tick_until(lambda: beat.ready)
    driver = beat.scheduler.driver
    read, swapping = driver.read, driver.swapping

    def noted_read(names: Any) -> Any:
        asked.update(names)
        return read(names)

    def noted_swapping(swaps: Any, fence: str | None = None) -> Any:
        asked.update(swap.key for swap in swaps)
        return swapping(swaps, fence)

    monkeypatch.setattr(driver, "read", noted_read)
    monkeypatch.setattr(driver, "swapping", noted_swapping)
    until(lambda: beat.tick() and "\0generation" in asked)
    assert asked == {"\0generation"}


def test_no_tick_is_long_while_entries_are_looked_at(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(redis_server.url(path="/5"), broker=redis_server.url(path="/5"))
    # No two of a kind: each of them costs as much as ten messages.
    entries = {name: {**HOURLY, "options": {"priority": number}} for number, name in enumerate(_ENTRIES)}
    beat, looked, pauses = cluster.beat(entries), list[int](), list[float]()
    try:
        beat.tick_until(lambda: beat.ready)
        beat.tick_until(lambda: beat.inner.dispatch._fast_way.surveying)
        why_not = beat.inner.dispatch._fast_way._publisher.why_not

        def noted(planned: Any) -> Any:
            looked[-1] += 1
            return why_not(planned)

        monkeypatch.setattr(beat.inner.dispatch._fast_way._publisher, "why_not", noted)
        while beat.inner.dispatch._fast_way.surveying:
            looked.append(0)
            pauses.append(beat.tick())
            time.sleep(0.005)
    finally:
        cluster.close()
    assert max(looked) < 200
    # Whoever has entries that nobody has looked at yet comes back soon.
    assert max(pauses[:-1]) <= 0.02
    # It rests in between: what is due meanwhile has most of the time.
    assert looked.count(0) > len(looked) / 2


def test_who_loses_entries_to_a_new_node_looks_at_none_that_it_keeps(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = cluster.beat(_ENTRIES), cluster.beat(_ENTRIES)
    first.tick_until(lambda: first.ready)
    looked_at: list[str] = []
    note = Timetable.set
    own = first.inner.dispatch._agenda.timetable

    def noted(timetable: Timetable, name: str, at_us: int) -> None:
        if timetable is own:
            looked_at.append(name)
        note(timetable, name, at_us)

    monkeypatch.setattr(Timetable, "set", noted)
    second.start()
    until(lambda: second.ready)
    first.tick_until(lambda: len(first.inner.dispatch.records.share) < len(_ENTRIES))
    kept = len(first.inner.dispatch.records.share)
    assert 0 < kept < len(_ENTRIES)
    assert len(own) == kept
    assert looked_at == []
    # It takes back what the other leaves, and looks at that alone.
    second.close()
    first.tick_until(lambda: len(own) == len(_ENTRIES))
    assert len(set(looked_at)) == len(_ENTRIES) - kept


def test_the_garbage_collector_goes_on_after_a_start(cluster: Cluster) -> None:
    beat = cluster.beat(_ENTRIES)
    beat.tick_until(lambda: beat.ready)
    assert gc.isenabled()


def test_a_garbage_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with collector.paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_garbage_collector_goes_on_after_an_error() -> None:
    def load() -> None:
        with collector.paused():
            assert not gc.isenabled()
            raise LookupError

    with pytest.raises(LookupError):
        load()
    assert gc.isenabled()
