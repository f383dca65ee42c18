"""When an entry is due: from a schedule and the last instant to the next ones. Pure: no store, no thread, no clock.

Instants are integer microseconds since the epoch, in UTC, everywhere.
"""

from celery_distsched.instants.catch_up import CatchUp, Due, due, jitter
from celery_distsched.instants.cron import cron
from celery_distsched.instants.kinds import Asked, ask, rule_for
from celery_distsched.instants.rule import Rule

__all__ = ["Asked", "CatchUp", "Due", "Rule", "ask", "cron", "due", "jitter", "rule_for"]
