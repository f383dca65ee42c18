"""Two beats beside one: the same burst, shared out."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.contenders import OURS
from benchmarks.parts.burst import cpu_ms, when_last
from benchmarks.report import Section, Table, middle, number, ratio, spread
from benchmarks.runs import Burst, burst


def run(bench: Bench) -> Section:
    """Measure one beat and two in turn."""
    size = max(bench.sizes((50_000,), (10_000,)))
    found: dict[int, list[Burst]] = {1: [], 2: []}
    for turn in bench.rounds():
        for beats, bursts in found.items():
            bench.say(f"scale: {beats} beats, round {turn + 1}")
            bursts.append(burst(OURS, bench.redis, size, beats=beats, bound_s=60))
    one = [run.rate for run in found[1]]
    rows = [
        (
            str(beats),
            str(len(bursts)),
            spread([run.rate for run in bursts]),
            ratio([run.rate for run in bursts], one),
            when_last(bursts),
            number(middle(cpu_ms(run) for run in bursts)),
            number(100 * middle(run.redis_cpu_s / run.last_s for run in bursts)),
        )
        for beats, bursts in found.items()
    ]
    heads = (
        "beats", "runs", "messages/s", "of one beat's", "last after, s", "beats' CPU, ms per 1,000 messages",
        "Redis busy, %",
    )  # fmt: skip
    before = f"{size:,} entries due in one second; broker and ledger in one Redis, and all on the machine's cores."
    return Section("Two beats", [Table(heads, rows, before)])
