"""From nothing to ready: how long that takes with many entries, and the memory that they take."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.contenders import OURS, STOCK
from benchmarks.probe import Found
from benchmarks.probed import probe
from benchmarks.report import Section, Table, spread


def run(bench: Bench) -> Section:
    """Measure ours, at the first start of all and at a later one, beside stock beat."""
    size = max(bench.sizes((100_000,), (10_000,)))
    contenders = {
        f"{OURS.name}, first start of the cluster": (OURS, False),
        f"{OURS.name}, its records are there": (OURS, True),
        f"{STOCK.name}, without its file": (STOCK, True),
    }
    found: dict[str, list[Found]] = {name: [] for name in contenders}
    for turn in bench.rounds():
        for name, (contender, seeded) in contenders.items():
            bench.say(f"start: {name}, round {turn + 1}")
            once = probe(contender, bench.redis, size, 0, seeded=seeded).found
            if once is not None:
                found[name].append(once)
    rows = [
        (
            name,
            str(len(once)),
            spread([one.imports_s - one.dict_s for one in once]),
            spread([one.dict_s for one in once]),
            spread([one.construct_s for one in once]),
            spread([one.ready_s for one in once]),
            spread([one.construct_s + one.ready_s for one in once]),
            spread([(one.ready_bytes - one.dict_bytes) / size for one in once]),
        )
        for name, once in found.items()
    ]
    heads = (
        f"{size:,} entries", "runs", "Python and imports, s", "the user's dict, s", "scheduler made, s",
        "then ready, s", "both, s", "bytes an entry",
    )  # fmt: skip
    before = (
        "*ready*: ours has joined and holds the records of its share; stock has its heap. *bytes an entry*: resident"
        " memory when ready, less that with the user's dict, for each entry. Ledger in Redis."
    )
    return Section("Start", [Table(heads, rows, before)])
