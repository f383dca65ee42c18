"""An entry keeps its rhythm over restarts and edits, and costs no other entry anything."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery.schedules import crontab, schedule

from celery_distsched import cron
from celery_distsched.record import Record
from tests.figures import Figure
from tests.scheduler.cluster import HOUR_US, HOURLY, Beat, Cluster, in_s, now_us, until

pytestmark = pytest.mark.parametrize("scheme", ["sqlite", "redis+scan", "redis+zset", "etcd", "consul"])


def every(seconds: float, **more: Any) -> dict[str, Any]:
    return {"task": "nobody.runs.it", "schedule": seconds, **more}


# State survives


@pytest.mark.parametrize("change", [{}, {"args": ("new",)}])
def test_a_countdown_survives_a_restart_and_an_edit(
    cluster: Cluster, change: dict[str, Any], scheme: str, figure: Figure
) -> None:
    before = cluster.beat({"a": every(1.5)})
    before.tick_until(lambda: cluster.record("a"))
    anchor = cluster.record("a").last  # type: ignore[union-attr]
    before.close()
    # Half the countdown passes with nobody there.
    until(lambda: now_us() > anchor + 700_000)
    after = cluster.beat({"a": {**every(1.5), **change}})
    after.tick_until(cluster.sent)
    instants = [sent.instant_us for sent in cluster.sent()]
    moved = sum(instant != anchor + 1_500_000 for instant in instants)
    how = "a restart and an edit" if change else "a restart"
    figure.runs("state", scheme, moved, len(instants), f"runs at another instant; {how}")
    assert instants == [anchor + 1_500_000]
    assert cluster.sent()[0].args == list(change.get("args", []))


def test_a_new_interval_counts_from_the_last_run(cluster: Cluster, scheme: str, figure: Figure) -> None:
    last = in_s(0) + HOUR_US - 1_000_000
    cluster.seed("a", last_us=last)
    before = cluster.beat({"a": every(3600.0)})
    before.tick_until(lambda: before.ready)
    before.close()
    after = cluster.beat({"a": every(1.5)})
    after.tick_until(cluster.sent)
    instants = [sent.instant_us for sent in cluster.sent()]
    moved = sum(instant != last + 1_500_000 for instant in instants)
    figure.runs("state", scheme, moved, len(instants), "runs at another instant; a new interval")
    assert instants == [last + 1_500_000]


@pytest.mark.parametrize("kind", [crontab, cron])
def test_a_cron_that_has_run_is_not_run_again_by_a_restart_or_an_edit(
    cluster: Cluster, kind: Any, scheme: str, figure: Figure
) -> None:
    minute = datetime.now(timezone.utc).replace(second=0, microsecond=0)
    ran_at = round(minute.timestamp() * 1_000_000)
    cluster.seed("a", last_us=ran_at)
    daily = minute.strftime("%M %H * * *")
    for args in ((), ("edited",)):
        rule = cron(daily, tz="UTC") if kind is cron else crontab.from_string(daily)
        beat = cluster.beat({"a": {"task": "nobody.runs.it", "schedule": rule, "args": args}})
        again = every_now_and_then(cluster, beat)
        figure.runs("state", scheme, len(again), 1, "restarts that ran a cron again")
        assert again == []
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


def test_a_bad_entry_costs_no_other(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, scheme: str, figure: Figure
) -> None:
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
    hindered = {"first", "last"} - {sent.entry for sent in cluster.sent()}
    figure.runs("bad entry", scheme, len(hindered), 2, f"good entries that did not run; beside {len(bad)} bad ones")
    assert sorted(sent.entry for sent in cluster.sent()) == ["first", "last"]
    for name in bad:
        told = [record.getMessage() for record in caplog.records if repr(name) in record.getMessage()]
        figure.runs("bad entry", scheme, not told, 1, "bad entries that were not reported by name")
        assert len(told) == 1, (name, told)


def test_an_entry_whose_arguments_fail_only_when_it_is_sent_costs_no_other(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, scheme: str, figure: Figure
) -> None:
    from celery.beat import BeatLazyFunc

    def fails() -> None:
        raise ZeroDivisionError("somebody's own function")

    names = ["1", "2", "3"]
    cluster.seed(*names)
    schedule = {**dict.fromkeys(names, HOURLY), "2": {**HOURLY, "args": (BeatLazyFunc(fails),)}}
    beat = cluster.beat(schedule)
    beat.tick_until(lambda: cluster.settled(*names))
    hindered = {"1", "3"} - {sent.entry for sent in cluster.sent()}
    figure.runs("bad entry", scheme, len(hindered), 2, "good entries that did not run; beside a lazy bad one")
    assert sorted(sent.entry for sent in cluster.sent()) == ["1", "3"]
    assert "somebody's own function" in caplog.text
