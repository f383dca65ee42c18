"""A beat with Sentry's Celery integration; prints what was sent to the broker, and what to Sentry.

Its one argument says when Sentry is set up.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import sentry_sdk
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

NAME, EXCLUDED = "compared", "excluded"
check_ins: list[dict[str, Any]] = []


class Kept(Transport):
    """Keeps what Sentry would be told."""

    def capture_envelope(self, envelope: Envelope) -> None:
        check_ins.extend(item.payload.json or {} for item in envelope.items if item.type == "check_in")


def set_up_sentry() -> None:
    from sentry_sdk.integrations.celery import CeleryIntegration

    sentry_sdk.init(
        dsn="http://key@127.0.0.1:9/1",
        transport=Kept,
        traces_sample_rate=1.0,
        integrations=[CeleryIntegration(monitor_beat_tasks=True, exclude_beat_tasks=[EXCLUDED])],
    )


when = sys.argv[1]
if when == "first":
    set_up_sentry()

from tests.scheduler.cluster import HOURLY, Beat, Cluster  # noqa: E402

if when == "after the import":
    set_up_sentry()

cluster = Cluster("memory://sentry")
cluster.seed(NAME, EXCLUDED)
beat = Beat(cluster.app({NAME: HOURLY, EXCLUDED: HOURLY}))
if when == "after the scheduler is made":
    set_up_sentry()
beat.tick_until(lambda: beat.inner.dispatch.records.tally.counts["accepted"] == 2)
beat.close()

sent: dict[str, Any] = {}
with beat.app.connection_for_read() as connection, connection.SimpleQueue(cluster.queue, no_ack=True) as queue:
    for _ in (NAME, EXCLUDED):
        headers = queue.get_nowait().headers
        sent[headers["periodic_task_name"]] = headers
print(json.dumps({"headers": sent[NAME], "excluded": sent[EXCLUDED], "check-ins": check_ins}, default=str))
