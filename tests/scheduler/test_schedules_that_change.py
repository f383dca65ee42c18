"""A schedule that changes while it runs: what has not changed costs nothing, and what has is noticed in any case."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from celery.schedules import schedule

from celery_distsched.agenda import Agenda
from celery_distsched.clock import Clock
from celery_distsched.entries import PlannedEntry, Planner
from celery_distsched.fast_way import FastWay
from celery_distsched.progress import Progress
from celery_distsched.ring import Places, point
from celery_distsched.settings import Settings
from tests.scheduler.cluster import HOURLY, Beat, Cluster, in_s, now_us, until
from tests.servers import RedisServer

_ENTRIES = {f"entry-{number}": HOURLY for number in range(2_000)}


@pytest.fixture
def scheme() -> str:
    return "sqlite"


@pytest.fixture
def beat(cluster: Cluster) -> Beat:
    beat = cluster.beat(_ENTRIES)
    beat.tick_until(lambda: beat.ready)
    return beat


@pytest.mark.parametrize("kept", [{}, {"kept": HOURLY}], ids=["alone", "beside another"])
@pytest.mark.parametrize("threaded", [False, True])
def test_an_entry_that_is_removed_and_added_again_runs_nothing_of_the_meantime(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, threaded: bool, kept: dict[str, Any]
) -> None:
    monkeypatch.setattr(Settings, "hand_over_s", 1.0)
    every = {"task": "t", "schedule": 0.5, "catch_up": "all"}
    beat = cluster.beat({**kept, "again": every})
    beat.tick_until(lambda: cluster.sent("again"))
    wait: Callable[..., None] = until if threaded else beat.tick_until
    if threaded:
        beat.start()
    beat.scheduler.schedule.pop("again")
    # A run that was claimed just then has been sent by the time that the removal is registered.
    without = beat.inner.heartbeat.pool.schedule.digest
    wait(lambda: beat.inner.heartbeat.pool.schedule.digest != without)
    at = now_us() + 3_000_000
    wait(lambda: now_us() > at)
    before = len(cluster.sent("again"))
    beat.scheduler.update_from_dict({"again": every})
    wait(lambda: len(cluster.sent("again")) >= before + 3)
    assert [sent.instant_us for sent in cluster.sent("again")[before:] if sent.instant_us < at] == []


def test_after_an_add_only_what_is_new_is_planned_placed_and_timed(beat: Beat, monkeypatch: pytest.MonkeyPatch) -> None:
    planned, timed, placed = beat.scheduler._planned, list[str](), list[str]()
    time_of = Agenda._schedule

    def noted(agenda: Agenda, name: str, now: int) -> None:
        timed.append(name)
        time_of(agenda, name, now)

    def noted_point(name: str) -> int:
        placed.append(name)
        return point(name)

    monkeypatch.setattr("celery_distsched.ring.point", noted_point)
    # The new schedule's epoch makes every entry be looked at again; that is not what is meant here.
    monkeypatch.setattr(Agenda, "follow_epochs", lambda *args: None)
    monkeypatch.setattr(Agenda, "_schedule", noted)
    beat.scheduler.add(name="new", task="t", schedule=schedule(3600))
    beat.tick_until(lambda: "new" in beat.inner.dispatch.records.holdings)
    assert all(beat.scheduler._planned[name] is planned[name] for name in _ENTRIES)
    assert placed == ["new"]
    assert set(timed) == {"new"}


EDITS: dict[str, Callable[[Any], None]] = {
    "task": lambda entry: setattr(entry, "task", "other"),
    "schedule": lambda entry: setattr(entry, "schedule", schedule(7200)),
    "schedule, in place": lambda entry: setattr(entry.schedule, "run_every", timedelta(seconds=7200)),
    "args": lambda entry: setattr(entry, "args", (1,)),
    "kwargs, in place": lambda entry: entry.kwargs.update(a=1),
    "options, in place": lambda entry: entry.options.update(queue="q"),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_an_entry_that_was_edited_in_place_is_noticed_with_the_next_change(
    cluster: Cluster, edit: Callable[[Any], None]
) -> None:
    beat = cluster.beat({"a": HOURLY, "b": HOURLY})
    beat.tick_until(lambda: beat.ready)
    before = dict(beat.scheduler._planned)
    digest = beat.inner.heartbeat.schedule.digest
    edit(beat.scheduler.schedule["a"])
    beat.scheduler.add(name="new", task="t", schedule=schedule(3600))
    beat.tick()
    after = beat.scheduler._planned
    assert after["a"].fingerprint != before["a"].fingerprint
    assert after["b"] is before["b"]
    assert beat.inner.heartbeat.schedule.digest != digest


def by_attribute(beat: Beat, entry: Any, every_s: float) -> None:
    entry.schedule = schedule(every_s)


def by_update(beat: Beat, entry: Any, every_s: float) -> None:
    entry.update(beat.scheduler.Entry(name=entry.name, app=beat.app, task="nobody.runs.it", schedule=every_s))


@pytest.mark.parametrize("edit", [by_attribute, by_update])
def test_another_schedule_of_an_entry_object_is_followed_within_a_few_ticks(
    beat: Beat, cluster: Cluster, edit: Callable[[Beat, Any, float], None]
) -> None:
    edit(beat, beat.scheduler.schedule["entry-1999"], 1.0)
    beat.tick_until(cluster.sent)
    assert {sent.entry for sent in cluster.sent()} == {"entry-1999"}


@pytest.mark.parametrize("edit", [by_attribute, by_update])
def test_another_schedule_of_an_entry_object_is_seen_before_it_is_claimed(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, edit: Callable[[Beat, Any, float], None]
) -> None:
    """Whoever makes an entry rarer must not have one more run of it."""
    monkeypatch.setattr("celery_distsched.scheduler._IN_TURN", 0)
    due = cluster.seed("a", "b", last_us=in_s(1))
    beat = cluster.beat({"a": HOURLY, "b": HOURLY})
    beat.tick_until(lambda: beat.ready)
    edit(beat, beat.scheduler.schedule["a"], 7200.0)
    beat.tick_until(lambda: cluster.sent("b") and now_us() > due + 500_000)
    assert cluster.sent("a") == []
    assert beat.inner.dispatch.next_s() > 1800


def test_an_equal_schedule_in_the_place_of_another_is_no_change(cluster: Cluster) -> None:
    """An entry of somebody's own may make one each time it is asked."""
    cluster.seed("a")
    beat = cluster.beat({"a": HOURLY})
    beat.tick()
    version = beat.scheduler.schedule.version
    beat.scheduler.schedule["a"].schedule = schedule(3600)
    beat.tick_until(lambda: cluster.sent("a"))
    assert beat.scheduler.schedule.version == version


def test_a_schedule_as_it_was_in_the_place_of_one_that_was_edited_is_planned_once(cluster: Cluster) -> None:
    beat = cluster.beat({"a": HOURLY})
    beat.tick()
    entry = beat.scheduler.schedule["a"]
    entry.schedule.run_every = timedelta(seconds=7200)
    entry.schedule = schedule(3600)
    beat.tick()
    version = beat.scheduler.schedule.version
    beat.tick()
    assert beat.scheduler.schedule.version == version


def test_a_schedule_that_becomes_none_in_place_is_reported(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    beat = cluster.beat({"a": HOURLY, "b": HOURLY})
    beat.tick()
    beat.scheduler.schedule["a"].schedule = None
    beat.tick_until(lambda: set(beat.scheduler._planned) == {"b"})
    assert "entry 'a' will not run: its schedule is None" in caplog.text


def test_an_interval_that_was_edited_in_place_has_its_next_run_by_the_new_one(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.seed("a", last_us=in_s(0) + 3_590_000_000)
    beat = cluster.beat({"a": HOURLY})
    beat.tick_until(lambda: beat.ready)
    monkeypatch.setattr(Agenda, "follow_epochs", lambda *args: None)
    beat.scheduler.schedule["a"].schedule.run_every = timedelta(seconds=5)
    beat.scheduler.add(name="new", task="t", schedule=schedule(3600))
    beat.tick_until(lambda: cluster.sent("a"))


def test_an_entry_that_goes_and_comes_back_between_two_ticks_is_another(
    beat: Beat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Agenda, "follow_epochs", lambda *args: None)
    entry = beat.scheduler.schedule.pop("entry-7")
    entry.schedule = schedule(7200)
    beat.scheduler.schedule["entry-7"] = entry
    timetable = beat.inner.dispatch._agenda.timetable
    at = timetable._at["entry-7"]
    beat.tick_until(lambda: timetable._at.get("entry-7") == at + 3_600_000_000)


def test_each_schedule_that_is_set_in_place_of_another_is_noticed(cluster: Cluster) -> None:
    beat = cluster.beat({"a": HOURLY})
    beat.tick_until(lambda: beat.ready)
    for name in ("b", "c"):
        beat.scheduler.schedule = {name: beat.scheduler.Entry(name=name, app=beat.app, **HOURLY)}
        beat.tick()
        assert set(beat.scheduler._planned) == {name}


class Halting(dict[str, Any]):
    """What is put in halts before its last item until another thread has done something."""

    def __init__(self, items: dict[str, Any]) -> None:
        super().__init__(items)
        self._reached, self._go_on = threading.Event(), threading.Event()

    def items(self) -> Any:
        for number, item in enumerate(super().items(), 1):
            if number == len(self):
                self._reached.set()
                assert self._go_on.wait(15)
            yield item

    @contextmanager
    def put_in(self, put: Callable[[Any], Any]) -> Iterator[None]:
        """Do what is inside in the middle of it."""
        thread = threading.Thread(target=put, args=(self,))
        thread.start()
        assert self._reached.wait(15)
        try:
            yield
        finally:
            self._go_on.set()
            thread.join()


def test_a_change_by_another_thread_that_is_planned_in_its_middle_is_planned_again(cluster: Cluster) -> None:
    beat = cluster.beat({"a": HOURLY})
    beat.tick_until(lambda: beat.ready)
    entries = Halting({name: beat.scheduler.Entry(name=name, app=beat.app, **HOURLY) for name in "bc"})
    with entries.put_in(lambda given: beat.scheduler.schedule.update(given.items())):
        beat.tick()
    beat.tick()
    assert set(beat.scheduler._planned) == {"a", "b", "c"}


def test_what_another_thread_is_about_to_put_in_keeps_our_keys(cluster: Cluster) -> None:
    beat = cluster.beat({"a": HOURLY})
    beat.tick_until(lambda: beat.ready)
    with Halting({"off": {**HOURLY, "enabled": False}, "on": HOURLY}).put_in(beat.scheduler.update_from_dict):
        beat.scheduler.add(name="b", **HOURLY)
        beat.tick()
    beat.tick()
    assert not beat.scheduler._planned["off"].enabled
    del beat.scheduler.schedule["off"]
    beat.tick()
    assert not beat.scheduler._our_keys


def test_names_that_change_have_the_same_places_as_if_all_were_placed_anew() -> None:
    names = [f"entry {number}" for number in range(300)]
    changed = Places.of(names[:200]).changed(set(names[50:90]), names[200:])
    anew = Places.of([*names[:50], *names[90:]])
    assert list(changed._at) == list(anew._at)
    assert changed._names == anew._names
    assert Places.of(names).changed(set(names), ()) == Places.of(())


# The fast way


@pytest.fixture
def fast(redis_server: RedisServer) -> Iterator[Beat]:
    """A beat whose entries have all been looked at; all but one go the fast way."""
    cluster = Cluster(redis_server.url(path="/5"), broker=redis_server.url(path="/5"))
    beat = cluster.beat({**_ENTRIES, "late": {**HOURLY, "options": {"countdown": 5}}})
    beat.tick_until(lambda: beat.ready)
    beat.tick_until(lambda: way(beat)._said is not None and not way(beat).surveying)
    yield beat
    cluster.close()


def way(beat: Beat) -> FastWay:
    found: FastWay = beat.inner.dispatch._fast_way
    return found


def said(beat: Beat, caplog: pytest.LogCaptureFixture, words: str) -> None:
    beat.tick_until(lambda: any(words in record.getMessage() for record in caplog.records))


def test_after_a_change_only_what_has_changed_is_looked_at_again(
    fast: Beat, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    survey = way(fast)._survey
    assert survey is not None
    looked_at, why_not = list[str](), survey._why_not

    def noted(planned: PlannedEntry) -> str | None:
        looked_at.append(planned.name)
        return why_not(planned)

    monkeypatch.setattr(survey, "_why_not", noted)
    fast.scheduler.add(name="new", task="t", schedule=schedule(3600))
    said(fast, caplog, "for 2001 of 2002 entries")
    fast.scheduler.add(name="late too", task="t", schedule=schedule(3600), options={"countdown": 5})
    said(fast, caplog, "for 2001 of 2003 entries")
    del fast.scheduler.schedule["late"]
    said(fast, caplog, "for 2001 of 2002 entries")
    fast.scheduler.update_from_dict({"late too": HOURLY})
    said(fast, caplog, "for 2002 of 2002 entries")
    assert looked_at == ["new", "late too", "late too"]


def test_a_change_in_the_middle_of_looking_loses_none(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("celery_distsched.survey._LOOK_S", 0.0001)
    cluster = Cluster(redis_server.url(path="/6"), broker=redis_server.url(path="/6"))
    try:
        beat = cluster.beat({f"entry-{number}": {**HOURLY, "options": {"countdown": 5}} for number in range(100)})
        beat.tick_until(lambda: (survey := way(beat)._survey) is not None and 0 < len(survey._unseen) < 100)
        del beat.scheduler.schedule["entry-0"], beat.scheduler.schedule["entry-99"]
        beat.scheduler.update_from_dict({"entry-1": HOURLY, "entry-98": HOURLY, "new": HOURLY})
        said(beat, caplog, "for 3 of 99 entries")
    finally:
        cluster.close()


# The heartbeat


def test_the_heartbeat_sees_every_long_walk_go_on(beat: Beat, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a million entries a node would not renew for seconds, and lose its share."""
    walks, along = list[int](), Progress.along

    def noted(progress: Progress, items: Iterable[Any], clock: Clock) -> Iterator[Any]:
        walks.append(0)
        number = len(walks) - 1
        for item in along(progress, items, clock):
            walks[number] += 1
            yield item

    monkeypatch.setattr(Progress, "along", noted)
    epoch = beat.inner.pool.view.schedule.epoch
    beat.scheduler.add(name="new", task="t", schedule=schedule(3600))
    beat.tick_until(lambda: beat.inner.pool.view.schedule.epoch > epoch)
    beat.tick()
    # The plan, the digest, and the look at all when the schedule has got its epoch.
    assert [steps for steps in walks if steps >= len(_ENTRIES)] == [len(_ENTRIES) + 1] * 3
    # What is taken away.
    walks.clear()
    beat.scheduler.schedule.clear()
    beat.tick()
    assert [steps for steps in walks if steps > len(_ENTRIES)] == [len(_ENTRIES) + 1] * 2


def test_a_walk_shows_progress_every_thousand_steps_and_at_its_end() -> None:
    clock, progress = Ticking(), Progress()
    shown = [progress.at for _ in progress.along(range(2500), clock)]
    assert (shown[0], shown[999], shown[1000], shown[2499], progress.at) == (1, 1, 2, 3, 4)


class Ticking(Clock):
    """Moves by one whenever it is looked at."""

    now = 0

    def elapsed(self) -> float:
        self.now += 1
        return self.now


def test_a_beat_that_starts_with_many_entries_is_not_said_to_have_stood_still(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def slowly(function: Any) -> Any:
        def slow(*args: Any) -> Any:
            # With a TTL of five seconds a loop that stands still for one is worth a line.
            time.sleep(1.1)
            return function(*args)

        return slow

    for of, name in ((Planner, "plan"), (FastWay, "set_entries")):
        monkeypatch.setattr(of, name, slowly(getattr(of, name)))
    beat = cluster.beat({"a": HOURLY})
    beat.tick_until(lambda: beat.ready)
    assert not [record for record in caplog.records if "stood still" in record.getMessage()]
