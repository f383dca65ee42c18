"""The same burst with the ledger in each store, on each broker, and with each kind of schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.contenders import OURS, REDBEAT, STOCK
from benchmarks.parts.burst import cpu_ms, when_last
from benchmarks.queues import Queue
from benchmarks.report import Section, Table, middle, number, ratio, spread
from benchmarks.runs import Burst, burst

_KINDS = {
    "interval": "one interval for all",
    "crontab": "one `crontab()` for all",
    "cron": "one `cron()` for all",
    "mixed": "intervals, crontabs, crons, no two of the latter alike",
}

_REDBEAT = "RedBeat; broker Redis"
_CPU = "beat's CPU, ms per 1,000 messages"


def run(bench: Bench) -> Section:
    """Measure ours on every store beside RedBeat, and on RabbitMQ beside stock beat."""
    size = max(bench.sizes((10_000,), (2_000,)))
    stores: dict[str, Callable[[Path], str] | None] = {
        "Redis, the broker's own database": None,
        "Redis, another database": bench.redis_store,
        "SQLite": bench.sqlite_store,
        "etcd": bench.etcd_store,
        "Consul": bench.consul_store,
    }
    runs: dict[str, Callable[[float], Burst]] = {
        f"ledger in {name}; broker Redis": _ours(bench.redis, size, store) for name, store in stores.items()
    }
    runs["ledger in Redis; broker RabbitMQ"] = _ours(bench.rabbit, size, bench.redis_store)
    if REDBEAT in bench.contenders:
        runs[_REDBEAT] = lambda bound_s: burst(REDBEAT, bench.redis, size, bound_s=bound_s)
    runs["celery beat; broker RabbitMQ"] = lambda bound_s: burst(STOCK, bench.rabbit, size, bound_s=bound_s / 2)
    by_store = _measure(bench, runs, bench.rounds())
    kinds = {words: _ours(bench.redis, size, None, kind) for kind, words in _KINDS.items()}
    by_kind = _measure(bench, kinds, bench.rounds(2))
    return Section(
        "Stores, brokers and kinds of schedules",
        [
            Table(
                ("", "runs", "messages/s", "of RedBeat's", "last after, s", _CPU),
                [_row(name, bursts, by_store.get(_REDBEAT, [])) for name, bursts in by_store.items()],
                f"{size:,} entries, all due in one second.",
            ),
            Table(
                ("", "runs", "messages/s", _CPU),
                [(*row[:3], row[5]) for row in (_row(name, bursts, []) for name, bursts in by_kind.items())],
                "Broker and ledger in one Redis:",
            ),
        ],
    )


def _ours(
    queue: Queue, size: int, store: Callable[[Path], str] | None, kind: str = "interval"
) -> Callable[[float], Burst]:
    return lambda bound_s: burst(OURS, queue, size, store=store, kind=kind, bound_s=bound_s)


def _measure(
    bench: Bench, runs: Mapping[str, Callable[[float], Burst]], rounds: Iterator[int]
) -> dict[str, list[Burst]]:
    found: dict[str, list[Burst]] = {name: [] for name in runs}
    for turn in rounds:
        for name, once in runs.items():
            bench.say(f"stores: {name}, round {turn + 1}")
            found[name].append(once(bench.choose(40.0, 20.0)))
    return found


def _row(name: str, bursts: list[Burst], beside: list[Burst]) -> tuple[str, ...]:
    return (
        name,
        str(len(bursts)),
        spread([one.rate for one in bursts]),
        "" if bursts is beside else ratio([one.rate for one in bursts], [one.rate for one in beside]),
        when_last(bursts),
        number(middle(cpu_ms(one) for one in bursts)),
    )
