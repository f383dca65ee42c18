"""Where the broker's queue and the ledger are in one Redis, nothing that happens to a beat doubles or loses a run."""

from __future__ import annotations

import time

import pytest

from tests.acceptance.cluster import Cluster, wait_for_a_burst
from tests.acceptance.queue import Queue
from tests.figures import Figure

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
        cluster.settle(began, ended, within_s=TTL_S + 3)
        sent, story = cluster.sent, cluster.story()
    assert "exactly once enqueued" in story
    what = f"runs lost or sent twice; {KILLS} beats killed in the middle of bursts, one frozen past the TTL"
    wrong = len(sent.lost(began, ended)) + len(sent.doubled())
    figure.runs("exactly once", scheme, wrong, len(sent.messages), what)
    assert not sent.lost(began, ended), story
    assert not sent.doubled(), f"{sent.doubled()}{story}"
    assert not sent.strays(), f"{sent.strays()}{story}"
    assert not sent.confused(), f"{sent.confused()}{story}"
