"""What goes wrong in an entry, before or after the broker is asked, costs that entry's run and no other."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
from celery import Task
from celery.beat import BeatLazyFunc

from celery_distsched.errors import ConfigError
from tests.figures import Figure
from tests.scheduler.cluster import HOURLY, Cluster

Raise = Callable[..., Any]


def raising(error: BaseException) -> Raise:
    def fail(*args: Any) -> Any:
        raise error

    return fail


#: kombu's Redis transport takes a KeyError for an error of the connection.
GIVEN_UP = {"key": KeyError("tenant"), "file": FileNotFoundError("cursor"), "value": ValueError("none")}
PASSING = {"refused": ConnectionRefusedError("vault"), "timeout": TimeoutError("vault")}
#: The good ones beside it.
OTHERS = [f"good {number}" for number in range(20)]


@pytest.mark.parametrize("scheme", ["sqlite", "redis+zset", "redis+scan", "etcd", "consul"])
@pytest.mark.parametrize("error", [*GIVEN_UP, *PASSING])
@pytest.mark.parametrize("delivery", ["at_least_once", "at_most_once"])
def test_an_entry_whose_arguments_cannot_be_made_holds_up_no_other(
    cluster: Cluster, scheme: str, error: str, delivery: str, figure: Figure
) -> None:
    lazy = BeatLazyFunc(raising({**GIVEN_UP, **PASSING}[error]))
    cluster.seed("bad", *OTHERS)
    beat = cluster.beat(
        {"bad": {**HOURLY, "args": (lazy,)}, **dict.fromkeys(OTHERS, HOURLY)}, distsched_delivery=delivery
    )
    beat.tick_until(lambda: cluster.settled(*OTHERS))
    assert beat.inner.dispatch._outbox.open
    lost = set(OTHERS) - {sent.entry for sent in cluster.sent()}
    figure.runs("bad entry", scheme, len(lost), len(OTHERS), "runs of others lost; an entry's argument raised")
    assert not lost
    assert (beat.counts["unknown"], beat.counts["refused"], beat.counts["possibly lost"]) == (0, 0, 0)
    assert cluster.settled("bad") == (error in GIVEN_UP), "what may pass is tried again"


@pytest.mark.parametrize("scheme", ["redis+zset"])
def test_what_is_out_of_reach_for_a_moment_costs_no_run(cluster: Cluster) -> None:
    tries: list[int] = []

    def third_time() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionRefusedError("the vault is being restarted")
        return "made"

    cluster.seed("bad")
    beat = cluster.beat({"bad": {**HOURLY, "args": (BeatLazyFunc(third_time),)}})
    beat.tick_until(lambda: cluster.settled("bad"))
    assert [sent.args for sent in cluster.sent("bad")] == [["made"]]


class Audited(Task):  # type: ignore[misc]
    """It writes down what was sent, where nobody answers."""

    def apply_async(self, *args: Any, **options: Any) -> Any:
        super().apply_async(*args, **options)
        raise ConnectionRefusedError("audit")


@pytest.mark.parametrize("scheme", ["redis+zset"])
@pytest.mark.parametrize("delivery", ["at_least_once", "at_most_once"])
def test_what_fails_when_the_message_has_left_makes_no_second_one(cluster: Cluster, delivery: str) -> None:
    cluster.seed("bill", "other")
    beat = cluster.beat({"bill": {**HOURLY, "task": "bill"}, "other": HOURLY}, distsched_delivery=delivery)

    def bill() -> None: ...

    beat.app.task(bill, name="bill", base=Audited, shared=False)
    beat.tick_until(lambda: cluster.settled("bill", "other"))
    assert sorted(sent.entry for sent in cluster.sent()) == ["bill", "other"]


@pytest.mark.parametrize("scheme", ["redis+zset"])
def test_an_eager_task_that_fails_is_not_run_again(cluster: Cluster) -> None:
    ran: list[int] = []

    def work() -> None:
        ran.append(1)
        raise ConnectionRefusedError("elsewhere")

    cluster.seed("eager")
    beat = cluster.beat({"eager": {**HOURLY, "task": "work"}}, task_always_eager=True, task_eager_propagates=True)
    beat.app.task(work, name="work", shared=False)
    beat.tick_until(lambda: cluster.settled("eager"))
    assert len(ran) == 1


@pytest.mark.parametrize("scheme", ["sqlite"])
@pytest.mark.parametrize("call", ["read", "swapping"])
def test_an_error_of_the_store_that_nobody_has_thought_of_is_told_once_and_costs_no_run(
    cluster: Cluster, call: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    beat = cluster.beat({"a": {"task": "nobody.runs.it", "schedule": 0.2}})
    beat.tick_until(lambda: beat.counts["accepted"])
    with monkeypatch.context() as patched:
        patched.setattr(beat.scheduler.driver, call, raising(ZeroDivisionError("odd")))
        beat.inner.dispatch.records.unread.add("a")
        for _ in range(20):
            pause_s = beat.tick()
            assert pause_s > 0.01
            time.sleep(pause_s)
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.exc_info is not None for record in errors] == [True], "with its traceback, once"
    accepted = beat.counts["accepted"]
    beat.tick_until(lambda: beat.counts["accepted"] > accepted + 2)
    instants = [sent.instant_us for sent in cluster.sent()]
    assert instants == list(range(instants[0], instants[-1] + 1, 200_000))


@pytest.mark.parametrize("scheme", ["sqlite"])
@pytest.mark.parametrize("ttl_s", [2.0])
def test_who_fails_for_longer_than_a_ttl_ends_so_that_others_take_over(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat = cluster.beat({"a": HOURLY})
    beat.tick_until(lambda: beat.ready)
    began = time.monotonic()
    monkeypatch.setattr(beat.scheduler.driver, "read", raising(ZeroDivisionError("odd")))
    with pytest.raises(ZeroDivisionError):
        beat.tick_until(lambda: beat.inner.dispatch.records.unread.add("a"))
    assert time.monotonic() - began >= cluster.ttl_s


@pytest.mark.parametrize("scheme", ["sqlite"])
@pytest.mark.parametrize("end", [ConfigError("wrong"), SystemExit(), KeyboardInterrupt()])
def test_what_is_to_end_the_beat_ends_it_out_of_a_call_to_the_store(
    cluster: Cluster, end: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat = cluster.beat({"a": HOURLY})
    beat.tick_until(lambda: beat.ready)
    beat.inner.dispatch.records.unread.add("a")
    with monkeypatch.context() as patched:
        patched.setattr(beat.scheduler.driver, "read", raising(end))
        with pytest.raises(type(end)):
            beat.tick()
