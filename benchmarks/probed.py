"""Runs `probe` on a contender in a process of its own."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.beats import environment
from benchmarks.contenders import Contender, Site
from benchmarks.probe import Found
from benchmarks.queues import RedisQueue
from benchmarks.workload import Workload

#: Far enough ahead that nothing is due while it is measured.
_AHEAD_S = 40_000
_BOUND_S = 120


class Probed(NamedTuple):
    """What was found inside, and what its Redis counted meanwhile; None: it did not end within its bound."""

    found: Found | None
    #: Commands a second while it was idle, all clients together but the one that asks.
    commands_per_s: float


def probe(contender: Contender, queue: RedisQueue, size: int, idle_s: float, *, seeded: bool = True) -> Probed:
    """Measure one scheduler on a workload of which nothing is due."""
    queue.empty()
    with tempfile.TemporaryDirectory(prefix="probe-") as folder:
        site = Site(queue.url, queue.url, Path(folder))
        workload = Workload("interval", size, math.ceil(time.time()) + _AHEAD_S)
        if seeded:
            contender.seed(site, workload)
        words = [sys.executable, "-m", "benchmarks.probe", contender.scheduler, str(idle_s)]
        process = subprocess.Popen(
            words,
            cwd=folder,
            env={**os.environ, **environment(contender, site, workload)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            samples = _sample(process, queue)
            out, _ = process.communicate(timeout=5)
        finally:
            process.kill()
            process.wait()
    if process.returncode or not out.strip():
        return Probed(None, math.nan)
    found = Found(**json.loads(out.splitlines()[-1]))
    idle = [(at, count) for at, count in samples if found.idle_from <= at <= found.idle_until]
    if len(idle) < 2:
        return Probed(found, math.nan)
    return Probed(found, (idle[-1][1] - idle[0][1]) / (idle[-1][0] - idle[0][0]))


def _sample(process: subprocess.Popen[str], queue: RedisQueue) -> list[tuple[float, int]]:
    """Ask Redis twice a second how many commands it has had, until the process ends."""
    samples = []
    until = time.time() + _BOUND_S
    while process.poll() is None and time.time() < until:
        samples.append((time.time(), sum(queue.commands().values())))
        time.sleep(0.5)
    return samples
