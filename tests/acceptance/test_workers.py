"""``celery worker -B`` on every worker is a way to run."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.acceptance.cluster import Cluster
from tests.acceptance.queue import Queue

# The queue of the messages is left alone, to be read here.
WORKER = ("worker", "-B", "-l", "INFO", "-n", "{name}@%h", "-c", "1", "-Q", "another")


def test_two_workers_share_the_schedule_and_one_hands_over_when_it_ends(
    store_url: Callable[[str], str], queue: Queue
) -> None:
    # At the default TTL, 5 s, a worker that left without a word would be missed for far longer than a second.
    with Cluster(store_url("sqlite"), queue, entries=60) as cluster:
        leaving, staying = cluster.start(2, WORKER)
        began = time.time()
        time.sleep(2)
        cluster.wait_until_sending(leaving)
        terminated = cluster.terminate(leaving)
        gone = time.time() + 0.1
        time.sleep(2)
        ended = time.time()
        cluster.settle(began, ended)
        cluster.judge(began, ended)
        assert not cluster.sent.doubled(), f"{cluster.sent.doubled()}{cluster.story()}"
        assert max(cluster.sent.delays(terminated.at, terminated.until + 1.5).values()) <= 1.0, cluster.story()
        assert leaving.exit_code == 0, cluster.story()
        assert "Traceback" not in leaving.said(), cluster.story()
        late = [message for message in queue.messages if message.pid == leaving.beat_pid and message.seen_at > gone]
        assert not late, f"its beat goes on without it: {late}{cluster.story()}"
        assert staying.exit_code is None, cluster.story()
