"""What a user gets who sets nothing but the store: a gap is not a misfire."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.acceptance.cluster import Cluster, wait_for_a_burst
from tests.acceptance.queue import Queue
from tests.figures import Figure

DEFAULT_TTL_S = 5.0


def test_a_kill_and_an_orderly_end_at_the_default_settings_lose_nothing(
    store_url: Callable[[str], str], queue: Queue, figure: Figure
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
        cluster.settle(began, ended)
        cluster.judge(began, ended)
        failover_s = max(cluster.sent.delays(killed.at, killed.at + bound_s).values())
        handover_s = max(cluster.sent.delays(terminated.at, terminated.at + 2).values())
        figure.seconds("failover", "redis+zset", failover_s, bound_s, "at the default TTL, 5 s")
        figure.seconds("hand-over", "redis+zset", handover_s, 1.0, "at the default TTL, 5 s")
        assert failover_s <= bound_s, cluster.story()
        assert handover_s <= 1.0, cluster.story()
