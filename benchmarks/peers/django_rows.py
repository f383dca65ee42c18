"""Writes a workload of intervals for django-celery-beat: ``python -m benchmarks.peers.django_rows - KIND SIZE DUE``."""

from __future__ import annotations

import sys

import django
from django.core.management import call_command

from benchmarks.workload import TASK, Workload


def main(_: str, kind: str, size: str, due_s: str) -> None:
    """Make the tables and fill them."""
    django.setup()
    from django_celery_beat.models import IntervalSchedule, PeriodicTask, PeriodicTasks

    assert kind == "interval", f"{kind} is not supported here"
    workload = Workload(kind, int(size), int(due_s))
    call_command("migrate", verbosity=0)
    daily = IntervalSchedule.objects.create(every=1, period=IntervalSchedule.DAYS)
    ran = workload.last_run_at()
    rows = [PeriodicTask(name=name, task=TASK, interval=daily, last_run_at=ran) for name in workload.names()]
    PeriodicTask.objects.bulk_create(rows, batch_size=1000)
    PeriodicTasks.update_changed()


if __name__ == "__main__":
    main(*sys.argv[1:])
