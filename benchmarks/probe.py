"""Measures a scheduler from within its process: ``python -m benchmarks.probe SCHEDULER IDLE_S``.

It does what the service of ``celery beat`` does (make the scheduler, tick, sleep as long as the tick says), and prints
what it found as one line of JSON.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from statistics import median
from typing import Any, NamedTuple

import psutil  # type: ignore[import-untyped]

#: Seconds between being ready and the idle time.
_SETTLE_S = 5.0


class Found(NamedTuple):
    """Seconds, bytes and milliseconds."""

    #: From the start of the process, as the system has it, until all is imported and the user's dict is made.
    imports_s: float
    #: Of that, making the dict.
    dict_s: float
    #: Making the scheduler.
    construct_s: float
    #: From there until its first tick is over; ours: until it has joined and the records of its share are loaded.
    ready_s: float
    #: Resident memory with the user's dict, and when it is ready.
    dict_bytes: int
    ready_bytes: int
    #: Median, and the 99th percentile, of ticks while nothing is due.
    tick_ms: float
    tick_p99_ms: float
    #: Of one core, over the idle time, its sleeps included.
    cpu_percent: float
    #: Wall time at which the idle time began and ended.
    idle_from: float
    idle_until: float


def main(scheduler_name: str, idle_s: float) -> Found:
    """Measure once."""
    from celery.utils.imports import symbol_by_name

    from benchmarks import project

    app = project.app
    # Celery makes its settings at their first use.
    assert app.conf.beat_schedule is not None
    app.loader.import_default_modules()
    scheduler_class = symbol_by_name(scheduler_name)
    app.finalize()
    imported_at = time.time()
    gc.collect()
    process = psutil.Process()
    dict_bytes = process.memory_info().rss
    began = time.perf_counter()
    scheduler = scheduler_class(app=app, schedule_filename="celerybeat-schedule")
    _take_lock(scheduler)
    constructed = time.perf_counter()
    while True:
        pause_s = scheduler.tick()
        if _ready(scheduler):
            break
        time.sleep(min(pause_s, 0.02))
    ready = time.perf_counter()
    gc.collect()
    ready_bytes = process.memory_info().rss
    if idle_s:
        _settle(scheduler)
    idle_from = time.time()
    cpu_s, wall = time.process_time(), time.perf_counter()
    while (left_s := wall + idle_s - time.perf_counter()) > 0:
        time.sleep(min(scheduler.tick(), left_s))
    cpu_percent = 100 * (time.process_time() - cpu_s) / max(time.perf_counter() - wall, 1e-9)
    idle_until = time.time()
    ticks = _ticks(scheduler, at_most_s=2.0) if idle_s else [0.0]
    scheduler.close()
    return Found(
        imports_s=imported_at - process.create_time(),
        dict_s=project.dict_s,
        construct_s=constructed - began,
        ready_s=ready - constructed,
        dict_bytes=dict_bytes,
        ready_bytes=ready_bytes,
        tick_ms=1000 * median(ticks),
        tick_p99_ms=1000 * sorted(ticks)[int(len(ticks) * 0.99)],
        cpu_percent=cpu_percent,
        idle_from=idle_from,
        idle_until=idle_until,
    )


def _settle(scheduler: Any) -> None:
    """Let pass what follows a start: connecting to the broker; ours also looks at which way each message will go."""
    until = time.perf_counter() + _SETTLE_S
    while time.perf_counter() < until or _surveying(scheduler):
        time.sleep(min(scheduler.tick(), 0.2))


def _surveying(scheduler: Any) -> bool:
    node = getattr(scheduler, "_node", None)
    return node is not None and node.dispatch._fast_way.surveying


def _ticks(scheduler: Any, at_most_s: float) -> list[float]:
    taken: list[float] = []
    until = time.perf_counter() + at_most_s
    while time.perf_counter() < until and len(taken) < 2000:
        began = time.perf_counter()
        scheduler.tick()
        taken.append(time.perf_counter() - began)
    return taken


def _ready(scheduler: Any) -> bool:
    node = getattr(scheduler, "_node", None)
    if node is None:
        return True
    view = node.pool.view
    mine = view.alive.get(view.me or "")
    return mine is not None and mine.active


def _take_lock(scheduler: Any) -> None:
    """RedBeat takes its lock when the service says that it begins."""
    if getattr(scheduler, "lock_key", None):
        from redbeat.schedulers import acquire_distributed_beat_lock

        acquire_distributed_beat_lock(type("Service", (), {"scheduler": scheduler})())


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], float(sys.argv[2]))._asdict()))
