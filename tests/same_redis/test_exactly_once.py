"""Whatever befalls the beats, each run is in the queue once: none is lost, and none is there twice."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator

import pytest

from tests.acceptance.cluster import wait_for_a_burst
from tests.acceptance.queue import Queue, RedisQueue
from tests.same_redis.storm import IN_FORCE, NOT_IN_FORCE, TTL_S, Cluster, ConsumedQueue
from tests.servers import RedisServer, Server
from tests.wire import Wire

KILLS = 40

# Whole beats, in real time. One kill after the other at its most unkind moment is in `test_kills`.
pytestmark = pytest.mark.long


@pytest.fixture
def queue(url: str) -> Queue:
    """The list is in the same database as the ledger."""
    return RedisQueue(url)


@pytest.fixture
def cluster(queue: Queue) -> Iterator[Cluster]:
    with Cluster(queue) as cluster:
        yield cluster


@pytest.mark.timeout(240)
def test_kills_at_random_moments(queue: Queue) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    with Cluster(queue, entries=300) as cluster:
        cluster.start(4)
        began = time.time()
        cluster.storm(KILLS, random.Random(seed))
        cluster.judge_exactly_once(began)
        assert NOT_IN_FORCE not in cluster.story()


def test_beats_that_are_frozen_past_the_ttl(cluster: Cluster) -> None:
    beats = cluster.start(3)
    began = time.time()
    for beat in beats[:2]:
        wait_for_a_burst()
        cluster.freeze(beat, TTL_S + 1)
    cluster.judge_exactly_once(began)


@pytest.mark.parametrize("fault", [Wire.drop_replies, Wire.cut, Wire.freeze], ids=["lost replies", "cut", "silence"])
def test_one_beat_loses_its_store_in_the_middle_of_bursts(
    cluster: Cluster, redis_server: RedisServer, wire_to: Callable[[Server], Wire], fault: Callable[[Wire], None]
) -> None:
    wire = wire_to(redis_server)
    cluster.start()
    cluster.change(distsched_url=redis_server.url(port=wire.port, path="/7"))
    (wired,) = cluster.start()
    began = time.time()
    for outage_s in (0.3, TTL_S + 1):
        cluster.wait_until_sending(wired)
        wait_for_a_burst()
        fault(wire)
        time.sleep(outage_s)
        wire.mend()
        time.sleep(1.2)
    cluster.judge_exactly_once(began)
    assert NOT_IN_FORCE not in wired.said(), cluster.story()


@pytest.mark.parametrize("fault", [Wire.drop_replies, Wire.cut], ids=["lost replies", "cut"])
def test_all_beats_lose_store_and_broker_in_the_middle_of_bursts(
    queue: Queue, redis_server: RedisServer, wire_to: Callable[[Server], Wire], fault: Callable[[Wire], None]
) -> None:
    wire = wire_to(redis_server)
    wired = redis_server.url(port=wire.port, path="/7")
    with Cluster(queue, store=wired, broker_url=wired) as cluster:
        cluster.start(2)
        began = time.time()
        for outage_s in (0.3, TTL_S + 1):
            wait_for_a_burst()
            fault(wire)
            time.sleep(outage_s)
            wire.mend()
            time.sleep(2)
        cluster.judge_exactly_once(began)


def test_the_redis_is_killed_and_comes_back_with_its_ledger_and_an_empty_queue() -> None:
    # By `everysec`, Redis's default, it may answer before it writes to its file, and forget claim and message together.
    with RedisServer("--appendonly", "yes", "--appendfsync", "always") as server:
        queue = ConsumedQueue(server.url(path="/0"))
        with Cluster(queue) as cluster:
            beats = cluster.start(2)
            began = time.time()
            for _ in range(2):
                wait_for_a_burst()
                server.kill()
                server.start()
                back = (time.time() // 1 + 1) * 1_000_000
                queue.wait_for(
                    lambda messages, back=back: any(m.instant_us >= back for m in messages),  # type: ignore[misc]
                    within_s=15,
                    what="anything sent after the restart",
                )
                time.sleep(1)
            cluster.judge_exactly_once(began)
            for beat in beats:
                assert beat.said().rfind(IN_FORCE) > beat.said().rfind(NOT_IN_FORCE), cluster.story()
