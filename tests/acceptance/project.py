"""The Celery app that the beats of a run have in common; the environment says what it is like."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from celery import Celery, signals

from celery_distsched import cron
from celery_distsched.holding import Move
from celery_distsched.record import Record
from celery_distsched.tally import Tally
from tests.acceptance.rhythms import rhythms

_given = json.loads(os.environ["ACCEPTANCE"])


def _entry(schedule: Any, **others: Any) -> dict[str, Any]:
    when = cron(schedule) if isinstance(schedule, str) else schedule
    return {"task": "nobody.runs.it", "schedule": when, **others}


app = Celery("acceptance")
app.conf.update(
    _given["settings"],
    beat_scheduler="celery_distsched:DistributedScheduler",
    beat_schedule={
        **{name: _entry(one.schedule) for name, one in rhythms(_given["entries"], _given["fastest_s"]).items()},
        **{name: _entry(**given) for name, given in _given["more"].items()},
    },
)

if "ACCEPTANCE_CLOCK" in os.environ:
    _offset, _time_ns = Path(os.environ["ACCEPTANCE_CLOCK"]), time.time_ns
    time.time_ns = lambda: _time_ns() + round(float(_offset.read_text()) * 1e9)
    time.time = lambda: time.time_ns() / 1e9
    if _given["settings"]["distsched_url"].startswith("etcd"):
        import grpc._channel

        # It takes deadlines from there, and its other half, which is in C, holds them against the machine's clock.
        grpc._channel.time = SimpleNamespace(time=lambda: _time_ns() / 1e9, perf_counter=time.perf_counter)


def _hang_if_told_to(**kwargs: Any) -> None:
    while Path(os.environ["ACCEPTANCE_HANG"]).exists():
        time.sleep(0.01)


if _given["hangs"]:
    signals.before_task_publish.connect(_hang_if_told_to)


def _noting_what_is_closed(won: Callable[[Tally, str, Move, str], None]) -> Callable[[Tally, str, Move, str], None]:
    # What is written outlives a kill -9 of the writer.
    notes = os.open(os.environ["ACCEPTANCE_CONFIRMED"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def won_and_noted(tally: Tally, name: str, move: Move, me: str) -> None:
        before = Record.parse(move.expected).open if move.expected else {}
        closed = {*before, *(move.claimed if move.enqueue else ())} - {*move.new.open, *move.dropped}
        # On a full disk too, a beat must not end for this.
        with suppress(OSError):
            os.write(notes, "".join(f"{at} {name}\n" for at in closed).encode())
        won(tally, name, move, me)

    return won_and_noted


if "ACCEPTANCE_CONFIRMED" in os.environ:
    Tally.won = _noting_what_is_closed(Tally.won)  # type: ignore[assignment, method-assign]
