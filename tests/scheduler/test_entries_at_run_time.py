"""Entries that come, go and change at run time, and the one that Celery adds itself."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from celery.schedules import schedule

from tests.scheduler.cluster import HOUR_US, HOURLY, Beat, Cluster, in_s, now_us

pytestmark = pytest.mark.parametrize("scheme", ["sqlite", "redis+zset"])


# Changes at run time


SOON: dict[str, Any] = {**HOURLY, "schedule": 0.5}


def by_add(beat: Beat) -> None:
    beat.scheduler.add(name="b", **SOON)


def by_update(beat: Beat) -> None:
    beat.scheduler.update_from_dict({"b": SOON})


def by_the_setter(beat: Beat) -> None:
    beat.scheduler.schedule = {
        **beat.scheduler.schedule,
        "b": beat.scheduler.Entry(name="b", app=beat.app, **SOON),
    }


def by_merge(beat: Beat) -> None:
    beat.scheduler.merge_inplace({"a": HOURLY, "b": SOON})


def by_item(beat: Beat) -> None:
    beat.scheduler.schedule["b"] = beat.scheduler.Entry(name="b", app=beat.app, **SOON)


@pytest.mark.parametrize("added", [by_add, by_update, by_the_setter, by_merge, by_item])
def test_an_entry_added_at_run_time_is_noticed(cluster: Cluster, added: Callable[[Beat], None]) -> None:
    beat = cluster.beat({"a": HOURLY})
    beat.tick_until(lambda: beat.ready)
    added(beat)
    beat.tick_until(cluster.sent)
    assert {sent.entry for sent in cluster.sent()} == {"b"}


@pytest.mark.parametrize(
    "removed",
    [
        lambda beat: beat.scheduler.merge_inplace({"a": HOURLY}),
        lambda beat: beat.scheduler.schedule.pop("b"),
        lambda beat: setattr(beat.scheduler, "schedule", {"a": beat.scheduler.schedule["a"]}),
    ],
    ids=["merge_inplace", "pop", "setter"],
)
def test_an_entry_removed_at_run_time_is_not_sent(cluster: Cluster, removed: Callable[[Beat], Any]) -> None:
    due = cluster.seed("a", "b", last_us=in_s(0.5))
    beat = cluster.beat({"a": HOURLY, "b": HOURLY})
    beat.tick_until(lambda: beat.ready)
    removed(beat)
    beat.tick_until(cluster.sent)
    over = due + 200_000
    beat.tick_until(lambda: now_us() > over)
    assert [sent.entry for sent in cluster.sent()] == ["a"]


def test_an_entry_changed_at_run_time_is_sent_as_changed(cluster: Cluster) -> None:
    cluster.seed("a", last_us=in_s(0.7))
    beat = cluster.beat({"a": HOURLY})
    beat.tick_until(lambda: beat.ready)
    beat.scheduler.update_from_dict({"a": {**HOURLY, "args": ("new",)}})
    beat.tick_until(cluster.sent)
    assert [sent.args for sent in cluster.sent()] == [["new"]]


# Celery's own entry


def test_celerys_backend_cleanup_is_there(cluster: Cluster) -> None:
    beat = cluster.beat({"a": HOURLY}, result_expires=3600)
    assert beat.scheduler.schedule["celery.backend_cleanup"].task == "celery.backend_cleanup"
    # Four in the morning, 20 hours ago or less: of yesterday's it knows nothing, so it is due.
    cluster.seed("celery.backend_cleanup", last_us=now_us() - 25 * HOUR_US)
    beat.tick_until(cluster.sent)
    assert [sent.entry for sent in cluster.sent()] == ["celery.backend_cleanup"]


def test_an_own_backend_cleanup_is_kept(cluster: Cluster) -> None:
    beat = cluster.beat({"celery.backend_cleanup": {**HOURLY, "task": "celery.backend_cleanup"}}, result_expires=3600)
    assert beat.scheduler.schedule["celery.backend_cleanup"].schedule == schedule(timedelta(hours=1))


def test_without_results_that_expire_there_is_no_cleanup(cluster: Cluster) -> None:
    assert set(cluster.beat({"a": HOURLY}, result_expires=None).scheduler.schedule) == {"a"}
