"""What the log tells of late runs and of a beat that leaves, and what is forgotten of entries that are removed."""

from __future__ import annotations

import logging

import pytest

from celery_distsched.drivers import StoreUrl, open_driver
from celery_distsched.errors import ConfigError
from tests.scheduler.cluster import HOURLY, Cluster, in_s

pytestmark = pytest.mark.parametrize("scheme", ["redis+zset"])


def test_late_runs_and_what_a_beat_has_sent_are_told(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "celery_distsched")
    cluster.seed("late", last_us=in_s(-5))
    cluster.seed("in time", last_us=in_s(2))
    beat = cluster.beat({"late": HOURLY, "in time": HOURLY})
    beat.tick_until(lambda: cluster.settled("late", "in time"))
    beat.close()
    (told,) = [line for line in caplog.messages if "run(s) late" in line]
    assert "'late': claiming 1 run(s) late" in told
    (left,) = [line for line in caplog.messages if "has left" in line]
    assert "2 sent, 0 sent again, 0 taken over, 0 skipped, 0 possibly lost" in left


def test_of_entries_that_are_removed_no_recipe_is_kept(cluster: Cluster) -> None:
    names = [f"passing {number}" for number in range(20)]
    beat = cluster.beat(dict.fromkeys(["stays", *names], HOURLY), broker_url=cluster.url.replace("+zset", ""))
    cluster.seed("stays", *names)
    beat.tick_until(lambda: cluster.settled("stays", *names))
    fast_way = beat.inner.dispatch._fast_way
    assert set(fast_way._publisher._recipes) >= set(names)
    for name in names:
        del beat.scheduler.schedule[name]
    beat.tick()
    assert set(fast_way._publisher._recipes) == {"stays"}


def test_a_path_with_a_nul_is_refused(cluster: Cluster) -> None:
    url = StoreUrl.parse("sqlite:///a%00b.sqlite3")
    with pytest.raises(ConfigError, match="NUL"):
        open_driver(url, namespace="n", ttl_s=5.0, timeout_s=1.0, options={})
