"""Nothing is confirmed that the broker did not take, and nothing is sent twice that need not be."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from celery_distsched.message import task_id
from tests.figures import Figure
from tests.scheduler.cluster import HOURLY, Cluster, in_s, until
from tests.servers import RabbitServer, RedisServer
from tests.wire import Wire

STORES = ("sqlite", "redis+zset")
EVERY = (*STORES, "redis+scan", "etcd", "consul")

NewCluster = Callable[..., Cluster]
NewWire = Callable[..., Wire]


@pytest.fixture
def broker(redis_server: RedisServer, wire_to: NewWire) -> Wire:
    """The way to a Redis broker."""
    return wire_to(redis_server)


@pytest.fixture
def wired(new_cluster: NewCluster, broker: Wire, redis_server: RedisServer) -> Cluster:
    """A cluster whose broker is at the end of that wire."""
    return new_cluster(
        broker=redis_server.url(port=broker.port, path="/7"), read_from=redis_server.url(path="/7"), ttl_s=2.0
    )


@pytest.mark.parametrize("scheme", EVERY)
@pytest.mark.parametrize("delivery", ["at_least_once", "at_most_once"])
def test_a_broker_that_refuses_gets_each_message_once_when_it_is_back(
    wired: Cluster, broker: Wire, delivery: str, scheme: str, figure: Figure
) -> None:
    due = wired.seed("a")
    beat = wired.beat({"a": HOURLY, "later": HOURLY}, distsched_delivery=delivery)
    broker.cut()
    beat.tick_until(lambda: not beat.inner.dispatch._outbox.open)
    broker.mend()
    beat.tick_until(lambda: wired.sent() and wired.settled("a"))
    figure.runs("broker outage", scheme, not wired.sent(), 1, f"runs lost; the broker refused, {delivery}")
    assert [(sent.instant_us, sent.attempt) for sent in wired.sent()] == [(due, 1)]
    assert beat.counts["possibly lost"] == 0


@pytest.mark.parametrize("scheme", EVERY)
def test_while_the_broker_refuses_nothing_new_is_claimed(
    wired: Cluster, broker: Wire, scheme: str, figure: Figure
) -> None:
    wired.seed("a")
    last = in_s(1)
    later = [f"later {number}" for number in range(20)]
    wired.seed(*later, last_us=last)
    beat = wired.beat(dict.fromkeys(["a", *later], HOURLY))
    broker.cut()
    over = time.monotonic() + 1.5
    beat.tick_until(lambda: time.monotonic() > over)
    assert not beat.inner.dispatch._outbox.open
    assert {record and record.last for record in map(wired.record, later)} == {last}
    broker.mend()
    beat.tick_until(lambda: len(wired.sent()) > len(later) and wired.settled("a", *later))
    sent = sorted((sent.entry, sent.attempt) for sent in wired.sent())
    lost = {"a", *later} - {entry for entry, _ in sent}
    figure.runs("broker outage", scheme, len(lost), 1 + len(later), "runs lost; they fell due while the broker refused")
    assert sent == sorted((name, 1) for name in ["a", *later])


@pytest.mark.parametrize("scheme", STORES)
@pytest.mark.parametrize("delivery", ["at_least_once", "at_most_once"])
def test_a_lost_answer_of_the_broker_is_sent_again_only_at_least_once(
    wired: Cluster, broker: Wire, delivery: str
) -> None:
    wired.seed("warm up")
    due = wired.seed("a", last_us=in_s(1))
    beat = wired.beat({"warm up": HOURLY, "a": HOURLY}, distsched_delivery=delivery)
    beat.tick_until(lambda: wired.sent("warm up"))
    broker.drop_replies()
    beat.tick_until(lambda: beat.counts["unknown"])
    broker.mend()
    beat.tick_until(lambda: wired.settled("a"))
    attempts = [1, 2] if delivery == "at_least_once" else [1]
    assert [sent.attempt for sent in wired.sent("a")] == attempts
    assert {sent.task_id for sent in wired.sent("a")} == {task_id(wired.namespace, "a", due)}
    assert beat.counts["possibly lost"] == (0 if delivery == "at_least_once" else 1)


@pytest.mark.parametrize("scheme", STORES)
def test_an_amqp_black_hole_is_not_confirmed(
    rabbit_server: RabbitServer, wire_to: NewWire, new_cluster: NewCluster
) -> None:
    wire = wire_to(rabbit_server)
    cluster = new_cluster(broker=rabbit_server.url(port=wire.port), read_from=rabbit_server.url(), ttl_s=2.0)
    cluster.seed("warm up")
    due = cluster.seed("a", last_us=in_s(1.5))
    beat = cluster.beat({"warm up": HOURLY, "a": HOURLY})
    beat.tick_until(lambda: cluster.sent("warm up"))
    wire.freeze()
    beat.tick_until(lambda: beat.counts["unknown"])
    assert list(cluster.record("a").open) == [due]  # type: ignore[union-attr]
    assert cluster.sent("a") == []
    # With the connection its bytes are gone too, which would otherwise arrive late.
    wire.cut()
    wire.mend()
    beat.tick_until(lambda: cluster.settled("a"))
    assert [(sent.task_id, sent.attempt) for sent in cluster.sent("a")] == [(task_id(cluster.namespace, "a", due), 2)]


@pytest.mark.parametrize("scheme", ["sqlite"])
def test_a_connection_that_is_reset_before_anybody_has_looked_at_it_ends_no_beat(
    rabbit_server: RabbitServer, wire_to: NewWire, new_cluster: NewCluster
) -> None:
    wire = wire_to(rabbit_server)
    cluster = new_cluster(broker=rabbit_server.url(port=wire.port), read_from=rabbit_server.url(), ttl_s=2.0)
    cluster.seed("warm up")
    due = cluster.seed("a", last_us=in_s(3))
    beat = cluster.beat({"warm up": HOURLY, "a": HOURLY})
    beat.tick_until(lambda: cluster.sent("warm up") and cluster.settled("warm up"))
    # As the probe does when the broker is back, and then it goes again.
    beat.scheduler.broker.drop()
    beat.scheduler.broker.connect()
    wire.cut()
    wire.mend()
    beat.tick_until(lambda: cluster.sent("a") and cluster.settled("a"))
    assert [(sent.task_id, sent.attempt) for sent in cluster.sent("a")] == [(task_id(cluster.namespace, "a", due), 1)]


@pytest.mark.parametrize("scheme", ["sqlite"])
@pytest.mark.parametrize("fault", ["frozen", "cut"])
@pytest.mark.parametrize("kind", ["redis_server", "rabbit_server"])
def test_an_attempt_at_a_dead_broker_takes_half_a_ttl_at_most(
    request: pytest.FixtureRequest, wire_to: NewWire, new_cluster: NewCluster, kind: str, fault: str
) -> None:
    server = request.getfixturevalue(kind)
    wire = wire_to(server)
    cluster = new_cluster(broker=server.url(port=wire.port), ttl_s=2.0)
    cluster.seed("a")
    beat = cluster.beat({"a": HOURLY})
    (wire.freeze if fault == "frozen" else wire.cut)()
    ticks: list[float] = []

    def timed() -> bool:
        began = time.monotonic()
        beat.tick()
        ticks.append(time.monotonic() - began)
        return bool(beat.counts["refused"]) and ticks[-1] > 0.2

    over = time.monotonic() + 1.5
    until(lambda: timed() or time.monotonic() > over)
    assert beat.counts["refused"]
    assert max(ticks) <= cluster.ttl_s / 2 + 0.2


@pytest.mark.parametrize(("scheme", "fault"), [("sqlite", "cut"), *((scheme, "frozen") for scheme in EVERY)])
def test_a_node_without_the_broker_loses_its_share(
    wired: Cluster, broker: Wire, fault: str, scheme: str, figure: Figure
) -> None:
    names = [f"entry {number}" for number in range(20)]
    way, straight = wired.broker, wired.read_from
    wired.broker = straight
    beats = [wired.beat(dict.fromkeys(names, HOURLY)) for _ in range(2)]
    wired.seed(*names, last_us=in_s(1.8))
    wired.together(*beats)
    until(lambda: 0 < len(beats[0].inner.dispatch.records.share) < len(names))
    # It connects by the wire from now on; on a Redis store it has looked already whether its broker is the same Redis.
    beats[0].app.conf.broker_write_url = way
    beats[0].scheduler.broker.drop()
    (broker.freeze if fault == "frozen" else broker.cut)()
    until(lambda: wired.sent())
    began = time.monotonic()
    until(lambda: len(wired.sent()) >= len(names), why=wired.sent)
    took_s = time.monotonic() - began
    assert sorted({sent.entry for sent in wired.sent()}) == sorted(names)
    assert {sent.node for sent in wired.sent()} == {beats[1].node}
    figure.seconds("no broker", scheme, took_s, wired.ttl_s + 1, f"its share sent elsewhere; its broker is {fault}")
    assert took_s <= wired.ttl_s + 1
