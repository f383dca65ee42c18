"""Run seed after seed: ``python -m tests.simulation --minutes 5`` or, to replay one, ``--seed 7 --count 1``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

if __name__ == "__main__" and os.environ.get("PYTHONHASHSEED") != "0":
    # The order of sets is part of what a seed decides.
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONHASHSEED": "0"})

from tests.simulation.faults import FAULTS
from tests.simulation.first_draft import DraftNode
from tests.simulation.life import HOUR_S, live
from tests.simulation.node import Node
from tests.simulation.plan import Plan
from tests.simulation.rules import RULES, without
from tests.simulation.upstream import UpstreamNode

OURS, UPSTREAM = "ours", "upstream"
POLICIES: dict[str, type[Any]] = {OURS: Node, UPSTREAM: UpstreamNode, "first-draft": DraftNode}


def main() -> int:
    given = _arguments()
    if given.teeth:
        return _teeth(given.count or 40, given.seconds, given.only, given.gap)
    seeds, failed, hours, cpu_s, counts, began = 0, 0, 0.0, 0.0, Counter[str](), time.monotonic()
    for report in _reports(given):
        seeds += 1
        hours += report["hours"]
        cpu_s += report["cpu_s"]
        counts.update(report["counts"])
        if report["broken"]:
            failed += 1
            print(f"seed {report['seed']}: {report['broken']}", flush=True)
            print(f"  replay: {_replay(given, report['seed'])}", flush=True)
            if given.until and given.until in report["broken"]:
                break
    summary = {"seeds": seeds, "violations": failed, "virtual hours": round(hours), "CPU seconds": round(cpu_s, 1)}
    summary["virtual hours a CPU minute"] = round(hours / cpu_s * 60)
    summary["virtual hours a minute"] = round(hours / (time.monotonic() - began) * 60)
    print(json.dumps({**summary, **dict(sorted(counts.items()))}))
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--count", type=int, help="how many seeds; without it, as many as there is time for")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    parser.add_argument("--hours", type=float, default=24.0, help="virtual hours of a calm life")
    parser.add_argument("--gap", type=float, help="mean virtual hours between two episodes of faults, in a calm life")
    parser.add_argument("--without", choices=RULES, metavar="RULE", help="switch a rule of the protocol off")
    parser.add_argument("--delivery", choices=("at_least_once", "at_most_once"))
    parser.add_argument("--policy", choices=POLICIES, default=OURS, help="who decides what is sent by whom")
    parser.add_argument("--plain", action="store_true", help="the lives that the other policies are given, for ours")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, metavar="FAULT", help="nothing but these happens")
    parser.add_argument("--step", type=int, default=1, help="to the next seed: from 3, 4 is that of the busy ones")
    parser.add_argument("--until", metavar="TEXT", help="no further than the first violation of which it says this")
    parser.add_argument("--teeth", action="store_true", help="each rule switched off, until a seed finds it")
    parser.add_argument("--seconds", type=float, default=180.0, help="of CPU, for each of these at most")
    parser.add_argument("--only", help="of these, only those with this in their names")
    return parser.parse_args()


def _reports(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Live one life after the other, in as many processes as were asked for; what they came to is told in order."""
    if given.jobs == 1:
        yield from (_report(given, seed) for seed in _seeds(given))
        return
    with ProcessPoolExecutor(given.jobs) as processes:
        lives: deque[Future[dict[str, Any]]] = deque()
        for seed in _seeds(given):
            lives.append(processes.submit(_report, given, seed))
            if len(lives) > 2 * given.jobs:
                yield lives.popleft().result()
        while lives:
            yield lives.popleft().result()


def _seeds(given: argparse.Namespace) -> Iterator[int]:
    ends = time.monotonic() + 60 * given.minutes
    seed = given.seed
    while seed - given.seed < given.count * given.step if given.count else time.monotonic() < ends:
        yield seed
        seed += given.step


def _report(given: argparse.Namespace, seed: int) -> dict[str, Any]:
    return report(
        seed,
        hours=given.hours,
        gap_hours=given.gap,
        rule=given.without,
        delivery=given.delivery,
        policy=given.policy,
        plain=given.plain,
        faults=given.faults or tuple(FAULTS),
    )


def report(
    seed: int,
    *,
    hours: float = 24.0,
    gap_hours: float | None = None,
    rule: str | None = None,
    delivery: str | None = None,
    policy: str = OURS,
    plain: bool = False,
    faults: Sequence[str] = tuple(FAULTS),
) -> dict[str, Any]:
    """Live one life; says what it came to."""
    plan = Plan.of(seed)
    if plain or policy != OURS:
        plan = plan.but(same_redis=False, slices=False, deploys=False, delivery="at_least_once", ttls_s=plan.ttls_s[:1])
    if delivery:
        plan = plan.but(delivery=delivery)
    if gap_hours:
        plan = plan.but(gap_s=gap_hours * HOUR_S)
    broken, cluster, cpu_s = None, None, time.process_time()
    with without(rule):
        try:
            cluster = live(
                seed, hours=hours, plan=plan, faults=faults, node_class=POLICIES[policy], skips=policy != UPSTREAM
            )
        except AssertionError as exc:
            broken = str(exc)
        except Exception as exc:
            # Without one of its rules the code may meet what it takes for impossible.
            broken = f"{type(exc).__name__}: {exc}"
    return {
        "seed": seed,
        "kind": plan.kind,
        "broken": broken,
        "hours": cluster.world.time / HOUR_S if cluster else 0.0,
        "cpu_s": time.process_time() - cpu_s,
        "counts": cluster.promises.counts if cluster else {},
    }


def _replay(given: argparse.Namespace, seed: int) -> str:
    words = [f"--seed {seed} --count 1"]
    if given.hours != 24.0:
        words.append(f"--hours {given.hours:g}")
    if given.gap:
        words.append(f"--gap {given.gap:g}")
    if given.without:
        words.append(f"--without {given.without!r}")
    if given.policy != OURS:
        words.append(f"--policy {given.policy}")
    if given.plain:
        words.append("--plain")
    if given.faults:
        words.append(f"--faults {' '.join(given.faults)}")
    if given.delivery:
        words.append(f"--delivery {given.delivery}")
    return f".venv/bin/python -m tests.simulation {' '.join(words)}"


def _teeth(most: int, most_s: float, only: str | None, gap_hours: float | None) -> int:
    """Print, as a line of JSON each, which seed finds what: every rule switched off, for so much CPU time at most."""
    missed = 0
    for name in RULES:
        if only and only not in name:
            continue
        began_s, seeds, broken = time.process_time(), 0, None
        while broken is None and seeds < most and time.process_time() - began_s < most_s:
            broken = report(seeds, hours=6.0, rule=name, gap_hours=gap_hours)["broken"]
            seeds += 1
        missed += broken is None
        print(json.dumps({"without": name, "seeds": seeds, "broken": broken}), flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
