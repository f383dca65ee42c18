"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import version

from benchmarks.machine import cpu
from tests.servers import find_binary

_SERVERS = {
    "Redis": ("redis-server", "--version"),
    "etcd": ("etcd", "--version"),
    "Consul": ("consul", "version"),
    "RabbitMQ": ("rabbitmqctl", "version"),
}


def lines() -> list[str]:
    """Return it, one fact a line."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("celery", "kombu", "celery_distsched"))
    servers = ", ".join(f"{name} {_number(*command)}" for name, command in _SERVERS.items())
    return [
        f"{cpu()}, {os.cpu_count()} cores; {platform.system()} {platform.release().split('-')[0]}",
        f"Python {platform.python_version()}, {packages}",
        servers,
    ]


def _number(program: str, *words: str) -> str:
    shown = subprocess.run([find_binary(program), *words], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\d+(\.\d+)+", shown)
    return found.group() if found else "?"
