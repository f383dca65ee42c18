"""An entry keeps its rhythm over restarts and edits, and costs no other entry anything."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery.schedules import crontab, schedule

from celery_distsched import cron
from celery_distsched.record import Record
from tests.scheduler.cluster import HOUR_US, HOURLY, Beat, Cluster, in_s, now_us, until

STORES = ("sqlite", "redis+zset")

pytestmark = pytest.mark.parametrize("scheme", STORES)


def every(seconds: float, **more: Any) -> dict[str, Any]:
    return {"task": "nobody.runs.it", "schedule": seconds, **more}


# State survives


@pytest.mark.parametrize("change", [{}, {"args": ("new",)}])
def test_a_countdown_survives_a_restart_and_an_edit(cluster: Cluster, change: dict[str, Any]) -> None:
    before = cluster.beat({"a": every(1.5)})
    before.tick_until(lambda: cluster.record("a"))
    anchor = cluster.record("a").last  # type: ignore[union-attr]
    before.close()
    # Half the countdown passes with nobody there.
    until(lambda: now_us() > anchor + 700_000)
    after = cluster.beat({"a": {**every(1.5), **change}})
    after.tick_until(cluster.sent)
    assert [sent.instant_us for sent in cluster.sent()] == [anchor + 1_500_000]
    assert cluster.sent()[0].args == list(change.get("args", []))


def test_a_new_interval_counts_from_the_last_run(cluster: Cluster) -> None:
    last = in_s(0) + HOUR_US - 1_000_000
    cluster.seed("a", last_us=last)
    before = cluster.beat({"a": every(3600.0)})
    before.tick_until(lambda: before.ready)
    before.close()
    after = cluster.beat({"a": every(1.5)})
    after.tick_until(cluster.sent)
    assert [sent.instant_us for sent in cluster.sent()] == [last + 1_500_000]


@pytest.mark.parametrize("kind", [crontab, cron])
def test_a_cron_that_has_run_is_not_run_again_by_a_restart_or_an_edit(cluster: Cluster, kind: Any) -> None:
    minute = datetime.now(timezone.utc).replace(second=0, microsecond=0)
    ran_at = round(minute.timestamp() * 1_000_000)
    cluster.seed("a", last_us=ran_at)
    daily = minute.strftime("%M %H * * *")
    for args in ((), ("edited",)):
        rule = cron(daily, tz="UTC") if kind is cron else crontab.from_string(daily)
        beat = cluster.beat({"a": {"task": "nobody.runs.it", "schedule": rule, "args": args}})
        assert every_now_and_then(cluster, beat) == []
        beat.close()
    assert cluster.record("a") == Record(ran_at)


def every_now_and_then(cluster: Cluster, beat: Beat) -> list[str]:
    """Let the beat run until it has sent a run of another entry, which was due all along; return what else it sent."""
    beat.scheduler.update_from_dict({"witness": every(0.05)})
    beat.tick_until(lambda: len({sent.instant_us for sent in cluster.sent("witness") if sent.node == beat.node}) >= 3)
    return [sent.entry for sent in cluster.sent() if sent.entry != "witness"]


def test_enabling_fires_nothing_of_the_past(cluster: Cluster) -> None:
    long_ago = now_us() - 10 * HOUR_US
    cluster.seed("a", last_us=long_ago)
    off = cluster.beat({"a": {**HOURLY, "enabled": False}})
    assert every_now_and_then(cluster, off) == []
    assert cluster.record("a").paused  # type: ignore[union-attr]
    off.close()
    enabled_at = now_us()
    on = cluster.beat({"a": {**HOURLY, "enabled": True}})
    assert every_now_and_then(cluster, on) == []
    record = cluster.record("a")
    assert record is not None
    assert not record.paused
    assert enabled_at <= record.last <= now_us()


def test_disabling_and_enabling_at_run_time(cluster: Cluster) -> None:
    beat = cluster.beat({"a": every(0.1)})
    beat.tick_until(lambda: len(cluster.sent("a")) >= 2)
    beat.scheduler.update_from_dict({"a": every(0.1, enabled=False)})
    beat.tick_until(lambda: cluster.record("a").paused)  # type: ignore[union-attr]
    off_at = cluster.record("a").last  # type: ignore[union-attr]
    while now_us() < off_at + 1_000_000:
        beat.tick()
    enabled_at = now_us()
    beat.scheduler.update_from_dict({"a": every(0.1)})
    already = len(cluster.sent("a"))
    beat.tick_until(lambda: len(cluster.sent("a")) >= already + 3)
    assert all(sent.instant_us >= enabled_at for sent in cluster.sent("a")[already:])
    assert all(sent.instant_us <= off_at for sent in cluster.sent("a")[:already])


# One bad entry


class Impossible(schedule):  # type: ignore[misc]
    """A schedule whose own arithmetic fails."""

    def is_due(self, last_run_at: Any) -> Any:
        raise ZeroDivisionError("a schedule of somebody's own")


def test_a_bad_entry_costs_no_other(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    bad: dict[str, Any] = {
        "without a task": {"schedule": 1.0},
        "not serializable": {**every(1.0), "args": (object(),)},
        "impossible": {"task": "nobody.runs.it", "schedule": Impossible(timedelta(seconds=1))},
        "too often": every(0.001),
        "not even a dict": 5,
    }
    cluster.seed("first", "last")
    beat = cluster.beat({"first": HOURLY, **bad, "last": HOURLY})
    beat.tick_until(lambda: len(cluster.sent()) >= 2 and cluster.record("impossible"))
    over = now_us() + 500_000
    beat.tick_until(lambda: now_us() > over)
    assert sorted(sent.entry for sent in cluster.sent()) == ["first", "last"]
    for name in bad:
        told = [record.getMessage() for record in caplog.records if repr(name) in record.getMessage()]
        assert len(told) == 1, (name, told)


def test_an_entry_whose_arguments_fail_only_when_it_is_sent_costs_no_other(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    from celery.beat import BeatLazyFunc

    def fails() -> None:
        raise ZeroDivisionError("somebody's own function")

    names = ["1", "2", "3"]
    cluster.seed(*names)
    schedule = {**dict.fromkeys(names, HOURLY), "2": {**HOURLY, "args": (BeatLazyFunc(fails),)}}
    beat = cluster.beat(schedule)
    beat.tick_until(lambda: cluster.settled(*names))
    assert sorted(sent.entry for sent in cluster.sent()) == ["1", "3"]
    assert "somebody's own function" in caplog.text


# Changes at run time


def by_add(beat: Beat) -> None:
    beat.scheduler.add(name="b", **HOURLY)


def by_update(beat: Beat) -> None:
    beat.scheduler.update_from_dict({"b": HOURLY})


def by_the_setter(beat: Beat) -> None:
    beat.scheduler.schedule = {
        **beat.scheduler.schedule,
        "b": beat.scheduler.Entry(name="b", app=beat.app, **HOURLY),
    }


def by_merge(beat: Beat) -> None:
    beat.scheduler.merge_inplace({"a": HOURLY, "b": HOURLY})


def by_item(beat: Beat) -> None:
    beat.scheduler.schedule["b"] = beat.scheduler.Entry(name="b", app=beat.app, **HOURLY)


@pytest.mark.parametrize("added", [by_add, by_update, by_the_setter, by_merge, by_item])
def test_an_entry_added_at_run_time_is_noticed(cluster: Cluster, added: Callable[[Beat], None]) -> None:
    beat = cluster.beat({"a": HOURLY})
    beat.tick_until(lambda: beat.ready)
    cluster.seed("b")
    added(beat)
    beat.tick_until(cluster.sent)
    assert [sent.entry for sent in cluster.sent()] == ["b"]


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
