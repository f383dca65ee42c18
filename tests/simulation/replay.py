"""Run simulations in processes of their own, where the order of sets is the same each time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]


def simulate(*words: str) -> list[dict[str, Any]]:
    """Return what a run prints in which nothing is broken, or everything that is to be broken is."""
    done = _run(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def violation(seed: int, *words: str) -> str | None:
    """Live one life; return which promise was broken, and how."""
    done = _run("--seed", f"{seed}", "--count", "1", *words)
    lines = done.stdout.splitlines() or [""]
    first, last = lines[0], lines[-1]
    assert '"seeds": 1' in last, done.stdout + done.stderr
    return None if done.returncode == 0 else first.partition(": ")[2]


def first_violation(until: str, *words: str) -> tuple[int, str]:
    """Live one life after the other, until a promise is broken of which this is said; return the seed, and what it was.

    Which seed that is depends on the order of sets, and so on the release of Python.
    """
    done = _run("--until", until, *words)
    found = [line for line in done.stdout.splitlines() if line.startswith("seed ") and until in line]
    assert found, done.stdout + done.stderr
    seed, _, broken = found[-1].removeprefix("seed ").partition(": ")
    return int(seed), broken


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.simulation", *words]
    return subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
