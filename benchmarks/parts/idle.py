"""Nothing is due: what a tick costs, and what the process and its store have to do all the same."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.contenders import DJANGO
from benchmarks.probed import Probed, probe
from benchmarks.report import Curve, Section, Table, middle, spread


def run(bench: Bench) -> Section:
    """Measure all contenders on a small and a large schedule."""
    idle_s = bench.choose(20.0, 4.0)
    tables, cpu, tick = [], dict[str, list[tuple[float, float]]](), dict[str, list[tuple[float, float]]]()
    for size in bench.sizes((1_000, 100_000), (1_000, 10_000)):
        found: dict[str, list[Probed]] = {}
        for turn in bench.rounds(1):
            for contender in bench.contenders:
                if contender is DJANGO and size > 1_000 and bench.quick:
                    continue
                bench.say(f"idle: {size:,} entries, {contender.name}, round {turn + 1}")
                found.setdefault(contender.name, []).append(probe(contender, bench.redis, size, idle_s))
        tables.append(_table(size, found))
        for name, probes in found.items():
            cpu.setdefault(name, []).append((size, middle(one.found.cpu_percent for one in probes if one.found)))
            tick.setdefault(name, []).append((size, middle(one.found.tick_ms for one in probes if one.found)))
    return Section(
        "Idle",
        tables,
        [Curve("cpu", name, points) for name, points in cpu.items()]
        + [Curve("tick", name, points) for name, points in tick.items()],
        f"CPU: of one core, over {idle_s:g} s, some seconds after the start. Peers sleep until their next run, up to 5"
        " minutes; ours looks at its members four times a second, and around itself just after. *commands*: those of"
        " all clients, and within Lua.",
    )


def _table(size: int, found: dict[str, list[Probed]]) -> Table:
    heads = (f"{size:,} entries", "tick, ms", "tick p99, ms", "CPU, %", "store commands/s")
    rows = []
    for name, probes in found.items():
        known = [one.found for one in probes if one.found]
        rows.append(
            (
                name,
                spread([one.tick_ms for one in known]),
                spread([one.tick_p99_ms for one in known]),
                spread([one.cpu_percent for one in known]),
                spread([one.commands_per_s for one in probes]),
            )
        )
    return Table(heads, rows)
