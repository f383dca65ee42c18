"""Sentry patches Celery's own scheduler class, and thereby ours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAME = "compared"


@pytest.mark.parametrize("when", ["first", "after the import", "after the scheduler is made"])
def test_sentry_sees_each_run_whenever_it_is_set_up(when: str) -> None:
    """In a process of its own, since Sentry's patches stay."""
    beat = subprocess.run(
        [sys.executable, "-m", "tests.scheduler.sentry_beat", when],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert beat.returncode == 0, beat.stderr
    said = json.loads(beat.stdout)
    headers = said["headers"]
    assert headers["sentry-monitor-slug"] == NAME == headers["periodic_task_name"]
    assert headers["sentry-monitor-config"]["schedule"] == {"type": "interval", "value": 1, "unit": "hour"}
    assert "sentry-trace" in headers
    (check_in,) = said["check-ins"]
    assert (check_in["monitor_slug"], check_in["status"]) == (NAME, "in_progress")
    assert headers["sentry-monitor-check-in-id"] == check_in["check_in_id"]
    assert said["excluded"]["periodic_task_name"] == "excluded"
    assert "sentry-monitor-slug" not in said["excluded"]
