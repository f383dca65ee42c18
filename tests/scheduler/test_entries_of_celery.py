"""An entry with keys of ours is an entry of Celery's like any other, to whoever has got it from the schedule."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from celery.beat import ScheduleEntry, Scheduler

from celery_distsched import DistributedScheduler
from tests.scheduler.cluster import HOURLY, Cluster

OURS = {"catch_up": "all", "catch_up_window": 60, "enabled": False, "jitter": 3}


@pytest.fixture
def scheduler(cluster: Cluster) -> DistributedScheduler:
    return cluster.beat({"a": {**HOURLY, **OURS, "args": (1,), "options": {"queue": "q"}}}).scheduler


@pytest.fixture
def stock(cluster: Cluster) -> Any:
    """The same entry under Celery's own scheduler."""
    scheduler = Scheduler(cluster.app({"a": {**HOURLY, "args": (1,), "options": {"queue": "q"}}}), lazy=True)
    scheduler.setup_schedule()
    scheduler.merge_inplace(scheduler.app.conf.beat_schedule)
    return scheduler.schedule["a"]


def enabled(scheduler: DistributedScheduler) -> bool:
    return scheduler._plan()["a"].enabled


def test_it_holds_what_celery_s_own_holds(scheduler: DistributedScheduler, stock: Any) -> None:
    entry = scheduler.schedule["a"]
    assert type(entry) is type(stock) is ScheduleEntry
    assert entry == stock
    assert dict(entry).keys() == dict(stock).keys()


def test_the_next_of_it_is_made_as_celery_s_own(scheduler: DistributedScheduler, stock: Any) -> None:
    entry = scheduler.schedule["a"]
    for one in (entry, stock):
        following = next(one)
        assert type(following) is ScheduleEntry
        assert following == one
        assert following.total_run_count == 1
        assert following.last_run_at >= one.last_run_at
        assert next(following).total_run_count == 2


def test_it_is_pickled_as_celery_s_own(scheduler: DistributedScheduler) -> None:
    entry = scheduler.schedule["a"]
    assert pickle.loads(pickle.dumps(entry)) == entry


def test_our_keys_stay_when_the_next_takes_its_place(scheduler: DistributedScheduler) -> None:
    scheduler.reserve(scheduler.schedule["a"])
    assert scheduler.schedule["a"].total_run_count == 1
    assert not enabled(scheduler)


def test_our_keys_go_when_the_entry_is_given_without_them(scheduler: DistributedScheduler) -> None:
    scheduler.update_from_dict({"a": HOURLY})
    assert enabled(scheduler)


def test_our_keys_go_with_the_entry(scheduler: DistributedScheduler) -> None:
    entry = scheduler.schedule.pop("a")
    scheduler._plan()
    scheduler.schedule["a"] = entry
    assert enabled(scheduler)


def test_what_is_wrong_with_an_entry_leaves_the_one_before_with_its_keys(scheduler: DistributedScheduler) -> None:
    scheduler.update_from_dict({"a": {**HOURLY, "colour": "red"}})
    assert not enabled(scheduler)
