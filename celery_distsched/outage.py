"""What is said of a store that cannot be used: what is wrong, what else is by and by, and that it is over."""

from __future__ import annotations

import logging

from celery_distsched.clock import Clock
from celery_distsched.errors import StoreUnavailable

logger = logging.getLogger(__name__)

#: Seconds between two reasons that are told: in an outage one follows the other.
_TELL_AGAIN_S = 10.0


class Outage:
    """One node's account of whether its store answers."""

    def __init__(self, url: str, clock: Clock) -> None:
        self._url = url
        self._clock = clock
        self._reasons: set[str] = set()
        self._began_at = self._told_at = float("-inf")
        #: When it was met last, and when the last one was over; on `Clock.elapsed`.
        self.met_at = self.over_at = float("-inf")

    @property
    def lasts(self) -> bool:
        """Whether there is one."""
        return bool(self._reasons)

    def met(self, exc: StoreUnavailable) -> None:
        """A call to the store failed."""
        now, reason = self._clock.elapsed(), str(exc)
        self.met_at = now
        if not self._reasons:
            self._began_at = self._told_at = now
            logger.error(
                "the store does not answer (%s): %s; nothing new is sent until it does, then this node catches up",
                self._url,
                reason,
            )
        elif reason not in self._reasons and now - self._told_at >= _TELL_AGAIN_S:
            self._told_at = now
            logger.error("after %.0f s the store is still of no use, by now since: %s", now - self._began_at, reason)
        else:
            return
        self._reasons.add(reason)

    def over(self) -> None:
        """The store has done what was asked of it."""
        logger.warning("the store answers again (%s)", self._url)
        self._reasons.clear()
        self.over_at = self._clock.elapsed()
