"""A beat in a Redis that is its broker too, traced by Sentry or OpenTelemetry; prints each message's headers.

Arguments: which of the two, the Redis, and whether it is set up before the scheduler is made or after.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from tests.scheduler.cluster import HOURLY, Beat, Cluster

NAMES = ("one", "two")
#: What the tracer was told.
told: list[str] = []


def set_up(tracer: str) -> None:
    if tracer == "sentry":
        _set_up_sentry()
    elif tracer == "opentelemetry":
        _set_up_opentelemetry()


def _set_up_sentry() -> None:
    import sentry_sdk
    from sentry_sdk.integrations.celery import CeleryIntegration
    from sentry_sdk.transport import Transport

    class Kept(Transport):
        def capture_envelope(self, envelope: Any) -> None:
            told.extend(item.payload.json["monitor_slug"] for item in envelope.items if item.type == "check_in")

    celery = CeleryIntegration(monitor_beat_tasks=True)
    sentry_sdk.init(dsn="http://key@127.0.0.1:9/1", transport=Kept, traces_sample_rate=1.0, integrations=[celery])


def _set_up_opentelemetry() -> None:
    from opentelemetry.instrumentation.celery import CeleryInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

    class Kept(SpanExporter):
        def export(self, spans: Any) -> Any:
            told.extend(span.attributes["celery.task_name"] for span in spans)
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(Kept()))
    instrumentor: Any = CeleryInstrumentor
    instrumentor().instrument(tracer_provider=provider)


def main(tracer: str, url: str, when: str) -> None:
    logging.basicConfig(level=logging.INFO)
    if when == "before":
        set_up(tracer)
    cluster = Cluster(url, broker=url)
    cluster.seed(*NAMES)
    beat = Beat(cluster.app(dict.fromkeys(NAMES, HOURLY)))
    if when == "after":
        set_up(tracer)
    beat.tick_until(lambda: cluster.settled(*NAMES))
    beat.close()
    headers = []
    with beat.app.connection_for_read() as connection, connection.SimpleQueue(cluster.queue, no_ack=True) as queue:
        headers = [queue.get_nowait().headers for _ in NAMES]
    print(json.dumps({"headers": headers, "told": told}, default=str))
    cluster.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
