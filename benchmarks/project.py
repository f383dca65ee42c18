"""The Celery app of the beats that are measured; the environment says what it is like."""

from __future__ import annotations

import json
import os
import time

from celery import Celery

from benchmarks.workload import Workload

_given = json.loads(os.environ["BENCHMARK"])
_began = time.perf_counter()
_schedule = Workload(*_given["workload"]).schedule() if _given["workload"] else {}
#: Seconds that making the user's own dict took: no scheduler's doing.
dict_s = time.perf_counter() - _began

app = Celery("benchmark")
app.conf.update(
    # Without an entry of Celery's own.
    result_expires=None,
    beat_schedule=_schedule,
    **_given["settings"],
)
