"""Ways to write an entry that Celery's own beat understands, and that are rarely met."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta, timezone
from typing import Any, ClassVar

import pytest
from celery import Celery, Task
from celery.beat import ScheduleEntry
from celery.schedules import schedstate, schedule
from kombu.exceptions import EncodeError

from celery_distsched import DistributedScheduler
from celery_distsched.entries import Planner
from tests.scheduler.cluster import HOURLY, Beat, Cluster, now_us
from tests.servers import RedisServer

pytestmark = pytest.mark.parametrize("scheme", ["redis+zset"])


def planned(beat: Beat) -> Any:
    return beat.scheduler._plan()


def test_an_entry_object_has_the_name_of_its_key(cluster: Cluster) -> None:
    """Otherwise all without a name would be one entry, with one record and one task id."""
    given = {
        key: ScheduleEntry(name=name, task=key, schedule=schedule(3600)) for key, name in (("a", None), ("b", "x"))
    }
    beat = cluster.beat(given)
    assert [entry.name for entry in beat.scheduler.schedule.values()] == ["a", "b"]
    assert set(planned(beat)) == {"a", "b"}
    assert [entry.name for entry in given.values()] == [None, "x"], "the user's object is as it was"


@pytest.mark.parametrize("way", [{}, {"options": {"countdown": 5}}], ids=["fast", "ordinary"])
def test_an_entry_object_that_is_put_in_at_run_time_goes_by_its_key(
    scheme: str, redis_server: RedisServer, way: dict[str, Any]
) -> None:
    cluster = Cluster(redis_server.url(scheme, path="/9"), broker=redis_server.url(path="/9"))
    try:
        cluster.seed("a")
        beat = cluster.beat({"a": HOURLY})
        beat.tick_until(lambda: beat.ready)
        soon = {**HOURLY, "schedule": schedule(0.5)}
        beat.scheduler.schedule["key"] = ScheduleEntry(name="a", app=beat.app, **soon, **way)
        beat.tick_until(lambda: cluster.settled("a") and len(cluster.sent("key")) > 1)
        assert len(cluster.sent("a")) == 1
        assert len({sent.task_id for sent in cluster.sent()}) == len(cluster.sent())
        del beat.scheduler.schedule["key"]
        beat.tick_until(lambda: set(beat.inner.dispatch._agenda.entries) == {"a"})
    finally:
        cluster.close()


@pytest.mark.parametrize("aware", [True, False])
def test_an_entry_counts_from_the_last_run_that_it_is_given(cluster: Cluster, aware: bool) -> None:
    last = datetime.now(timezone.utc) - timedelta(minutes=90)
    given = last if aware else last.replace(tzinfo=None)
    beat = cluster.beat({"given": {**HOURLY, "last_run_at": given}, "not": HOURLY})
    beat.tick_until(lambda: cluster.sent("given"))
    assert [sent.instant_us for sent in cluster.sent("given")] == [round(last.timestamp() * 1e6) + 3_600_000_000]
    assert cluster.sent("not") == []


def test_a_last_run_that_differs_in_each_process_makes_no_other_version(cluster: Cluster) -> None:
    one, other = (
        planned(cluster.beat({"a": {**HOURLY, "last_run_at": datetime.now(timezone.utc) - timedelta(days=days)}}))["a"]
        for days in (1, 2)
    )
    assert one.fingerprint == other.fingerprint
    assert one.last_us != other.last_us


def test_what_is_no_last_run_is_refused(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    beat = cluster.beat({"a": {**HOURLY, "last_run_at": "yesterday"}})
    assert set(planned(beat)) == set()
    assert "a datetime was expected" in caplog.text


def test_a_name_that_shows_a_set_is_refused(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    """Each process has another order of it, so that each beat would have an entry of its own."""
    sets: dict[str, Any] = {**HOURLY, "task": "f", "args": [[{"red", "green"}]], "options": {"serializer": "pickle"}}
    beat = cluster.beat({"f([{'red', 'green'}])": sets, "named": sets}, accept_content=["pickle"])
    assert set(planned(beat)) == {"named"}
    assert "different in each process" in caplog.text


class Quiet(ScheduleEntry):  # type: ignore[misc]
    """It runs on working days, or whenever somebody says."""

    open: ClassVar[bool] = False

    def is_due(self) -> Any:
        return super().is_due() if self.open else schedstate(False, 0.05)


class Ours(DistributedScheduler):
    Entry = Quiet


class Closed(DistributedScheduler):
    def is_due(self, entry: ScheduleEntry) -> Any:
        return schedstate(False, 0.05) if entry.name == "closed" else super().is_due(entry)


def test_an_entry_that_decides_when_it_is_due_is_asked(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.seed("a")
    beat = cluster.beat({})
    beat.scheduler = Ours(cluster.app({"a": HOURLY}))
    for _ in range(20):
        beat.tick()
    beat.tick_until(lambda: beat.ready)
    assert cluster.sent() == []
    monkeypatch.setattr(Quiet, "open", True)
    beat.tick_until(lambda: cluster.sent("a"))


def test_one_that_decides_when_it_is_due_and_is_switched_off_keeps_no_loop_busy(cluster: Cluster) -> None:
    cluster.seed("a")
    beat = cluster.beat({})
    beat.scheduler = Ours(cluster.app({"a": {**HOURLY, "enabled": False}}))
    beat.tick_until(lambda: beat.ready and cluster.record("a").paused)  # type: ignore[union-attr]
    beat.tick()
    assert beat.inner.dispatch.next_s() == float("inf")
    assert beat.tick() > 0.0
    beat.scheduler.update_from_dict({"a": HOURLY})
    beat.tick_until(lambda: not cluster.record("a").paused)  # type: ignore[union-attr]
    assert cluster.record("a").last > now_us() - 5_000_000  # type: ignore[union-attr]
    assert beat.inner.dispatch.next_s() < 1.0


def test_that_jitter_has_no_effect_on_one_that_decides_when_it_is_due_is_said_once(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    jittered = {**HOURLY, "jitter": 5.0}
    beat = cluster.beat({"asked": {**jittered, "schedule": FromTable(1)}, "not": jittered})
    beat.tick()
    beat.scheduler.add(name="new", **HOURLY)
    beat.tick()
    (told,) = [record.getMessage() for record in caplog.records if "jitter" in record.getMessage()]
    assert "entry 'asked'" in told


def test_a_scheduler_that_decides_when_an_entry_is_due_is_asked(cluster: Cluster) -> None:
    cluster.seed("a", "closed")
    beat = cluster.beat({})
    beat.scheduler = Closed(cluster.app({"a": HOURLY, "closed": HOURLY}))
    beat.tick_until(lambda: cluster.sent("a"))
    assert {sent.entry for sent in cluster.sent()} == {"a"}


class FromTable(schedule):  # type: ignore[misc]
    """How often is looked up each time."""

    table: ClassVar[dict[str, float]] = {"every": 3600.0}

    @property
    def run_every(self) -> timedelta:
        return timedelta(seconds=self.table["every"])

    @run_every.setter
    def run_every(self, value: Any) -> None: ...


def test_an_interval_that_is_looked_up_is_looked_up_each_time(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.seed("a", last_us=round((datetime.now(timezone.utc) - timedelta(seconds=1)).timestamp() * 1e6))
    beat = cluster.beat({"a": {"task": "nobody.runs.it", "schedule": FromTable(1)}})
    beat.tick_until(lambda: beat.ready)
    assert cluster.sent() == []
    monkeypatch.setitem(FromTable.table, "every", 0.5)
    monkeypatch.setattr("celery_distsched.instants.kinds._LONGEST_PAUSE_S", 0.05)
    beat.scheduler._node.dispatch._agenda.timetable.set("a", 0)  # type: ignore[union-attr]
    beat.tick_until(lambda: cluster.sent("a"))


class Narrow(Task):  # type: ignore[misc]
    """An `apply_async` with the parameters that its author knew."""

    def apply_async(self, args: Any = None, kwargs: Any = None, producer: Any = None, headers: Any = None) -> Any:
        return super().apply_async(args, kwargs, producer=producer, headers=headers)


class Encoding(Task):  # type: ignore[misc]
    """One that makes of its arguments what can be sent."""

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        return super().apply_async([type(arg).__name__ for arg in args or ()], kwargs, **options)


def register(app: Celery) -> None:
    def work(*args: Any) -> None: ...

    for name, base in (("plain", Task), ("narrow", Narrow), ("encoding", Encoding)):
        app.task(work, name=name, base=base, shared=False, typing=False)


def test_an_apply_async_gets_what_it_takes(cluster: Cluster) -> None:
    cluster.seed("narrow")
    beat = cluster.beat({"narrow": {**HOURLY, "task": "narrow"}})
    register(beat.app)
    beat.tick_until(lambda: cluster.sent("narrow"))


def test_arguments_that_are_converted_in_sending_are_not_judged_before(cluster: Cluster) -> None:
    cluster.seed("encoding", "routed")
    app = cluster.app(
        {
            "encoding": {**HOURLY, "task": "encoding", "args": (object(),)},
            "routed": {**HOURLY, "args": (frozenset({1}),)},
        },
        task_routes={HOURLY["task"]: {"serializer": "pickle", "queue": f"{cluster.queue}-pickled"}},
        accept_content=["json", "pickle"],
    )
    register(app)
    beat = cluster.beat({})
    beat.scheduler = DistributedScheduler(app)
    beat.tick_until(lambda: cluster.settled("encoding", "routed"))
    assert [sent.args for sent in cluster.sent("encoding")] == [["object"]]
    assert beat.counts["accepted"] == 2


def test_a_task_s_own_serializer_prevails_over_a_route_s(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    """Where the task is known a route changes nothing, and what cannot be sent is refused at once."""
    given = {**HOURLY, "task": "plain", "args": (frozenset({1}),)}
    app = cluster.app(
        {"plain": given}, task_routes={"plain": {"serializer": "pickle"}}, accept_content=["json", "pickle"]
    )
    register(app)
    with pytest.raises(EncodeError):
        app.tasks["plain"].apply_async(given["args"])
    beat = cluster.beat({})
    beat.scheduler = DistributedScheduler(app)
    assert set(planned(beat)) == set()
    assert "its arguments cannot be sent as json" in caplog.text


def test_a_header_of_the_user_s_stays_the_user_s(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "celery_distsched")
    due = cluster.seed("a")
    given = "2020-01-01T00:00:00+00:00"
    beat = cluster.beat({"a": {**HOURLY, "options": {"headers": {"scheduled_at": given}}}})
    beat.tick_until(lambda: cluster.settled("a"))
    (sent,) = cluster.sent("a")
    assert sent.instant_us == round(datetime.fromisoformat(given).timestamp() * 1e6) != due


def test_a_plan_asks_nobody_where_nobody_decides(cluster: Cluster) -> None:
    beat = cluster.beat({"a": HOURLY})
    planner = Planner(beat.app, beat.scheduler.settings)
    assert planner.plan("a", beat.scheduler.schedule["a"], {}).rule is not None
