"""A deploy changes the TTL: for its length beats of two live beside each other."""

from __future__ import annotations

import logging
import time

import pytest

from tests.scheduler.cluster import HOURLY, Cluster, until


@pytest.mark.parametrize("scheme", ["sqlite", "redis+zset", "redis+scan", "etcd", "consul"])
def test_nobody_is_called_dead_for_a_longer_ttl(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "celery_distsched")
    schedule = {f"entry {number}": HOURLY for number in range(20)}
    quick = cluster.beat(schedule, distsched_node_ttl=2.0)
    slow = cluster.beat(schedule, distsched_node_ttl=11.0)
    cluster.together(quick, slow)
    # The slow one renews every two seconds and a bit.
    over = time.monotonic() + 6
    until(lambda: time.monotonic() > over)
    assert "has been silent" not in caplog.text
    assert [beat.inner.pool.view.me.rpartition("#")[2] for beat in (quick, slow)] == ["1", "1"]
    slow.stop()
    slow.inner.heartbeat._progress.at = float("-inf")
    until(lambda: "has been silent for" in caplog.text, within_s=20)
    assert len(quick.inner.pool.view.ring.nodes) == 1
