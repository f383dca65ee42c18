"""One run: beats on a workload that falls due at a known moment, and the queue watched from outside."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from benchmarks.beats import Beat
from benchmarks.contenders import Contender, Site
from benchmarks.core_share import limited
from benchmarks.machine import busy_s
from benchmarks.queues import Queue, RedisQueue, watch
from benchmarks.workload import Workload


class Burst(NamedTuple):
    """What became of one burst."""

    size: int
    arrived: int
    #: Messages a second, from the first in the queue to the last.
    rate: float
    #: Seconds from the instant until the last message was in the queue; NaN where not all came.
    last_s: float
    #: Processor seconds of all beats, of the broker's Redis, and of all that ran on the machine, from just before the
    #: instant to the last message.
    beats_cpu_s: float
    redis_cpu_s: float
    machine_cpu_s: float
    #: The bound of the run, in seconds.
    bound_s: float

    @property
    def complete(self) -> bool:
        """Whether all came in time."""
        return self.arrived >= self.size


def burst(
    contender: Contender,
    queue: Queue,
    size: int,
    *,
    store: Callable[[Path], str] | None = None,
    kind: str = "interval",
    beats: int = 1,
    core_share: float = 1.0,
    bound_s: float,
) -> Burst:
    """Measure how long so many entries, all due at one moment, take to be in the queue.

    Args:
        contender: Whose.
        queue: Where.
        size: How many entries.
        store: Makes the URL of the store, given an empty folder; None: the broker's Redis.
        kind: See `Workload`.
        beats: How many to start.
        core_share: What part of a core each of them gets at most, from its start on; 1: it is left alone.
        bound_s: Seconds after the instant at which the run is given up.
    """
    queue.empty()
    with tempfile.TemporaryDirectory(prefix="burst-") as folder, ExitStack() as ends:
        site = Site(queue.url, store(Path(folder)) if store else queue.url, Path(folder))
        # Seeding is quick for all; what follows it may not be, and the moment must not come before that is over.
        seeding_s, loading_s = 1 + size / 40_000, (contender.setup_s(size) + 1.5 * (beats - 1)) / core_share
        due_s = _moment(kind, seeding_s + loading_s)
        workload = Workload(kind, size, due_s)
        contender.seed(site, workload)
        running = [ends.enter_context(Beat(contender, site, workload)) for _ in range(beats)]
        if core_share < 1:
            ends.enter_context(limited([beat.pid for beat in running if beat.pid is not None], core_share))
        ready_at = max(due_s, time.time() + loading_s)
        if due_s > time.time():
            time.sleep(ready_at - 0.2 - time.time())
            cpu_s = sum(beat.cpu_s() for beat in running)
        else:
            # Due as soon as it is loaded: what of its time goes into loading cannot be seen from outside.
            cpu_s = math.nan
        redis_cpu_s, machine_cpu_s = _cpu_s(queue), busy_s()
        arrivals = watch(queue, size, ready_at + bound_s, check=lambda: _check(running))
        return Burst(
            size=size,
            arrived=arrivals.arrived,
            rate=arrivals.rate,
            last_s=arrivals.times[-1] - ready_at if arrivals.arrived >= size else math.nan,
            beats_cpu_s=sum(beat.cpu_s() for beat in running) - cpu_s,
            redis_cpu_s=_cpu_s(queue) - redis_cpu_s,
            machine_cpu_s=busy_s() - machine_cpu_s,
            bound_s=bound_s,
        )


def _moment(kind: str, ahead_s: float) -> int:
    """Return the next full second that is so far ahead; for kinds that know minutes only, the last full minute.

    What lies in the past is due as soon as it is loaded, which saves a minute of waiting.
    """
    now = time.time()
    return int(now) // 60 * 60 if kind in ("crontab", "mixed") else math.ceil(now + ahead_s)


def _check(beats: list[Beat]) -> None:
    for beat in beats:
        beat.check()


def _cpu_s(queue: Queue) -> float:
    return queue.cpu_s() if isinstance(queue, RedisQueue) else math.nan
