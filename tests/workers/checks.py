"""What holds wherever broker and worker are."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

from pytest_celery import CeleryTestSetup

from tests.workers.programs import BeatProcess
from tests.workers.runs import ENTRIES, Run, all_ran_after, eventually, missing, off_the_grid, runs, task_ids


def everything_runs_once(setup: CeleryTestSetup, new_beat: Callable[[], BeatProcess]) -> None:
    """Two beats share the schedule; each run comes once, says what it is, and leaves its result."""
    worker = setup.worker
    two_beats(worker, new_beat)
    eventually(all_ran_after(worker, time.time() + 3), 15, "run on")
    ran = runs(worker)
    nothing_is_lost(ran)
    nothing_is_doubled(ran)
    # What the task has logged of its headers is what it has returned.
    for run in ran:
        assert setup.app.AsyncResult(run.task_id).get(timeout=5) == run._asdict()


def a_killed_beat_costs_nothing(setup: CeleryTestSetup, new_beat: Callable[[], BeatProcess]) -> None:
    """After ``kill -9`` of one of two beats the other runs all; what the dead one had in hand may come twice."""
    worker = setup.worker
    killed, left = two_beats(worker, new_beat)
    dead = killed.pid
    assert dead in {run.entry: run.pid for run in runs(worker)}.values()
    killed.kill()
    at = time.time()
    eventually(all_ran_after(worker, at + 4), 20, "run on by the beat that is left")
    ran = runs(worker)
    assert pids(run for run in ran if run.instant_us > (at + 1) * 1_000_000) == {left.pid}
    nothing_is_lost(ran)
    nothing_has_two_task_ids(ran)
    # What comes twice was sent by the dead one, and by the other in doubt of that.
    for sender in (dead, left.pid):
        nothing_is_doubled([run for run in ran if run.pid == sender])


def two_beats(worker: Any, new_beat: Callable[[], BeatProcess]) -> list[BeatProcess]:
    """Start two beats; return when a worker has run something of each."""
    beats = [new_beat(), new_beat()]
    wanted = {beat.pid for beat in beats}
    eventually(lambda: pids(runs(worker)) == wanted, 15, "sent by each beat")
    return beats


def nothing_is_lost(ran: Collection[Run]) -> None:
    """No entry has a gap between its first run and its last, nor a run beside its grid."""
    assert {run.entry for run in ran} == set(ENTRIES)
    assert not missing(ran)
    assert not off_the_grid(ran)


def nothing_is_doubled(ran: Collection[Run]) -> None:
    """Each (entry, instant) has run once, under a task id of its own."""
    assert max(map(len, task_ids(ran).values())) == 1
    assert len({run.task_id for run in ran}) == len(ran)


def nothing_has_two_task_ids(ran: Collection[Run]) -> None:
    """Each (entry, instant) has run once, or twice under one task id."""
    ids = task_ids(ran).values()
    assert max(map(len, ids)) <= 2
    assert max(len(set(of_one)) for of_one in ids) == 1


def pids(ran: Iterable[Run]) -> set[int]:
    """Return the process ids of the senders."""
    return {run.pid for run in ran}
