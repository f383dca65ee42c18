"""So many entries, all due in the same second: how long until the last is in the queue."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.contenders import OURS, REDBEAT, STOCK, Contender
from benchmarks.report import Curve, Section, Table, middle, number, ratio, spread
from benchmarks.runs import Burst, burst

#: What takes minutes from here on is measured once: the ratio is clear.
_LARGE = 10_000
#: No peer is asked for more.
_PEERS_MOST = 100_000


def run(bench: Bench) -> Section:
    """Measure all contenders in turn, on growing schedules."""
    curves: dict[str, list[tuple[float, float]]] = {}
    tables = []
    for size in bench.sizes((1_000, 10_000, 100_000, 1_000_000), (1_000, 10_000)):
        found: dict[str, list[Burst]] = {}
        for turn in bench.rounds():
            for contender in bench.contenders:
                if _takes_part(contender, size, turn):
                    bench.say(f"burst: {size:,} entries, {contender.name}, round {turn + 1}")
                    bound_s = 90.0 if contender is OURS else bench.choose(25.0, 6.0)
                    found.setdefault(contender.name, []).append(burst(contender, bench.redis, size, bound_s=bound_s))
        tables.append(_table(size, found))
        for name, bursts in found.items():
            curves.setdefault(name, []).append((size, middle(one.rate for one in bursts)))
    return Section(
        "Burst",
        tables,
        [Curve("rate", name, points) for name, points in curves.items()],
        "Broker: Redis; our ledger is in the same Redis. Messages/s: from the first in the queue to the last. "
        "*last after*: seconds from the instant until the last message was in the queue.",
    )


def _takes_part(contender: Contender, size: int, turn: int) -> bool:
    if contender is OURS:
        return turn == 0 or size <= _PEERS_MOST
    if size > _PEERS_MOST:
        return False
    return turn == 0 or size < _LARGE or (contender is REDBEAT and size == _LARGE) or (contender is STOCK and turn == 1)


def _table(size: int, found: dict[str, list[Burst]]) -> Table:
    ours = [one.rate for one in found[OURS.name]]
    heads = (f"{size:,} entries", "runs", "messages/s", "ours is", "last after, s", "beat's CPU, ms per 1,000 messages")
    rows = [
        (
            name,
            str(len(bursts)),
            spread([one.rate for one in bursts]),
            "" if name == OURS.name else ratio(ours, [one.rate for one in bursts]),
            when_last(bursts),
            number(middle(cpu_ms(one) for one in bursts)),
        )
        for name, bursts in found.items()
    ]
    return Table(heads, rows)


def when_last(bursts: list[Burst]) -> str:
    """Return when the last message was there; or, where not all came, how many did."""
    if all(one.complete for one in bursts):
        return spread([one.last_s for one in bursts])
    worst = min(bursts, key=lambda one: one.arrived)
    return f"not in {worst.bound_s:g} s ({worst.arrived:,} came)"


def cpu_ms(one: Burst) -> float:
    """Return the beats' processor time, in milliseconds per 1,000 messages."""
    return one.beats_cpu_s * 1_000_000 / one.arrived if one.arrived else float("nan")
