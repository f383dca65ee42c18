"""Sentry and OpenTelemetry trace each run, though nobody has told the scheduler of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.same_redis.traced_beat import NAMES
from tests.same_redis.watched import FAST, ORDINARY, Watch

ROOT = Path(__file__).parents[2]


def run(tracer: str, url: str, when: str) -> tuple[dict[str, Any], str]:
    """In a process of its own, since the patches of tracers stay; returns what it printed, and its log."""
    beat = subprocess.run(
        [sys.executable, "-m", "tests.same_redis.traced_beat", tracer, url, when],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert beat.returncode == 0, beat.stderr
    return json.loads(beat.stdout), beat.stderr


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("tracer", "header", "reason"),
    [("sentry", "sentry-monitor-slug", "apply_entry"), ("opentelemetry", "traceparent", "before_task_publish")],
)
def test_each_run_is_traced(url: str, watch: Watch, tracer: str, header: str, reason: str, when: str) -> None:
    said, log = run(tracer, url, when)
    assert watch.ways() == {name: [ORDINARY] for name in NAMES}
    assert all(headers[header] for headers in said["headers"]), said
    assert len({headers[header] for headers in said["headers"]}) == len(NAMES), said
    assert len(said["told"]) == len(NAMES)
    assert any("claimed, sent and confirmed one after the other" in line and reason in line for line in log.split("\n"))


def test_without_a_tracer_the_same_beat_goes_the_fast_way(url: str, watch: Watch) -> None:
    said, _ = run("none", url, "before")
    assert watch.ways() == {name: [FAST] for name in NAMES}
    assert said["told"] == []
