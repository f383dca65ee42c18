"""Whether a node can do its job: if not, it must not look alive."""

from __future__ import annotations

import logging

from celery_distsched.clock import Clock
from celery_distsched.node_pool import NodePool
from celery_distsched.outage import Outage
from celery_distsched.progress import Progress

logger = logging.getLogger(__name__)


class Fitness:
    """What the heartbeat makes of the loop's signs of life, and of what it knows of the broker."""

    def __init__(self, pool: NodePool, progress: Progress, outage: Outage, clock: Clock) -> None:
        self._pool = pool
        self._progress = progress
        self._outage = outage
        self._clock = clock
        self._stall_s = min(pool.ttl_s / 10, 0.5)
        self._stalled = False
        self._able = True

    def fit(self) -> bool:
        """Whether the loop moves and the broker takes messages; a change is told."""
        now = self._clock.elapsed()
        stalled = now - self._progress.at > self._stall_s
        # While the store is away the loop waits for it, for which enough has been said.
        still_s = 0.0 if self._outage.lasts else now - max(self._progress.at, self._outage.over_at)
        if stalled and not self._stalled and still_s > 2 * self._stall_s:
            self._stalled = True
            logger.warning(
                "the scheduler loop has stood still for %.2g s: not renewing, so other nodes take over in %g s",
                now - self._progress.at,
                self._pool.view.longest_ttl_s,
            )
        elif not stalled and self._stalled:
            self._stalled = False
            logger.warning("the scheduler loop moves again")
        able = self._progress.able
        if self._able and not able:
            logger.warning(
                "without the broker this node does not renew its membership: one that reaches it takes over in %g s",
                self._pool.view.longest_ttl_s,
            )
        self._able = able
        return not stalled and able
