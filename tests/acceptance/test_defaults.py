"""What a user gets who sets nothing but the store: a gap is not a misfire."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.acceptance.cluster import Cluster, wait_for_a_burst
from tests.acceptance.queue import Queue

DEFAULT_TTL_S = 5.0


def test_a_kill_and_an_orderly_end_at_the_default_settings_lose_nothing(
    store_url: Callable[[str], str], queue: Queue
) -> None:
    bound_s = DEFAULT_TTL_S + 1.0
    with Cluster(store_url("redis+zset"), queue, entries=60) as cluster:
        victim, leaving, _ = cluster.start(3)
        began = time.time()
        wait_for_a_burst()
        killed = cluster.kill(victim)
        time.sleep(bound_s + 0.5)
        cluster.wait_until_sending(leaving)
        terminated = cluster.terminate(leaving)
        time.sleep(2)
        ended = time.time()
        cluster.settle(began, ended, within_s=DEFAULT_TTL_S)
        cluster.judge(began, ended)
        assert max(cluster.sent.delays(killed.at, killed.at + bound_s).values()) <= bound_s, cluster.story()
        assert max(cluster.sent.delays(terminated.at, terminated.at + 2).values()) <= 1.0, cluster.story()
