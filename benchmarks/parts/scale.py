"""Two beats beside one: the same burst, shared out."""

from __future__ import annotations

import os

from benchmarks.bench import Bench
from benchmarks.contenders import OURS
from benchmarks.core_share import permitted
from benchmarks.parts.burst import cpu_ms, when_last
from benchmarks.report import Section, Table, middle, number, ratio, spread
from benchmarks.runs import Burst, burst

_HEADS = (
    "beats", "runs", "messages/s", "of one beat's", "last after, s", "beats' CPU, ms per 1,000 messages",
    "Redis busy, %", "cores busy",
)  # fmt: skip


def run(bench: Bench) -> Section:
    """Measure one beat and two in turn, where they share the cores with Redis and where it has one to itself."""
    size = max(bench.sizes((50_000,), (10_000,)))
    before = f"{size:,} entries due in one second; broker and ledger in one Redis, and all on the machine's cores."
    tables = [Table(_HEADS, _rows(bench, size, core_share=1.0), before)]
    if permitted():
        before = "Each beat gets half a core at most: what two do where the servers have cores of their own."
        tables.append(Table(_HEADS, _rows(bench, size, core_share=0.5), before))
    else:
        bench.say("scale: not with half a core for each beat, which only root may give them, by control groups")
    return Section("Two beats", tables)


def _rows(bench: Bench, size: int, *, core_share: float) -> list[tuple[str, ...]]:
    found: dict[int, list[Burst]] = {1: [], 2: []}
    for turn in bench.rounds():
        for beats, bursts in found.items():
            bench.say(f"scale: {beats} beats, {core_share:g} of a core each, round {turn + 1}")
            bursts.append(burst(OURS, bench.redis, size, beats=beats, core_share=core_share, bound_s=60))
    one = [run.rate for run in found[1]]
    return [
        (
            str(beats),
            str(len(bursts)),
            spread([run.rate for run in bursts]),
            ratio([run.rate for run in bursts], one),
            when_last(bursts),
            number(middle(cpu_ms(run) for run in bursts)),
            number(100 * middle(run.redis_cpu_s / run.last_s for run in bursts)),
            f"{number(middle(run.machine_cpu_s / run.last_s for run in bursts))} of {os.cpu_count()}",
        )
        for beats, bursts in found.items()
    ]
