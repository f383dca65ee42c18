"""What the workers run; it is copied to where they are, so it needs nothing but Celery."""

from __future__ import annotations

import json
from typing import Any

from celery import Task, shared_task
from celery.utils.log import get_task_logger

logger = get_task_logger(__name__)


@shared_task(bind=True, name="tell")  # type: ignore[untyped-decorator]
def tell(self: Task) -> dict[str, Any]:
    """Log and return what the task can see of the run that it is."""
    request = self.request
    run = {
        "entry": request.periodic_task_name,
        "scheduled_at": request.scheduled_at,
        "node": request.distsched_node,
        "task_id": request.id,
    }
    logger.info("ran %s", json.dumps(run))
    return run
