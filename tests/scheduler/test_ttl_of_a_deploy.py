"""A deploy changes the TTL: for its length beats of two live beside each other."""

from __future__ import annotations

import logging
import time

import pytest

from tests.scheduler.cluster import HOURLY, Cluster, until


@pytest.mark.parametrize("scheme", ["sqlite", "redis+zset", "redis+scan", "etcd", "consul"])
def test_nobody_is_called_dead_for_a_longer_ttl(
    cluster: Cluster, scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "celery_distsched")
    schedule = {f"entry {number}": HOURLY for number in range(20)}
    # The slow one renews five times in its TTL: less than once in that of the other.
    ttl_s = 2.0 if scheme == "etcd" else 1.0
    quick, slow = (cluster.beat(schedule, distsched_node_ttl=each) for each in (ttl_s, 6 * ttl_s))
    cluster.together(quick, slow)
    over = time.monotonic() + 2.5 * ttl_s
    until(lambda: time.monotonic() > over)
    assert "has been silent" not in caplog.text
    assert [beat.inner.pool.view.me.rpartition("#")[2] for beat in (quick, slow)] == ["1", "1"]
