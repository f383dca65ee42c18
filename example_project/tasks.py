"""What is run. Each message says for which instant it was sent, and by which beat."""

# Celery's decorators carry no types.
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

from typing import Any

from celery.utils.log import get_task_logger

from example_project.app import app

logger = get_task_logger(__name__)


@app.task(bind=True)
def read_sensor(self: Any, number: int) -> None:
    """Read one sensor."""
    logger.info("reading sensor %d; %s", number, _origin(self))


@app.task(bind=True)
def refresh(self: Any, what: str) -> None:
    """Fetch something anew."""
    logger.info("refreshing the %s; %s", what, _origin(self))


@app.task(bind=True)
def report(self: Any) -> None:
    """Sum up the last minute."""
    logger.info("reporting; %s", _origin(self))


def _origin(task: Any) -> str:
    headers = task.request.headers or {}
    return f"due {headers.get('scheduled_at', 'now')}, sent by {headers.get('distsched_node', 'hand')}"
