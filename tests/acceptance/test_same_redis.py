"""Where the broker's queue and the ledger are in one Redis, nothing that happens to a beat doubles or loses a run."""

from __future__ import annotations

import time

import pytest

from tests.acceptance.cluster import Cluster, wait_for_a_burst
from tests.acceptance.outages import out_of_memory
from tests.acceptance.queue import Queue, RedisQueue
from tests.figures import Figure
from tests.same_redis.watched import FAST, Watch
from tests.servers import RedisServer

TTL_S = 2.0
KILLS = 8


@pytest.mark.parametrize("scheme", ["redis+zset", "redis+scan"])
def test_kills_in_the_middle_of_bursts_lose_nothing_and_double_nothing(
    queue: Queue, scheme: str, figure: Figure
) -> None:
    store = queue.url.replace("redis://", f"{scheme}://")
    with Cluster(store, queue, entries=60, ttl_s=TTL_S) as cluster:
        cluster.start(3)
        began = time.time()
        for _ in range(KILLS):
            wait_for_a_burst()
            cluster.kill(cluster.beats[-3])
            cluster.start()
        frozen = cluster.beats[-1]
        wait_for_a_burst()
        cluster.freeze(frozen, TTL_S + 1)
        ended = time.time() - 1
        cluster.settle(began, ended)
        sent, story = cluster.sent, cluster.story()
    assert "exactly once enqueued" in story
    what = f"runs lost or sent twice; {KILLS} beats killed in the middle of bursts, one frozen past the TTL"
    wrong = len(sent.lost(began, ended)) + len(sent.doubled())
    figure.runs("exactly once", scheme, wrong, len(sent.messages), what)
    assert not sent.lost(began, ended), story
    assert not sent.doubled(), f"{sent.doubled()}{story}"
    assert not sent.strays(), f"{sent.strays()}{story}"
    assert not sent.confused(), f"{sent.confused()}{story}"


def test_a_redis_that_was_out_of_memory_claims_and_pushes_in_one_call_again() -> None:
    with RedisServer() as server:
        watch, queue = Watch(server.url()), RedisQueue(server.url())
        with Cluster(server.url(), queue, entries=60, ttl_s=TTL_S) as cluster:
            beats = cluster.start(2)
            began = time.time()
            for _ in range(2):
                wait_for_a_burst()
                with cluster.during(out_of_memory(server)):
                    time.sleep(TTL_S + 1)
                cluster.wait_until_each_sends(beats, within_s=15)
            before = watch.ways()
            wait_for_a_burst()
            cluster.kill(beats[0])
            ended = time.time()
            cluster.settle(began, ended)
            sent, story = cluster.sent, cluster.story()
            outages = len(cluster.outages)
        watch.close()
    assert not sent.lost(began, ended), story
    assert not sent.doubled(), f"{sent.doubled()}{story}"
    assert {way for ways in before.values() for way in ways} == {FAST}, story
    assert len(beats[1].lines("the store does not answer")) == outages, story
    assert len(beats[1].lines("the store answers again")) == outages, story
