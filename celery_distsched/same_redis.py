"""Exactly once enqueued: where the broker's queue and the ledger are in the same Redis, one call claims and pushes.

"The same" is what both connections say of the server behind them (its run_id and the database), not how their URLs are
spelled; the server checks it again in each call.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from celery.beat import logger as beat_logger

from celery_distsched.clock import as_datetime
from celery_distsched.drivers.base import Answer, Claim, Push, PushRefused
from celery_distsched.entries import PlannedEntry
from celery_distsched.hooks import hooks
from celery_distsched.publisher import Publisher

logger = logging.getLogger(__name__)

#: Seconds until a broker that was no help is looked at again.
_LOOK_AGAIN_S = 1.0
#: Longest time, in seconds, that one look may spend on finding out which way each entry goes.
_SURVEY_S = 0.05


class SameRedis:
    """Decides, for each entry that is due, whether it can be claimed and pushed in one step."""

    def __init__(self, scheduler: Any, node_id: str) -> None:
        self._scheduler = scheduler
        self._node_id = node_id
        self._messages: Any = None
        #: There is one as soon as `ready` has said so.
        self._publisher: Publisher = None  # type: ignore[assignment]
        self._run_id = ""
        self._connection: Any = None
        self._why_not_there: str | None = "not looked at yet"
        self._look_again_at = float("-inf")
        self._said: str | None = "nothing yet"
        self._entries: Mapping[str, PlannedEntry] = {}
        self._survey: Iterator[None] | None = None

    def set_entries(self, entries: Mapping[str, PlannedEntry]) -> None:
        """Say anew of these which way they go."""
        self._entries, self._survey, self._said = entries, None, "nothing yet"

    def ready(self, now: float) -> bool:
        """Whether there is a same Redis, and nobody hooks into sending as such. Asked before each slice."""
        why_not = self._look(now)
        if why_not != self._said:
            self._said = why_not
            self._survey = self._say() if why_not is None else None
            if why_not is not None:
                logger.info(
                    "claimed, sent and confirmed one after the other, for all of %d entries, since %s",
                    len(self._entries),
                    why_not,
                )
        if self._survey is not None:
            until = time.perf_counter() + _SURVEY_S
            while self._survey is not None and time.perf_counter() < until:
                self._survey = self._survey if next(self._survey, self) is not self else None
        return why_not is None

    def _look(self, now: float) -> str | None:
        scheduler = self._scheduler
        if not scheduler.settings.fast_publish:
            return "distsched_fast_publish is off"
        if not hasattr(scheduler.driver, "claim_and_push"):
            return "the ledger is not in Redis"
        hook = hooks(scheduler, sys.modules["celery_distsched.scheduler"])
        if hook:
            return hook
        return self._look_at_broker(now)

    def _look_at_broker(self, now: float) -> str | None:
        broker = self._scheduler.broker
        if now < self._look_again_at and not (broker.connected and broker.connection is not self._connection):
            hook: str | None = self._why_not_there or self._messages.hooks()
            return hook
        began = time.perf_counter()
        try:
            self._connection = broker.connection
            self._why_not_there = self._where(self._connection.default_channel)
            # One that is the same is asked again when it refuses or when there is another connection.
            wait_s = _LOOK_AGAIN_S if self._why_not_there else float("inf")
        except Exception as exc:  # noqa: BLE001  (whatever is wrong with the broker, the ordinary way reports it)
            self._connection, self._why_not_there = None, f"the broker cannot be asked: {exc}"
            # Whoever lets us wait is not asked again soon: the heartbeat stops for a loop that stands still.
            wait_s = max(_LOOK_AGAIN_S, 100 * (time.perf_counter() - began))
        self._look_again_at = now + wait_s
        return self._why_not_there

    def _where(self, channel: Any) -> str | None:
        """Say why a channel does not lead to the ledger's Redis; None: it does."""
        if not hasattr(channel, "_q_for_pri") or not hasattr(channel, "conn_or_acquire"):
            return "the broker is not Redis"
        # Only now, since without redis-py it cannot be imported.
        from celery_distsched.redis_messages import RedisMessages

        self._messages = RedisMessages(channel)
        hook: str | None = self._messages.hooks()
        if hook:
            return hook
        run_id = channel.client.info("server")["run_id"]
        if (run_id, channel.pool.connection_kwargs["db"]) != self._scheduler.driver.server():
            return "the broker is another Redis, or another database, than the ledger"
        self._run_id = run_id
        self._publisher = Publisher(self._scheduler, self._node_id, self._messages)
        return None

    def _say(self) -> Iterator[None]:
        """Look at each entry, a few at a time, and then say for how many this way is in force."""
        entries, reasons = self._entries, Counter[str]()
        planned = iter(list(entries.values()))
        while some := list(islice(planned, 20)):
            reasons.update(why for one in some if (why := self._publisher.why_not(one)) is not None)
            yield
        others = sum(reasons.values())
        logger.info(
            "exactly once enqueued, for %d of %d entries: the broker is the ledger's Redis%s%s",
            len(entries) - others,
            len(entries),
            "".join(f"; not for {count}, because {why}" for why, count in reasons.most_common(5)),
            f"; and {len(reasons) - 5} other reasons" if len(reasons) > 5 else "",
        )

    def messages(self, due: Sequence[tuple[PlannedEntry, Sequence[int]]]) -> list[list[Push] | None]:
        """Return the messages of each entry's instants; None for an entry that goes the ordinary way."""
        return self._publisher.messages(due)

    def claim_and_push(self, claims: Sequence[Claim], fence: str) -> Sequence[Answer | PushRefused]:
        """Do it; see `RedisDriver.claim_and_push`."""
        answers: Sequence[Answer | PushRefused] = self._scheduler.driver.claim_and_push(claims, fence, self._run_id)
        return answers

    def elsewhere(self) -> None:
        """The server behind one of the connections has changed: look again."""
        self._connection, self._look_again_at = None, float("-inf")

    def refused(self, planned: PlannedEntry, error: str) -> None:
        """The server would not take an entry's message: the ordinary way reports it, and tries again."""
        self._publisher.avoid(planned, error)

    def note(self, planned: PlannedEntry, instants: Sequence[int]) -> None:
        """What Celery's `apply_entry` would have noted and logged of a run."""
        entry = planned.entry
        if beat_logger.isEnabledFor(logging.INFO):
            for _ in instants:
                beat_logger.info("Scheduler: Sending due task %s (%s)", entry.name, entry.task)
                beat_logger.debug("%s sent.", entry.task)
        entry.last_run_at = as_datetime(instants[-1])
        entry.total_run_count += len(instants)
