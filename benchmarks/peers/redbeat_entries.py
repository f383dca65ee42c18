"""Writes a workload into RedBeat's Redis: ``python -m benchmarks.peers.redbeat_entries URL KIND SIZE DUE``."""

from __future__ import annotations

import json
import sys

from celery import Celery
from redbeat.schedulers import RedBeatJSONEncoder, RedBeatSchedulerEntry, ensure_conf, get_redis

from benchmarks.workload import Workload

_BATCH = 1000


def main(url: str, kind: str, size: str, due_s: str) -> None:
    """Write what `RedBeatSchedulerEntry.save` would, many entries at a time."""
    app = Celery("benchmark", broker=url)
    app.conf.redbeat_redis_url = url
    ensure_conf(app)
    pipeline = get_redis(app).pipeline(transaction=False)
    workload = Workload(kind, int(size), int(due_s))
    for number, (name, given) in enumerate(workload.schedule().items()):
        entry = RedBeatSchedulerEntry(name, app=app, **given)
        fields = ("name", "task", "args", "kwargs", "options", "schedule", "enabled")
        definition = {field: getattr(entry, field) for field in fields}
        pipeline.hset(entry.key, "definition", json.dumps(definition, cls=RedBeatJSONEncoder))
        pipeline.hset(entry.key, "meta", json.dumps({"last_run_at": entry.last_run_at}, cls=RedBeatJSONEncoder))
        # Its own `score` is only right in the moment of a run.
        pipeline.zadd(app.redbeat_conf.schedule_key, {entry.key: workload.due_s})
        if number % _BATCH == 0:
            pipeline.execute()
    pipeline.execute()


if __name__ == "__main__":
    main(*sys.argv[1:])
