"""A beat that sends each of its entries once."""

from __future__ import annotations

from typing import Any

from celery import Celery

from celery_distsched import DistributedScheduler
from tests.scheduler.cluster import Beat, Cluster


def run(cluster: Cluster, app: Celery, *, scheduler: Any = DistributedScheduler) -> Beat:
    """Let a beat with this scheduler send what is due in the app's schedule, all of it, and close it."""
    names = list(app.conf.beat_schedule)
    cluster.seed(*names)
    beat = Beat(app)
    beat.scheduler = scheduler(app)
    try:
        beat.tick_until(lambda: cluster.settled(*names))
        # By then it has said which way they go.
        beat.tick_until(lambda: not beat.inner.dispatch._fast_way.surveying)
    finally:
        beat.close()
    return beat
