"""Exactly once enqueued: where the broker's queue and the ledger are in the same Redis, one call claims and pushes.

"The same" is what both connections say of the server behind them (its run_id and the database), not how their URLs are
spelled; the server checks it again in each call.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from celery.beat import Scheduler
from celery.beat import logger as beat_logger

from celery_distsched.clock import as_datetime
from celery_distsched.drivers.base import Answer, Claim, Push, PushRefused
from celery_distsched.entries import PlannedEntry
from celery_distsched.publisher import OrdinaryWay, Publisher, caught_put, hooks

logger = logging.getLogger(__name__)

#: Seconds for which an answer about the whole is good.
_CHECK_S = 1.0


class SameRedis:
    """Decides, for each entry that is due, whether it can be claimed and pushed in one step."""

    def __init__(self, scheduler: Any, node_id: str) -> None:
        self._scheduler = scheduler
        self._publisher = Publisher(scheduler.app, scheduler.settings.namespace, node_id, self._capture)
        self._run_id = ""
        self._connection: Any = None
        self._why_not: str | None = "not looked at yet"
        self._checked_at = float("-inf")
        self._said: str | None = "nothing yet"

    def ready(self, now: float) -> bool:
        """Whether there is a same Redis, and nobody hooks into sending as such."""
        if now - self._checked_at >= _CHECK_S:
            self._checked_at = now
            self._why_not = self._look()
            if self._why_not != self._said:
                self._said = self._why_not
                if self._why_not is None:
                    logger.info(
                        "exactly once enqueued, but for entries that are hooked into: the broker is the ledger's Redis"
                    )
                else:
                    logger.info("claimed, sent and confirmed one after the other, %s", self._why_not)
        return self._why_not is None

    def _look(self) -> str | None:
        scheduler = self._scheduler
        if not scheduler.settings.fast_publish:
            return "since distsched_fast_publish is off"
        if not hasattr(scheduler.driver, "claim_and_push"):
            return "since the ledger is not in Redis"
        if scheduler.driver.settings.get("wait_replicas"):
            return "since wait_replicas asks that replicas have a claim before its message leaves"
        hook = hooks(scheduler)
        if hook:
            return f"since {hook}"
        try:
            connection = scheduler.broker.connection
            if connection is not self._connection:
                channel = connection.default_channel
                if not hasattr(channel, "_q_for_pri") or not hasattr(channel, "conn_or_acquire"):
                    return "since the broker is not Redis"
                run_id = channel.client.info("server")["run_id"]
                if (run_id, channel.pool.connection_kwargs["db"]) != scheduler.driver.server():
                    return "since the broker is another Redis, or another database, than the ledger"
                self._run_id, self._connection = run_id, connection
                self._publisher.forget()
        except Exception as exc:  # noqa: BLE001  (whatever is wrong with the broker, the ordinary way reports it)
            self._connection = None
            return f"since the broker cannot be asked: {exc}"
        return None

    def messages(self, planned: PlannedEntry, instants: Sequence[int]) -> list[Push]:
        """Return the messages of these occurrences; none, if the entry goes the ordinary way."""
        pushes = [push for instant in instants if (push := self._publisher.message(planned, instant)) is not None]
        return pushes if len(pushes) == len(instants) else []

    def claim_and_push(self, claims: Sequence[Claim], fence: str) -> Sequence[Answer | PushRefused]:
        """Do it; see `RedisDriver.claim_and_push`."""
        answers: Sequence[Answer | PushRefused] = self._scheduler.driver.claim_and_push(claims, fence, self._run_id)
        return answers

    def elsewhere(self) -> None:
        """The server behind one of the connections has changed: look again."""
        self._connection, self._checked_at = None, float("-inf")

    def refused(self, planned: PlannedEntry, error: str) -> None:
        """The server would not take an entry's message: the ordinary way reports it, and tries again."""
        self._publisher.avoid(planned, error)

    def note(self, planned: PlannedEntry, instants: Sequence[int]) -> None:
        """What Celery's `apply_entry` would have noted and logged of a run."""
        entry = planned.entry
        for _ in instants:
            beat_logger.info("Scheduler: Sending due task %s (%s)", entry.name, entry.task)
        entry.last_run_at = as_datetime(instants[-1])
        entry.total_run_count += len(instants)

    def _capture(self, entry: Any) -> tuple[Any, str, dict[str, Any]]:
        producer = self._scheduler.broker.producer
        with caught_put(producer.channel) as caught:
            Scheduler.apply_async(self._scheduler, entry, producer=producer, advance=False)
        if len(caught) != 1 or not caught[0][0]:
            raise OrdinaryWay("its message does not go to one queue")
        return (producer.channel, *caught[0])
