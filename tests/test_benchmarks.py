"""The benchmarks can be run. How fast anything is, is no test's business."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from celery.schedules import maybe_schedule

from benchmarks.contenders import OURS
from benchmarks.queues import Arrivals, RedisQueue
from benchmarks.report import number
from benchmarks.runs import burst
from benchmarks.workload import Workload
from celery_distsched.instants import rule_for
from tests.servers import RedisServer

_ROOT = Path(__file__).resolve().parents[1]


def test_a_burst_is_seen_whole_from_outside(redis_server: RedisServer) -> None:
    with closing(RedisQueue(redis_server.url(path="/7"), redis_server.host, redis_server.port)) as queue:
        found = burst(OURS, queue, 20, bound_s=10)
        assert found.complete
        assert found.arrived == len(queue.messages()) == 20
    assert 0 < found.last_s < 10
    assert found.beats_cpu_s >= 0


def test_results_of_some_parts_do_not_replace_those_that_are_kept(tmp_path: Path) -> None:
    kept = (_ROOT / "benchmarks" / "RESULTS.md").read_bytes()
    words = [sys.executable, "-m", "benchmarks", "rebalance", "--quick", "--sizes", "100", "--out", str(tmp_path)]
    subprocess.run(words, cwd=_ROOT, check=True, capture_output=True)
    assert "## Rebalance" in (tmp_path / "RESULTS.md").read_text()
    assert (_ROOT / "benchmarks" / "RESULTS.md").read_bytes() == kept


@pytest.mark.parametrize("kind", ["interval", "crontab", "cron", "mixed"])
def test_every_entry_of_a_workload_is_due_at_its_moment_and_not_before(kind: str) -> None:
    due_s = 1_700_000_040
    workload = Workload(kind, 300, due_s)
    for number_, (name, given) in enumerate(workload.schedule().items()):
        rule = rule_for(maybe_schedule(given["schedule"]))
        assert rule is not None
        assert rule.after(workload.last_us(number_)) == due_s * 1_000_000, name


def test_rates_count_what_came_after_the_first_look() -> None:
    arrivals = Arrivals([10.0, 10.5, 11.0], [100, 150, 300])
    assert arrivals.rate == 200
    assert arrivals.arrival()[100] == 10.5
    assert len(arrivals.arrival()) == 300


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (0.012345, "0.0123"), (9.876, "9.88"), (1234.5, "1,230"), (99_999.0, "100,000")],
)
def test_numbers_are_shown_with_three_digits_that_mean_something(value: float, shown: str) -> None:
    assert number(value) == shown
