"""What is said of live nodes that carry other schedules: in a deploy that is as it should be, and it has an end."""

from __future__ import annotations

import logging
from collections.abc import Collection

from celery_distsched.clock import Clock

logger = logging.getLogger(__name__)

#: Seconds after which it is no deploy any more, most likely.
_DEPLOY_S = 900.0


class OtherSchedules:
    """One node's account of them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._others: frozenset[int] = frozenset()
        self._since = 0.0
        self._warned = False

    def look(self, mine: int, live: Collection[int]) -> None:
        """Take in the epochs of this node's schedule and of those of all live nodes; 0 is none yet."""
        others = frozenset(live).difference((0, mine))
        now = self._clock.elapsed()
        if others and not self._others:
            self._since, self._warned = now, False
        if others and others != self._others:
            logger.info(
                "live nodes carry other schedules than this node's number %d: %s; of an entry that they have too the"
                " version of the highest number runs",
                mine,
                _numbers(others),
            )
        elif self._others and not others:
            logger.info("all live nodes carry this node's schedule, number %d", mine)
        elif others and not self._warned and now - self._since >= _DEPLOY_S:
            self._warned = True
            logger.warning(
                "live nodes have carried other schedules than this node's number %d for %g min (%s): of entries with"
                " one name but one runs. If these are two apps, give one of them another distsched_namespace",
                mine,
                (now - self._since) / 60,
                _numbers(others),
            )
        self._others = others


def _numbers(epochs: Collection[int]) -> str:
    return ", ".join(f"number {epoch}" for epoch in sorted(epochs))
