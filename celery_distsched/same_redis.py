"""Exactly once enqueued: where the broker's queue and the ledger are in the same Redis, one call claims and pushes.

"The same" is what both connections say of the server behind them (its run_id and the database), not how their URLs are
spelled; the server checks it again in each call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery_distsched.drivers.base import Claim, Pushing
from celery_distsched.template import Messages


def why_apart(driver: Any, run_id: str, database: int) -> str | None:
    """Say why what is claimed in the ledger cannot be pushed to this database of this server in the same step."""
    if not hasattr(driver, "claim_and_push"):
        return "the ledger is not in Redis"
    if driver.settings.get("wait_replicas"):
        return "wait_replicas asks that replicas have a claim before its message leaves"
    if driver.server() != (run_id, database):
        return "the broker is another Redis, or another database, than the ledger"
    return None


class SameRedis:
    """The one call, to a server that has been seen to be the broker too."""

    what = "exactly once enqueued"
    why = "the broker is the ledger's Redis, which claims and pushes in one call"

    def __init__(self, driver: Any, run_id: str, messages: Messages) -> None:
        self.messages = messages
        self._driver = driver
        self._run_id = run_id

    def claim_and_push(self, claims: Sequence[Claim], fence: str) -> Pushing:
        """Do it; see `RedisDriver.claim_and_push`."""
        pushing: Pushing = self._driver.claim_and_push(claims, fence, self._run_id)
        return pushing
