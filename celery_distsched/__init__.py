"""A Celery beat scheduler that runs on every host at once."""

from celery_distsched.instants import cron
from celery_distsched.scheduler import DistributedScheduler

__version__ = "0.1.0"
__all__ = ["DistributedScheduler", "cron"]
