"""A broker that can be reached, and takes nothing from anybody: it is away, until it takes messages again."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.scheduler.cluster import Beat, Cluster, until
from tests.servers import RabbitServer, RedisServer, Server
from tests.wire import Wire

NewCluster = Callable[..., Cluster]

pytestmark = pytest.mark.parametrize("scheme", ["sqlite"])


@contextmanager
def alarm(server: RabbitServer) -> Iterator[None]:
    """RabbitMQ takes its memory for full inside."""
    try:
        server.control("set_vm_memory_high_watermark", "absolute", "1MB")
        yield
    finally:
        server.control("set_vm_memory_high_watermark", "0.6")


def ticks_for(beat: Beat, seconds: float) -> None:
    until_s = time.monotonic() + seconds
    beat.tick_until(lambda: time.monotonic() > until_s, seconds + 10)


@pytest.mark.parametrize("fast", [True, False])
def test_a_redis_that_has_become_a_replica_is_left_for_whoever_took_its_place(
    new_cluster: NewCluster, wire_to: Callable[[Server], Wire], fast: bool
) -> None:
    with RedisServer() as old, RedisServer() as new:
        wire = wire_to(old)
        cluster = new_cluster(broker=old.url(port=wire.port), read_from=new.url())
        beat = cluster.beat({"a": {"task": "t", "schedule": 0.5}}, distsched_fast_publish=fast)
        beat.tick_until(lambda: beat.counts["accepted"] >= 2)
        assert old.call("REPLICAOF", new.host, str(new.port)) == b"+OK"
        wire.lead_to(new.port)
        beat.tick_until(lambda: cluster.sent("a"), 10)


@pytest.mark.parametrize("fast", [True, False])
def test_while_a_redis_has_no_memory_nothing_is_claimed_and_then_the_newest_is_sent(
    new_cluster: NewCluster, caplog: pytest.LogCaptureFixture, fast: bool
) -> None:
    with RedisServer() as server:
        cluster = new_cluster(broker=server.url())
        beat = cluster.beat({"a": {"task": "t", "schedule": 1.0, "catch_up": "latest"}}, distsched_fast_publish=fast)
        beat.tick_until(lambda: beat.counts["accepted"] >= 2)
        assert server.call("CONFIG", "SET", "maxmemory", "1") == b"+OK"
        ticks_for(beat, 4)
        record = cluster.record("a")
        assert record is not None
        assert len(record.open) <= 1
        errors, before = caplog.text.count("takes nothing"), beat.counts["accepted"]
        assert server.call("CONFIG", "SET", "maxmemory", "0") == b"+OK"
        back_at = time.time()
        beat.tick_until(lambda: beat.counts["accepted"] > before + 3, 10)
        instants = [one.instant_us for one in cluster.sent("a")]
        assert len(instants) == len(set(instants))
        assert max(instants) > (back_at - 2) * 1e6, "what is newest is sent"
        assert errors == 1, "an outage is told once"


@pytest.mark.parametrize("fast", [True, False])
def test_an_alarm_of_rabbitmq_makes_one_more_copy_of_a_run_at_most(new_cluster: NewCluster, fast: bool) -> None:
    with RabbitServer() as server:
        cluster = new_cluster(broker=server.url())
        beat = cluster.beat(
            {f"a{number}": {"task": "t", "schedule": 1.0} for number in range(5)}, distsched_fast_publish=fast
        )
        beat.tick_until(lambda: beat.counts["accepted"] >= 5)
        with alarm(server):
            ticks_for(beat, 7)
            accepted = beat.counts["accepted"]
        beat.tick_until(lambda: beat.counts["accepted"] > accepted + 5, 20)
        until(lambda: len(cluster.sent()) >= beat.counts["accepted"], 10)
        copies = Counter(one.task_id for one in cluster.sent())
        assert max(copies.values()) <= 2, copies
