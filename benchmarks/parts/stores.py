"""The same burst with the ledger in each store, on each broker, and with each kind of schedule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.contenders import OURS, STOCK
from benchmarks.parts.burst import cpu_ms, when_last
from benchmarks.queues import Queue
from benchmarks.report import Section, Table, middle, number, spread
from benchmarks.runs import Burst, burst

_KINDS = {
    "interval": "one interval for all",
    "crontab": "one `crontab()` for all",
    "cron": "one `cron()` for all",
    "mixed": "intervals, crontabs, crons, no two of the latter alike",
}


def run(bench: Bench) -> Section:
    """Measure ours on every store; on RabbitMQ beside stock beat."""
    size = max(bench.sizes((10_000,), (2_000,)))
    stores: dict[str, Callable[[Path], str] | None] = {
        "Redis, the broker's own database": None,
        "Redis, another database": bench.redis_store,
        "SQLite": bench.sqlite_store,
        "etcd": bench.etcd_store,
        "Consul": bench.consul_store,
    }
    runs: list[tuple[str, Callable[[float], Burst]]] = [
        (f"ledger in {name}; broker Redis", _ours(bench.redis, size, store)) for name, store in stores.items()
    ]
    runs += [
        ("ledger in Redis; broker RabbitMQ", _ours(bench.rabbit, size, bench.redis_store)),
        ("celery beat; broker RabbitMQ", lambda bound_s: burst(STOCK, bench.rabbit, size, bound_s=bound_s / 2)),
    ]
    by_store = _measure(bench, runs)
    by_kind = _measure(bench, [(words, _ours(bench.redis, size, None, kind)) for kind, words in _KINDS.items()])
    heads = ("", "runs", "messages/s", "last after, s", "beat's CPU, ms per 1,000 messages")
    return Section(
        "Stores, brokers and kinds of schedules",
        [
            Table(heads, by_store, f"{size:,} entries, all due in one second."),
            Table(heads[:3] + heads[4:], [row[:3] + row[4:] for row in by_kind], "Broker and ledger in one Redis:"),
        ],
    )


def _ours(
    queue: Queue, size: int, store: Callable[[Path], str] | None, kind: str = "interval"
) -> Callable[[float], Burst]:
    return lambda bound_s: burst(OURS, queue, size, store=store, kind=kind, bound_s=bound_s)


def _measure(bench: Bench, runs: list[tuple[str, Callable[[float], Burst]]]) -> list[tuple[str, ...]]:
    found: dict[str, list[Burst]] = {name: [] for name, _ in runs}
    for turn in bench.rounds(2):
        for name, once in runs:
            bench.say(f"stores: {name}, round {turn + 1}")
            found[name].append(once(bench.choose(40.0, 20.0)))
    return [
        (
            name,
            str(len(bursts)),
            spread([one.rate for one in bursts]),
            when_last(bursts),
            number(middle(cpu_ms(one) for one in bursts)),
        )
        for name, bursts in found.items()
    ]
