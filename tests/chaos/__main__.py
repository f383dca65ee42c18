"""Run it: ``python -m tests.chaos --minutes 10 --seed anything --report docs/chaos.md``."""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path

from tests.chaos.lane import ENTRIES, TTL_S, Run, run
from tests.chaos.lanes import LANES, lane
from tests.chaos.plan import plan
from tests.chaos.report import Account, table

#: Lanes that run side by side, on two processors.
_AT_ONCE = 2
#: Minutes of a run that is worth a report.
_FULL = 10.0
#: Seconds that the servers of a lane, its first beats and its end take beside its run.
_ASIDE_S = 20.0


def main() -> int:
    """Run the lanes, print what they came to; return 0 only if nothing was lost, and nothing doubled without excuse."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=_FULL, help="of the whole, about")
    parser.add_argument("--seed", default="", help="replays a plan; without one, another each time")
    parser.add_argument("--lane", action="append", choices=list(LANES), help="only this one; may be repeated")
    parser.add_argument("--report", type=Path, help=f"where to write the tables, of a run of {_FULL:g} minutes or more")
    parser.add_argument("--logs", type=Path, help="a folder for what the beats say, and what is known of runs")
    given = parser.parse_args()
    seed = given.seed or secrets.token_hex(4)
    names = given.lane or list(LANES)
    groups = [names[first : first + _AT_ONCE] for first in range(0, len(names), _AT_ONCE)]
    seconds = max(20.0, given.minutes * 60 / len(groups) - _ASIDE_S)
    print(f"seed {seed}: {len(names)} lanes, {seconds:.0f} s each", flush=True)
    if given.logs is not None:
        given.logs.mkdir(parents=True, exist_ok=True)
    accounts: list[Account] = []
    for group in groups:
        with ThreadPoolExecutor(len(group)) as lanes:
            for done in lanes.map(lambda name: _run(name, seed, seconds), group):
                accounts.append(Account(done))
                _show(accounts[-1])
                if given.logs is not None:
                    accounts[-1].tell(given.logs)
    print(table(accounts))
    wrong = [what for account in accounts for what in account.wrong()]
    print(f"\nseed {seed}: {'; '.join(wrong) or 'nothing lost, nothing twice without an excuse'}")
    if given.report is not None and given.minutes >= _FULL and not given.lane and not wrong:
        given.report.write_text(_page(accounts, seed, seconds, sys.argv[1:]))
    return 1 if wrong else 0


def _run(name: str, seed: str, seconds: float) -> Run:
    with lane(name) as place:
        planned = plan(
            f"{seed} {name}",
            seconds,
            store_ways=list(place.store_outages),
            broker_ways=list(place.broker_outages),
            clocks=place.clocks,
            hangs=place.hangs,
        )
        return run(place, planned)


def _show(account: Account) -> None:
    faults = len(account.run.cluster.hurts)
    print(f"{account.run.lane}: {len(account.expected)} runs, {faults} faults; at most {account.most} of one run")
    for what in account.wrong():
        print(f"  WRONG: {what}", flush=True)


def _page(accounts: Sequence[Account], seed: str, seconds: float, words: Sequence[str]) -> str:
    day = datetime.now(timezone.utc).date()
    total = sum(len(account.expected) for account in accounts)
    return (Path(__file__).with_name("page.md").read_text()).format(
        day=day,
        seed=seed,
        seconds=f"{seconds:.0f}",
        total=f"{total:,}",
        faults=sum(len(account.run.cluster.hurts) for account in accounts),
        entries=ENTRIES,
        ttl=f"{TTL_S:g}",
        table=table(accounts),
    )


if __name__ == "__main__":
    sys.exit(main())
