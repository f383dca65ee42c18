"""Loaded into the worker: notes each task that it receives, one line each, in the file that ``DEMO_RUNS`` names."""

# Celery's signals carry no types.
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import json
import os
import time
from typing import Any

from celery import signals

# Appending one whole line in one write keeps lines whole, whoever else may write.
_file = os.open(os.environ["DEMO_RUNS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def _note(**fields: Any) -> None:
    os.write(_file, (json.dumps(fields) + "\n").encode())


@signals.worker_ready.connect
def _ready(**_: Any) -> None:
    _note(ready=True)


@signals.task_prerun.connect
def _received(task_id: str, task: Any, **_: Any) -> None:
    headers = task.request.headers or {}
    _note(
        entry=headers.get("periodic_task_name"),
        scheduled_at=headers.get("scheduled_at"),
        task_id=task_id,
        node=headers.get("distsched_node"),
        received=time.time(),
    )
