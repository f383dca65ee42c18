"""What time it is for the whole cluster, whatever any one clock says.

Cluster time is `Clock.elapsed` plus an offset. The offset comes from the store's clock where it has one, else from the
lower median of the nodes' wall clocks: late is allowed, early is not. A clock that jumps is not followed at once: the
jump has to last for one TTL, and where there is a second opinion, that has to agree. Whoever joins takes the time that
the others go by.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Sequence

from celery_distsched.clock import Clock, microseconds

logger = logging.getLogger(__name__)

#: A change of the offset by more is a step; a clock that is off by more is reported. In microseconds.
_STEP_US = 1_000_000
#: Samples of a node's clocks that are kept: about four TTLs of heartbeats.
_SAMPLES = 20


class ClusterTime:
    """One node's idea of cluster time. Used by the heartbeat thread only; others read the offset from the view."""

    def __init__(self, clock: Clock, ttl_s: float) -> None:
        #: Cluster time is `Clock.elapsed` plus this, in microseconds; None before the first join.
        self.offset_us: int | None = None
        self._clock = clock
        self._ttl_s = ttl_s
        self._store: int | None = None
        # Membership → offsets of its wall clock; of the cluster time that it goes by, and whether that was fresh.
        self._walls: dict[str, deque[int]] = {}
        self._peers: dict[str, tuple[int, bool]] = {}
        #: Until when a heartbeat is waited for that is not an old one.
        self._wait_until: float | None = None
        self._step: tuple[int, float] | None = None
        self._skewed = False

    def store_said(self, store_us: int, asked_at: float, answered_at: float) -> None:
        """Take in the store's clock, which it read at some moment in between."""
        # A slow sample says little: only the first may be one.
        if self._store is None or answered_at - asked_at < 0.1:
            self._store = store_us - microseconds((asked_at + answered_at) / 2)

    def heard(self, membership: str, wall_us: int, cluster_us: int, now: float, *, fresh: bool = True) -> None:
        """Take in what a node's new heartbeat says of its clocks.

        Args:
            membership: Whose.
            wall_us: Its wall clock when it wrote.
            cluster_us: Cluster time then, by which it goes; 0: it has none yet.
            now: On `Clock.elapsed`.
            fresh: Whether it was written since the last look; one that was there already may be of any age.
        """
        # Who has no cluster time yet has only just come.
        if fresh or not cluster_us:
            self._walls.setdefault(membership, deque(maxlen=_SAMPLES)).append(wall_us - microseconds(now))
        if cluster_us:
            self._peers[membership] = (cluster_us - microseconds(now), fresh)

    def forget(self, membership: str) -> None:
        """Drop what is known of a node that is gone."""
        self._walls.pop(membership, None)
        self._peers.pop(membership, None)

    def settle(self, others: Sequence[str], now: float) -> None:
        """Make up the mind: `others` are the live members besides me."""
        own = microseconds(self._clock.wall()) - microseconds(self._clock.elapsed())
        # A heartbeat is read some time after it was written, which only ever makes its clock look slow: the best sample
        # of each is its greatest.
        walls = _lower_median([own, *(max(self._walls[m]) for m in others if m in self._walls)])
        first = walls if self._store is None else self._store
        if self.offset_us is None:
            self.offset_us = self._first(first, [self._peers[m] for m in others if m in self._peers], now)
            if self.offset_us is None:
                return
        elif abs(first - self.offset_us) <= _STEP_US:
            self._back_in_step()
            self.offset_us = first
        else:
            agreed = self._store is None or abs(first - walls) <= _STEP_US
            self._consider(first, first - self.offset_us, agreed, now)
        self._report_skew(own - self.offset_us)

    def _first(self, clocks: int, peers: Sequence[tuple[int, bool]], now: float) -> int | None:
        """The time to begin with: that of the others, as soon as they say it; None: not known yet."""
        fresh = [offset for offset, is_fresh in peers if is_fresh]
        told = fresh or [offset for offset, _ in peers]
        # A heartbeat may have been read a poll late, so what is close is the same.
        if not told or abs(_lower_median(told) - clocks) <= _STEP_US:
            return clocks
        if fresh:
            return _lower_median(fresh)
        # Either the clocks are wrong, or those who wrote that have been silent since: the next heartbeat tells.
        if self._wait_until is None:
            self._wait_until = now + self._ttl_s
        return clocks if now >= self._wait_until else None

    def _consider(self, target: int, jump_us: int, agreed: bool, now: float) -> None:
        """Follow a jump once it has lasted, and a second clock agrees where there is one."""
        whose = "the nodes' clocks say" if self._store is None else "the store's clock says"
        if self._step is None or abs(self._step[0] - target) > _STEP_US:
            self._step = (target, now)
            logger.warning(
                "%s that it is %+.1f s from cluster time: not followed until it has lasted for %g s%s",
                whose,
                jump_us / 1e6,
                self._ttl_s,
                "" if self._store is None else " and the nodes' clocks agree",
            )
        elif agreed and now - self._step[1] >= self._ttl_s:
            logger.warning("cluster time moves by %+.1f s, as %s for long enough", jump_us / 1e6, whose)
            self.offset_us, self._step = target, None

    def _back_in_step(self) -> None:
        if self._step is not None:
            self._step = None
            logger.warning("the clocks agree with cluster time again")

    def _report_skew(self, skew_us: int) -> None:
        if abs(skew_us) > _STEP_US and not self._skewed:
            self._skewed = True
            logger.warning(
                "this host's clock is %.1f s %s cluster time: runs keep to cluster time; set the host's clock right",
                abs(skew_us) / 1e6,
                "ahead of" if skew_us > 0 else "behind",
            )
        # With some room, or a clock on the very border would be reported again and again.
        elif self._skewed and abs(skew_us) < _STEP_US / 2:
            self._skewed = False
            logger.warning("this host's clock agrees with cluster time again")


def _lower_median(offsets: Iterable[int]) -> int:
    ordered = sorted(offsets)
    return ordered[(len(ordered) - 1) // 2]
