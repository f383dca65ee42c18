"""The Celery app that the beats of a run have in common; the environment says what it is like."""

from __future__ import annotations

import json
import os

from celery import Celery

from tests.acceptance.rhythms import rhythms

_given = json.loads(os.environ["ACCEPTANCE"])

app = Celery("acceptance")
app.conf.update(
    _given["settings"],
    beat_scheduler="celery_distsched:DistributedScheduler",
    beat_schedule={
        name: {"task": "nobody.runs.it", "schedule": rhythm.schedule}
        for name, rhythm in rhythms(_given["entries"]).items()
    },
)
