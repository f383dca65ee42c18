"""Forks beats on demand, each from a process that has everything imported, so that it is sending at once.

Arguments: the Redis that is broker and store, the namespace, how many entries, their interval in seconds. Each line on
standard input asks for one more, whose process id is the answer; they end with it.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from contextlib import suppress
from typing import Any

from celery import Celery

from celery_distsched import DistributedScheduler

QUEUE = "sent"


def settings(url: str, namespace: str, entries: int, interval_s: float) -> dict[str, Any]:
    return {
        "broker_url": url,
        "distsched_url": url,
        "distsched_namespace": namespace,
        "distsched_node_ttl": 2.0,
        "distsched_catch_up": "all",
        "task_default_queue": QUEUE,
        "result_expires": None,
        "beat_schedule": {
            f"entry {number}": {"task": "nobody.runs.it", "schedule": interval_s} for number in range(entries)
        },
    }


def send(conf: dict[str, Any]) -> None:
    app = Celery("senders", set_as_current=False)
    app.conf.update(conf)
    scheduler = DistributedScheduler(app)
    while True:
        time.sleep(min(scheduler.tick(), 0.01))


def main(url: str, namespace: str, entries: str, interval_s: str) -> None:
    logging.basicConfig(level=logging.INFO)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    pids = []
    for _ in sys.stdin:
        pid = os.fork()
        if pid == 0:
            send(settings(url, namespace, int(entries), float(interval_s)))
        pids.append(pid)
        print(pid, flush=True)
    for pid in pids[-5:]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
