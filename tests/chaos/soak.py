"""Look for what grows: ``python -m tests.chaos.soak --minutes 10 --report docs/soak.md``.

Two beats live through it all, while others come and go beside them and stores and brokers go away and come back, as
often as that can be. At the end of each round these two are alone and at rest, and are measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import cycle, pairwise
from pathlib import Path
from statistics import median

import psutil  # type: ignore[import-untyped]

from tests.acceptance.beat import Beat
from tests.acceptance.cluster import Cluster
from tests.acceptance.outages import Outage
from tests.acceptance.rhythms import SECOND_US
from tests.chaos.lane import Lane, Run, settle
from tests.chaos.lanes import LANES, lane
from tests.chaos.report import Account

TTL_S = 2.0
ENTRIES = 30
FASTEST_S = 0.1
STORES = ("one Redis for both", "etcd of three, Redis broker", "Consul, RabbitMQ", "SQLite, Redis broker")
#: Seconds of an outage.
_AWAY_S = 0.7
#: Seconds in which the beats come to rest before they are measured.
_REST_S = 1.5
_FULL = 10.0
#: Rounds in which something that grows can be told from noise.
_FEWEST = 4
#: Minutes of a run that is worth a report.
_WORTH = 5.0
#: What is measured, and by how much its median may be larger in the last quarter than in the first.
_LIMITS: Mapping[str, Callable[[float], float]] = {
    "RSS, MB": lambda first: first * 1.03 + 1.0,
    "open files": lambda first: first + 1,
    "threads": lambda first: first + 1,
    # Each of the two may have one call more on its way.
    "connections": lambda first: first + 2,
    "late p50, ms": lambda first: first * 1.5 + 20,
}


@dataclass
class Soak:
    """One store's rounds."""

    account: Account
    #: Figures at the end of each round.
    samples: list[dict[str, float]]

    def quarters(self) -> dict[str, list[float]]:
        """Return the medians of each figure in the four quarters."""
        ends = [len(self.samples) * quarter // 4 for quarter in range(5)]
        parts = [self.samples[first:last] for first, last in pairwise(ends)]
        return {name: [median(one[name] for one in part) for part in parts] for name in _LIMITS}

    def wrong(self) -> list[str]:
        """Return what has grown, and what was lost or doubled."""
        grown = [
            f"{self.account.run.lane}: {name} went from {first:.1f} to {last:.1f}"
            for name, (first, *_, last) in self.quarters().items()
            if last > _LIMITS[name](first)
        ]
        return grown + self.account.wrong()


def soak(place: Lane, seconds: float) -> Soak:
    """Go round for that long."""
    outages = cycle([*place.store_outages.values(), *place.broker_outages.values()])
    samples = []
    with Cluster(
        place.store,
        place.queue,
        entries=ENTRIES,
        ttl_s=TTL_S,
        broker=place.broker,
        settings=place.settings,
        fastest_s=FASTEST_S,
    ) as cluster:
        lasting = cluster.start(2)
        began = time.time()
        crash = False
        while time.time() < began + seconds:
            one_round(cluster, next(outages), crash=crash)
            crash = not crash
            cluster.wait_until_each_sends(lasting, within_s=90)
            samples.append({"late p50, ms": late_at_rest(cluster), **measured(lasting, place)})
        ended = time.time()
        settle(cluster, began, ended)
        stayed = all(beat.exit_code is None for beat in lasting)
    faults = [] if stayed else ["a beat ended by itself"]
    faults += [] if len(samples) >= _FEWEST else [f"{len(samples)} rounds are too few"]
    run = Run(place.name, place.exactly_once, began, ended, cluster, place.queue.vanished(), faults)
    return Soak(Account(run), samples)


def one_round(cluster: Cluster, outage: Outage, *, crash: bool) -> None:
    """A beat joins, a server goes away and comes back, the beat leaves or is killed."""
    guest = cluster.add()
    guest.launch()
    deadline = time.monotonic() + 10
    while not guest.lines("entries are mine") and time.monotonic() < deadline:
        time.sleep(0.1)
    with cluster.during(outage):
        time.sleep(_AWAY_S)
    time.sleep(_REST_S)
    if crash:
        cluster.kill(guest)
        time.sleep(TTL_S + 1)
    else:
        cluster.terminate(guest, within_s=10)


def late_at_rest(cluster: Cluster) -> float:
    """Let the beats come to rest; return the median of how late the messages of that time are, in milliseconds.

    Not those of an outage, after which a broker may give out all that it holds once more, before anything new.
    """
    so_far, now_us = len(cluster.queue.messages), time.time() * SECOND_US
    time.sleep(_REST_S)
    cluster.queue.wait_for(
        lambda messages: any(message.instant_us > now_us for message in messages[so_far:]),
        within_s=60,
        what="anything new",
    )
    new = [message for message in cluster.queue.messages[so_far:] if message.instant_us > now_us]
    return 1000 * median(message.seen_at - message.instant_us / SECOND_US for message in new)


def measured(beats: Sequence[Beat], place: Lane) -> dict[str, float]:
    """Return the largest figures of these beats, and the connections that the servers have."""
    processes = [psutil.Process(beat.pid) for beat in beats]
    return {
        "RSS, MB": max(process.memory_info().rss for process in processes) / 1e6,
        "open files": max(process.num_fds() for process in processes),
        "threads": max(process.num_threads() for process in processes),
        "connections": sum(place.connections()),
    }


def main() -> int:
    """Soak all stores at once; return 0 only if nothing has grown, was lost or came twice without an excuse."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=_FULL)
    parser.add_argument("--lane", action="append", choices=list(LANES), help="only this one; may be repeated")
    parser.add_argument("--report", type=Path, help=f"where to write the table, of a run of {_WORTH:g} minutes or more")
    parser.add_argument("--logs", type=Path, help="a folder for what the beats say, and what is known of runs")
    given = parser.parse_args()
    names = given.lane or list(STORES)
    if given.logs is not None:
        given.logs.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(len(names)) as lanes:
        runs = {name: lanes.submit(_soak, name, given.minutes * 60) for name in names}
    # One that came to nothing costs the others nothing.
    failed = [f"{name}: {error}" for name, run in runs.items() if (error := run.exception()) is not None]
    soaks = [run.result() for run in runs.values() if run.exception() is None]
    for one in soaks if given.logs is not None else ():
        one.account.tell(given.logs)
        samples = "\n".join(map(json.dumps, one.samples))
        (given.logs / f"{one.account.run.lane}.samples").write_text(samples)
    table = _table(soaks)
    print(table)
    wrong = failed + [what for one in soaks for what in one.wrong()]
    print(f"\n{'; '.join(wrong) or 'nothing grows'}")
    if given.report is not None and given.minutes >= _WORTH and not given.lane and not wrong:
        page = Path(__file__).with_name("soak.md").read_text()
        day = datetime.now(timezone.utc).date()
        number = sum(len(one.account.expected) for one in soaks)
        given.report.write_text(
            page.format(day=day, minutes=f"{given.minutes:g}", runs=f"{number:,}", ttl=f"{TTL_S:g}", table=table)
        )
    return 1 if wrong else 0


def _soak(name: str, seconds: float) -> Soak:
    with lane(name) as place:
        return soak(place, seconds)


def _table(soaks: Sequence[Soak]) -> str:
    heads = ["", "rounds", "runs", "lost", "twice", *_LIMITS]
    rows = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for one in soaks:
        account, quarters = one.account, one.quarters()
        counts = [len(one.samples), len(account.expected), len(account.lost), len(account.doubled)]
        rows.append([account.run.lane, *map(str, counts), *(_told(quarters[name]) for name in _LIMITS)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _told(medians: Sequence[float]) -> str:
    return " → ".join(f"{one:.1f}" for one in medians)


if __name__ == "__main__":
    sys.exit(main())
