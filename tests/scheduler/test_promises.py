"""An occurrence is claimed once and sent once, whatever is lost, late or stuck between the store and a node."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
from celery.schedules import schedule

from celery_distsched import node as node_module
from celery_distsched.clock import Clock
from celery_distsched.errors import StoreUnavailable
from celery_distsched.message import task_id
from tests.figures import Figure
from tests.scheduler.cluster import HOURLY, Beat, Cluster, Crash, in_s, now_us, until
from tests.wire import Wire

SERVED = ("redis+scan", "redis+zset", "etcd", "consul")
EVERY = ("sqlite", *SERVED)
# With an entry more, a node has another digest: it and the others share no ring, and each believes that it owns all.
MORE = {"another": HOURLY}

WiredStore = Callable[[], tuple[Wire, str]]


@pytest.fixture
def ttl_s(scheme: str) -> float:
    """The shortest that the store honours."""
    return 2.0 if scheme == "etcd" else 1.0


def tick_until_just_before(beat: Beat, instant_us: int) -> None:
    while now_us() < instant_us - 50_000:
        beat.tick()
        time.sleep(0.01)


@contextmanager
def first_swap_unanswered(beat: Beat) -> Iterator[threading.Event]:
    """Carry out the next swap of this beat and lose the answer; the ones after find the store gone, until the end."""
    driver, swapping, lost = beat.scheduler.driver, beat.scheduler.driver.swapping, threading.Event()

    def unanswered(*args: Any) -> Any:
        if not lost.is_set():
            swapping(*args)()
            lost.set()
        raise StoreUnavailable("the answer was lost")

    driver.swapping = unanswered
    try:
        yield lost
    finally:
        driver.swapping = swapping


# Claims


@pytest.mark.parametrize("scheme", SERVED)
def test_a_lost_reply_of_a_claim_is_not_a_lost_run(cluster: Cluster, wired_store: WiredStore) -> None:
    wire, url = wired_store()
    beat = cluster.beat({"a": HOURLY}, distsched_url=url)
    due = cluster.seed("a", last_us=in_s(1))
    beat.tick_until(lambda: beat.ready)
    me, driver, swapping = beat.inner.pool.view.me, beat.scheduler.driver, beat.scheduler.driver.swapping

    def without_replies(*args: Any) -> Any:
        driver.swapping = swapping
        wire.drop_replies()
        return swapping(*args)

    driver.swapping = without_replies
    beat.tick_until(lambda: (record := cluster.record("a")) and record.open)
    assert cluster.record("a").open == {due: me}  # type: ignore[union-attr]
    assert cluster.sent() == []
    wire.mend()
    beat.tick_until(lambda: cluster.sent() and cluster.settled("a"))
    assert [(sent.instant_us, sent.attempt) for sent in cluster.sent()] == [(due, 1)]


@pytest.mark.parametrize("scheme", ["sqlite"])
def test_a_lost_answer_of_a_claim_is_not_a_lost_run_on_the_embedded_store(cluster: Cluster) -> None:
    beat = cluster.beat({"a": HOURLY})
    due = cluster.seed("a", last_us=in_s(1))
    beat.tick_until(lambda: beat.ready)
    with first_swap_unanswered(beat) as lost:
        beat.tick_until(lost.is_set)
        assert cluster.record("a").open  # type: ignore[union-attr]
        beat.tick()
        assert cluster.sent() == []
    beat.tick_until(lambda: cluster.sent() and cluster.settled("a"))
    assert [(sent.instant_us, sent.attempt) for sent in cluster.sent()] == [(due, 1)]


@pytest.mark.parametrize("scheme", EVERY)
def test_two_first_sights_make_one_anchor(cluster: Cluster) -> None:
    beats = [cluster.beat({"a": HOURLY}), cluster.beat({"a": HOURLY, **MORE})]
    both_have_looked = threading.Barrier(2)

    def look_together(beat: Beat) -> None:
        read = beat.scheduler.driver.read

        def looked(keys: list[str]) -> list[str | None]:
            records: list[str | None] = read(keys)
            if dict(zip(keys, records, strict=True)).get("a", "") is None:
                both_have_looked.wait(10)
            return records

        beat.scheduler.driver.read = looked

    for beat in beats:
        look_together(beat)
        beat.start()
    until(lambda: all(beat.ready and "a" in beat.inner.dispatch.records.holdings for beat in beats))
    assert not both_have_looked.broken
    assert [beat.inner.dispatch.records.holdings["a"].record for beat in beats] == 2 * [cluster.record("a")]


@pytest.mark.parametrize("scheme", EVERY)
def test_an_opaque_schedule_runs_once_on_a_split_ring(
    new_cluster: Callable[..., Cluster], scheme: str, figure: Figure
) -> None:
    both_say_due = threading.Barrier(2)

    class AtItsOwnPleasure(schedule):  # type: ignore[misc]
        def is_due(self, last_run_at: Any) -> tuple[bool, float]:
            if (self.now() - last_run_at).total_seconds() < 3600:
                return False, 0.1
            both_say_due.wait(10)
            return True, 0.1

    cluster = new_cluster(ttl_s=5.0)
    entry = {"task": "nobody.runs.it", "schedule": AtItsOwnPleasure(3600)}
    cluster.seed("a")
    beats = [cluster.beat({"a": entry}), cluster.beat({"a": entry, **MORE})]
    for beat in beats:
        beat.start()
    until(lambda: all(beat.ready for beat in beats) and cluster.sent() and cluster.settled("a"))
    assert not both_say_due.broken
    # Both have learnt of it, so neither will ask and hear "due" again.
    until(lambda: all(beat.inner.dispatch.records.holdings["a"].record == cluster.record("a") for beat in beats))
    figure.runs("one claim", scheme, len(cluster.sent()) - 1, 1, "runs claimed by two; two nodes that own the entry")
    assert len(cluster.sent()) == 1


@pytest.mark.parametrize("scheme", ["sqlite", "redis+zset"])
@pytest.mark.parametrize("end", ["it goes on", "it dies"])
def test_a_stalled_claim_survives_the_next_owners_claim(new_cluster: Callable[..., Cluster], end: str) -> None:
    cluster = new_cluster(ttl_s=5.0 if end == "it goes on" else 2.0)
    goes_on, stalled = threading.Event(), threading.Event()
    often = {"task": "nobody.runs.it", "schedule": 0.25}
    first = cluster.beat({"a": often})

    def stall(node: str, entry: str) -> None:
        if node == first.node and not stalled.is_set():
            stalled.set()
            goes_on.wait(20)
            if end == "it dies":
                raise Crash

    cluster.before_publish(stall)
    first.start()
    assert stalled.wait(10)
    ((instant, mark),) = cluster.record("a").open.items()  # type: ignore[union-attr]
    assert mark == first.inner.pool.view.me
    cluster.started({"a": often, **MORE})
    until(lambda: len(cluster.sent("a")) >= 2)
    assert cluster.record("a").open[instant] == mark  # type: ignore[union-attr]
    goes_on.set()
    until(lambda: instant in [sent.instant_us for sent in cluster.sent("a")])
    until(lambda: instant not in cluster.record("a").open)  # type: ignore[union-attr]
    sent = cluster.sent("a")
    (stalled_one,) = [one for one in sent if one.instant_us == instant]
    assert stalled_one.task_id == task_id(cluster.namespace, "a", instant)
    if end == "it goes on":
        assert (stalled_one.node, stalled_one.attempt) == (first.node, 1)
    else:
        assert stalled_one.node != first.node
        assert stalled_one.attempt == 2
    # Every instant of the grid since the first, each once.
    assert sorted(one.instant_us for one in sent) == [instant + 250_000 * k for k in range(len(sent))]


# Confirms


@pytest.mark.parametrize("scheme", EVERY)
def test_the_confirm_is_flushed_when_nothing_else_is_due(cluster: Cluster) -> None:
    cluster.seed("a")
    beat = cluster.beat({"a": HOURLY})
    published = threading.Event()
    cluster.after_publish(lambda node, entry: published.set())
    beat.tick_until(published.is_set)
    # The tick that sent it has just ended.
    assert cluster.settled("a")


@pytest.mark.parametrize("scheme", ["sqlite", "redis+zset"])
def test_in_a_long_slice_no_confirm_waits_for_the_end(cluster: Cluster) -> None:
    names = [f"entry {number}" for number in range(12)]
    cluster.seed(*names)
    published: list[str] = []
    late: list[str] = []

    def slowly(node: str, entry: str) -> None:
        time.sleep(0.06)
        # What was sent two messages and more ago has waited for over 0.1 s.
        late.extend(name for name in published[:-2] if not cluster.settled(name))

    cluster.before_publish(slowly)
    cluster.after_publish(lambda node, entry: published.append(entry))
    beat = cluster.beat(dict.fromkeys(names, HOURLY))
    beat.tick_until(lambda: len(published) == len(names))
    assert late == []


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Somebody else writes to an embedded store: it answers reads, and no writes."""
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")
    finally:
        other.close()


@pytest.mark.parametrize("scheme", SERVED)
def test_an_outage_longer_than_the_ttl_resends_nothing(
    cluster: Cluster, wired_store: WiredStore, scheme: str, figure: Figure
) -> None:
    wires, urls = zip(*(wired_store() for _ in range(2)), strict=True)
    beats = [cluster.beat({"a": HOURLY}, distsched_url=url) for url in urls]
    senders: list[str] = []

    def after_the_message(node: str, entry: str) -> None:
        for wire in wires:
            wire.cut()
        senders.append(node)

    cluster.after_publish(after_the_message)
    cluster.seed("a", last_us=in_s(1.8))
    cluster.together(*beats)
    until(lambda: senders)
    time.sleep(2 * cluster.ttl_s)
    assert cluster.record("a").open  # type: ignore[union-attr]
    # The one that did not send is back first. It must give the other the time to come back and confirm.
    sender = [beat.node for beat in beats].index(senders[0])
    wires[1 - sender].mend()
    until(lambda: beats[1 - sender].inner.pool.trusted())
    time.sleep(0.3 * cluster.ttl_s)
    wires[sender].mend()
    until(lambda: cluster.settled("a"))
    figure.runs("store outage", scheme, len(cluster.sent()) - 1, 1, "runs sent again; cut off between send and confirm")
    assert len(cluster.sent()) == 1


@pytest.mark.parametrize("scheme", ["sqlite"])
def test_a_store_that_takes_no_writes_for_longer_than_the_ttl_resends_nothing(cluster: Cluster) -> None:
    path, cut, mended = cluster.driver.url.path[1:], threading.Event(), threading.Event()

    def lock() -> None:
        with locked(path):
            cut.set()
            mended.wait(20)

    locker = threading.Thread(target=lock)

    def after_the_message(node: str, entry: str) -> None:
        locker.start()
        cut.wait(10)

    cluster.after_publish(after_the_message)
    beats = [cluster.beat({"a": HOURLY}) for _ in range(2)]
    cluster.seed("a", last_us=in_s(1.8))
    cluster.together(*beats)
    assert cut.wait(10)
    time.sleep(2 * cluster.ttl_s)
    assert cluster.record("a").open  # type: ignore[union-attr]
    mended.set()
    until(lambda: cluster.settled("a"))
    locker.join()
    assert len(cluster.sent()) == 1


# The dead and the stuck


@pytest.mark.parametrize(
    ("scheme", "delivery", "death"),
    [
        *product(
            ("sqlite", "redis+zset"), ("at_least_once", "at_most_once"), ("before it is sent", "after it was sent")
        ),
        *product(("redis+scan", "etcd", "consul"), ("at_least_once", "at_most_once"), ("after it was sent",)),
    ],
)
def test_the_claim_of_a_dead_node_is_taken_over_once(
    cluster: Cluster, delivery: str, death: str, scheme: str, figure: Figure
) -> None:
    due = cluster.seed("a")
    first = cluster.beat({"a": HOURLY}, distsched_delivery=delivery)

    def die(node: str, entry: str) -> None:
        if node == first.node:
            raise Crash

    (cluster.before_publish if death == "before it is sent" else cluster.after_publish)(die)
    with pytest.raises(Crash):
        first.tick_until(lambda: False)
    second = cluster.started({"a": HOURLY}, distsched_delivery=delivery)
    until(lambda: cluster.settled("a"))
    if delivery == "at_least_once":
        figure.runs("at least once", scheme, not cluster.sent(), 1, "runs lost; their sender died after the claim")
    else:
        doubled = max(0, len(cluster.sent()) - 1)
        figure.runs("at most once", scheme, doubled, 1, "runs sent twice; their sender died after the claim")
    by_first = [1] if death == "after it was sent" else []
    by_second = [2] if delivery == "at_least_once" else []
    assert [sent.attempt for sent in cluster.sent()] == by_first + by_second
    assert {sent.task_id for sent in cluster.sent()} <= {task_id(cluster.namespace, "a", due)}
    # It counts when the answer has reached it.
    until(lambda: second.counts["possibly lost"] == (1 if delivery == "at_most_once" else 0))


@pytest.mark.parametrize("scheme", EVERY)
def test_a_publish_that_hangs_loses_its_share_in_ttl_and_a_second(
    cluster: Cluster, scheme: str, figure: Figure
) -> None:
    names = [f"entry {number}" for number in range(20)]
    hung_at: list[float] = []
    over = threading.Event()
    beats = [cluster.beat(dict.fromkeys(names, HOURLY)) for _ in range(2)]

    def hang(node: str, entry: str) -> None:
        if node == beats[0].node:
            hung_at.append(time.monotonic())
            over.wait(30)
            raise Crash

    cluster.before_publish(hang)
    cluster.seed(*names, last_us=in_s(1.8))
    cluster.together(*beats)
    until(lambda: 0 < len(beats[0].inner.dispatch.records.share) < len(names))
    until(lambda: len(cluster.sent()) >= len(names), why=cluster.sent)
    took_s = time.monotonic() - hung_at[0]
    over.set()
    assert sorted(sent.entry for sent in cluster.sent()) == sorted(names)
    assert {sent.node for sent in cluster.sent()} == {beats[1].node}
    figure.seconds("trust", scheme, took_s, cluster.ttl_s + 1, "its share sent elsewhere; a message that hangs")
    assert took_s <= cluster.ttl_s + 1


@pytest.mark.parametrize("scheme", SERVED)
def test_a_node_without_the_store_loses_its_share_in_ttl_and_a_second(
    cluster: Cluster, wired_store: WiredStore, scheme: str, figure: Figure
) -> None:
    names = [f"entry {number}" for number in range(20)]
    wire, url = wired_store()
    entries = dict.fromkeys(names, HOURLY)
    beats = [cluster.beat(entries, distsched_url=url), cluster.beat(entries)]
    due = cluster.seed(*names, last_us=in_s(4))
    cluster.together(*beats)
    until(lambda: 0 < len(beats[0].inner.dispatch.records.share) < len(names))
    time.sleep(max(0.0, (due - now_us()) / 1e6 - 0.3))
    assert cluster.sent() == []
    wire.freeze()
    cut_off_at = time.monotonic()
    until(lambda: len(cluster.sent()) >= len(names), why=cluster.sent)
    took_s = time.monotonic() - cut_off_at
    assert sorted(sent.entry for sent in cluster.sent()) == sorted(names)
    assert {sent.node for sent in cluster.sent()} == {beats[1].node}
    within_s = cluster.ttl_s + (1.5 if scheme == "etcd" else 1.0)
    figure.seconds("no store", scheme, took_s, within_s, "its share sent elsewhere; its store does not answer")
    assert took_s <= within_s


@pytest.mark.parametrize("scheme", ["sqlite", "redis+zset"])
def test_a_node_past_its_trusted_time_does_not_send(cluster: Cluster) -> None:
    cluster.seed("a", "b")
    first = cluster.beat({"a": HOURLY, "b": HOURLY})
    held: list[str] = []
    goes_on = threading.Event()

    def hold(node: str, entry: str) -> None:
        if node == first.node and not held:
            held.append(entry)
            goes_on.wait(30)

    cluster.before_publish(hold)
    first.start()
    until(lambda: held)
    before = first.inner.pool.view.me
    cluster.started({"a": HOURLY, "b": HOURLY, **MORE})
    until(lambda: {sent.entry for sent in cluster.sent()} == {"a", "b"})
    goes_on.set()
    until(lambda: first.ready and first.inner.pool.view.me != before)
    until(lambda: cluster.settled("a", "b"))
    (other,) = {"a", "b"} - set(held)
    # What it was writing when it stopped has gone out too; of the rest of its slice nothing has.
    assert [(sent.node == first.node, sent.attempt) for sent in cluster.sent(other)] == [(False, 2)]


class Halting(Clock):
    """Stands still while `halted_at` is set: a node that believes for ever that it is trusted."""

    halted_at: float | None = None

    def elapsed(self) -> float:
        return super().elapsed() if self.halted_at is None else self.halted_at


@pytest.mark.parametrize("scheme", EVERY)
def test_burying_voids_the_fence(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, scheme: str, figure: Figure
) -> None:
    clock = Halting()
    last = in_s(1)
    due = cluster.seed("a", last_us=last)
    victim = cluster.beat({"a": HOURLY})
    monkeypatch.setattr(node_module, "Clock", lambda: clock)
    victim.tick_until(lambda: victim.ready)
    monkeypatch.undo()
    me = victim.inner.pool.view.me
    tick_until_just_before(victim, due)
    time.sleep(0.06)
    clock.halted_at = clock.elapsed()
    # The gravedigger does not know the entry, so nobody else touches its record.
    cluster.started(MORE)
    until(lambda: me not in cluster.driver.members())
    assert victim.inner.pool.trusted()
    victim.tick()
    assert cluster.record("a").last == last  # type: ignore[union-attr]
    assert cluster.sent() == []
    clock.halted_at = None
    victim.tick_until(lambda: cluster.sent() and cluster.settled("a"))
    what = "runs claimed by two; a dead node that takes itself for a member"
    figure.runs("one claim", scheme, len(cluster.sent()) - 1, 1, what)
    assert [(sent.instant_us, sent.attempt) for sent in cluster.sent()] == [(due, 1)]
