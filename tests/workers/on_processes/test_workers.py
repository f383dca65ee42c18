"""Beats, a broker, a worker and a place for results, as whole programs of this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from pytest_celery import CeleryTestSetup, CeleryWorkerContainer

from tests.servers import RedisServer
from tests.workers import checks
from tests.workers.programs import BeatProcess
from tests.workers.runs import all_ran_after, eventually, runs


def test_pytest_celery_finds_in_processes_what_it_asks_of_containers(celery_setup: CeleryTestSetup) -> None:
    worker = celery_setup.worker
    assert celery_setup.ready(ping=True, control=True, docker=True)
    assert worker.hostname() in worker.logs()
    assert _lives(worker, worker.container.attrs["State"]["Pid"])
    worker.kill()
    assert worker.container.status == "exited"
    assert not worker.ready()
    worker.restart()
    assert celery_setup.ready(ping=True)
    worker.restart(force=True)
    worker.assert_log_exists("Warm shutdown")
    assert celery_setup.ready(ping=True)


def test_a_worker_runs_everything_once_from_two_beats(
    celery_setup: CeleryTestSetup, new_beat: Callable[[], BeatProcess]
) -> None:
    checks.everything_runs_once(celery_setup, new_beat)


def test_runs_go_on_when_a_beat_is_killed(celery_setup: CeleryTestSetup, new_beat: Callable[[], BeatProcess]) -> None:
    checks.a_killed_beat_costs_nothing(celery_setup, new_beat)


def test_nothing_is_lost_while_the_broker_is_away(
    celery_setup: CeleryTestSetup, new_beat: Callable[[], BeatProcess]
) -> None:
    worker, broker = celery_setup.worker, celery_setup.broker
    beats = checks.two_beats(worker, new_beat)
    # Between two rounds, when the worker has nothing in hand: a message on its way to it is the worker's to lose, and
    # Celery's own worker ends for good if it cannot give back what it has not acknowledged.
    eventually(lambda: all_ran_after(worker, time.time() - 0.5)() and _nothing_in_hand(broker), 10, "between rounds")
    broker.kill()
    for beat in beats:
        beat.wait_for_log("the broker cannot be reached")
    broker.restart()
    eventually(all_ran_after(worker, time.time() + 2), 30, "run on with the broker back")
    ran = runs(worker)
    checks.nothing_is_lost(ran)
    checks.nothing_has_two_task_ids(ran)


class TestWorkerWithABeatInside:
    @pytest.fixture
    def default_worker_command(self, default_worker_container_cls: type[CeleryWorkerContainer]) -> Any:
        return default_worker_container_cls.command("-B")

    def test_it_shares_with_other_beats_and_ends_in_good_order(
        self, celery_setup: CeleryTestSetup, new_beat: Callable[[], BeatProcess]
    ) -> None:
        worker, beat = celery_setup.worker, new_beat()
        eventually(lambda: len(checks.pids(runs(worker))) == 2, 15, "sent by both")
        (inside,) = checks.pids(runs(worker)) - {beat.pid}
        assert _lives(worker, inside)
        eventually(all_ran_after(worker, time.time() + 2), 15, "run on")
        worker.kill("SIGTERM")
        eventually(lambda: worker.container.status == "exited", 15, "ended")
        assert worker.container.server.exit_code == 0
        eventually(lambda: not _lives(worker, inside), 5, "ended with its worker")
        assert "Traceback" not in worker.logs()
        ran = runs(worker)
        checks.nothing_is_lost(ran)
        checks.nothing_is_doubled(ran)


def _lives(worker: Any, pid: int) -> bool:
    # The dead whom nobody has buried are listed too.
    found = worker.get_running_processes_info(["pid", "status"], {"pid": pid})
    return any(process["status"] != "zombie" for process in found)


def _nothing_in_hand(broker: Any) -> bool:
    redis: RedisServer = broker.container.server
    return redis.call("HLEN", "unacked") == b":0" and redis.call("LLEN", "celery") == b":0"
