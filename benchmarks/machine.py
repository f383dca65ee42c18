"""The machine that a run was made on, without its name."""

from __future__ import annotations

import math
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from benchmarks.bench import Bench
from tests.servers import find_binary


def lines(bench: Bench, load_before: float) -> list[str]:
    """Return what it is, one fact a line."""
    versions = [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in ("celery", "kombu"))]
    versions += [f"redis-py {version('redis')}", _redis()]
    peers = [f"{peer.name} {peer.installed}" for peer in bench.peers if peer.package != "celery"]
    return [
        f"{cpu()}, {os.cpu_count()} cores; {platform.system()} {platform.release().split('-')[0]}",
        ", ".join(versions),
        f"celery_distsched {version('celery-distsched')}" + "".join(f", {peer}" for peer in peers),
        f"load average (1 min) {load_before:.2f} before, {os.getloadavg()[0]:.2f} after: servers, beats and the one who"
        " watches share these cores, with whatever else runs there",
    ]


def cpu() -> str:
    """Return the name of its processor."""
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    return models[0] if models else platform.machine()


def busy_s() -> float:
    """Return the processor time of all cores, in seconds, that has gone into anything; NaN where that is not told."""
    try:
        _, user, nice, system, _, _, irq, softirq, *_ = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except (OSError, ValueError):
        return math.nan
    return sum(map(int, (user, nice, system, irq, softirq))) / os.sysconf("SC_CLK_TCK")


def _redis() -> str:
    shown = subprocess.run([find_binary("redis-server"), "--version"], capture_output=True, text=True, check=True)
    number = next((word[2:] for word in shown.stdout.split() if word.startswith("v=")), "?")
    return f"Redis {number}"
