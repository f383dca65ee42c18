"""The Celery app of a beat in a process of its own; the environment says what it is like."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from celery import Celery, signals

_given = json.loads(os.environ["SCHEDULER_TEST"])
_published = 0

for _name in _given["without"]:
    # What Python takes for a module that is not there.
    sys.modules[_name] = None  # type: ignore[assignment]

app = Celery(_given["main"])
app.conf.update(
    _given["settings"],
    beat_scheduler="celery_distsched:DistributedScheduler",
    beat_schedule={name: {"task": "nobody.runs.it", "schedule": 3600.0} for name in _given["names"]},
)


def _interrupt(**kwargs: Any) -> None:
    """At the message with the given number, send oneself SIGTERM, and note when."""
    global _published
    _published += 1
    if _published == _given["interrupt"]["at"]:
        Path(_given["interrupt"]["note"]).write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGTERM)


if _given["interrupt"]:
    getattr(signals, f"{_given['interrupt']['when']}_task_publish").connect(_interrupt, weak=False)
