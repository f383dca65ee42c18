"""A thousand occurrences a second: how late they arrive, also while a node joins and leaves."""

from __future__ import annotations

import json
import math
import tempfile
import time
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from benchmarks.beats import Beat
from benchmarks.bench import Bench
from benchmarks.contenders import OURS, Site
from benchmarks.queues import Arrivals, RedisQueue, watch
from benchmarks.report import Curve, Section, Table, number, percentile
from benchmarks.workload import Workload

_KINDS = {
    "spread": "spread evenly over the second",
    "second": "all on the full second",
}


class Steady(NamedTuple):
    """What was seen of one run."""

    #: Seconds by which each message arrived after its instant.
    late_s: list[float]
    expected: int
    cpu_ms_per_1000: float


def run(bench: Bench) -> Section:
    """Measure one beat alone, and one that another joins and leaves."""
    size = max(bench.sizes((1_000,), (1_000,)))
    alone_s, shared_s = bench.choose((20, 20), (5, 12))
    rows, curves = [], []
    for kind, words in bench.choose(_KINDS, {"spread": _KINDS["spread"]}).items():
        for joins in (False, True):
            what = f"{words}{'; another beat joins and leaves' if joins else ''}"
            bench.say(f"steady: {what}")
            found = steady(bench.redis, size, kind, shared_s if joins else alone_s, joins=joins)
            ms = [late * 1000 for late in found.late_s]
            rows.append(
                (
                    what,
                    f"{len(ms):,} of {found.expected:,}",
                    *(
                        number(value)
                        for value in (percentile(ms, 0.5), percentile(ms, 0.99), max(ms, default=math.nan))
                    ),
                    number(found.cpu_ms_per_1000),
                )
            )
            curves.append(Curve("lateness", what, [(part, percentile(ms, part)) for part in _PARTS]))
    heads = (
        f"{size:,} occurrences a second", "arrived", "p50, ms", "p99, ms", "latest, ms",
        "beats' CPU, ms per 1,000 messages",
    )  # fmt: skip
    before = (
        "Lateness of arrival in the queue after the instant; broker and ledger in one Redis. The queue is looked at"
        " every 2 ms, so each figure is up to 2 ms too high."
    )
    return Section("Steady load", [Table(heads, rows, before)], curves)


_PARTS = [*(n / 100 for n in range(1, 100)), 0.995, 0.999, 0.9999]


def steady(queue: RedisQueue, size: int, kind: str, seconds: int, *, joins: bool) -> Steady:
    """Let `size` entries run once a second for so long; `joins`: with a second beat for the middle of that time."""
    queue.empty()
    with tempfile.TemporaryDirectory(prefix="steady-") as folder, ExitStack() as ends:
        site = Site(queue.url, queue.url, Path(folder))
        due_s = math.ceil(time.time() + OURS.setup_s(size) + 1)
        workload = Workload(kind, size, due_s)
        OURS.seed(site, workload)
        beat, other = Beat(OURS, site, workload), Beat(OURS, site, workload)
        ends.enter_context(beat)
        ended_s = due_s + seconds
        watch(queue, 1, due_s - 0.1)
        cpu_s = beat.cpu_s()
        arrivals = Arrivals([], [])
        if joins:
            ends.enter_context(other)
            # It needs some seconds to load before it joins.
            _add(arrivals, watch(queue, size * seconds, due_s + seconds * 0.7))
            other.leave()
        _add(arrivals, watch(queue, size * seconds, ended_s + 0.5))
        # That of a beat which starts says nothing of a steady load.
        cpu_s = math.nan if joins else beat.cpu_s() - cpu_s
        messages = queue.messages()
    instants = [datetime.fromisoformat(json.loads(text)["headers"]["scheduled_at"]).timestamp() for text in messages]
    late_s = [seen - at for seen, at in zip(arrivals.arrival(), instants, strict=False) if due_s <= at < ended_s]
    return Steady(late_s, size * seconds, cpu_s * 1_000_000 / max(1, len(messages)))


def _add(arrivals: Arrivals, more: Arrivals) -> None:
    arrivals.times.extend(more.times)
    arrivals.counts.extend(more.counts)
