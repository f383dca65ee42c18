"""What time it is for the whole cluster, whatever any one clock says.

Cluster time is `Clock.elapsed` plus an offset. The offset comes from the store's clock where it has one, else from the
lower median of the nodes' wall clocks: late is allowed, early is not. A clock that jumps is not followed at once: the
jump has to last for one TTL, and most of the nodes' clocks have to agree. Whoever joins takes the time that the others
go by. Nodes that have died are remembered for a while, and have a say in that: who is the last, or the first to come
back after an outage, must not take the jump of its own clock for what everybody agrees on.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Sequence

from celery_distsched.clock import Clock, microseconds
from celery_distsched.record import node_of

logger = logging.getLogger(__name__)

#: A change of the offset by more is a step; a clock that is off by more is reported. In microseconds.
_STEP_US = 1_000_000
#: Samples of a node's clocks that are kept: about four TTLs of heartbeats.
_SAMPLES = 20


class ClusterTime:
    """One node's idea of cluster time. Used by the heartbeat thread only; others read the offset from the view."""

    def __init__(self, clock: Clock, ttl_s: float) -> None:
        #: Cluster time is `Clock.elapsed` plus this, in microseconds; None until it is known.
        self.offset_us: int | None = None
        self._clock = clock
        self._ttl_s = ttl_s
        self._store: int | None = None
        # Membership → offsets of its wall clock, and of the cluster time that it goes by (0: none yet).
        self._walls: dict[str, deque[int]] = {}
        self._peers: dict[str, int] = {}
        # The same, from heartbeats that were there when this node first looked: nobody knows how old they are.
        # Offset, and whether its node knew cluster time by then.
        self._undated: dict[str, tuple[int, bool]] = {}
        self._step: tuple[int, float] | None = None
        self._skewed = False

    def store_said(self, store_us: int, asked_at: float, answered_at: float) -> None:
        """Take in the store's clock, which it read at some moment in between."""
        sample = store_us - microseconds((asked_at + answered_at) / 2)
        # A slow one says little: where there are no others, only that the clock has stepped.
        if self._store is None or answered_at - asked_at < 0.1 or abs(sample - self._store) > _STEP_US:
            self._store = sample

    def found(self, membership: str, wall_us: int, cluster_us: int, now: float) -> None:
        """Take in a heartbeat that was there before I looked, perhaps for hours."""
        self._undated[membership] = ((cluster_us or wall_us) - microseconds(now), cluster_us != 0)

    def heard(self, membership: str, wall_us: int, cluster_us: int, now: float) -> None:
        """Take in what a node's new heartbeat says of its clocks."""
        self._undated.pop(membership, None)
        self._walls.setdefault(membership, deque(maxlen=_SAMPLES)).append(wall_us - microseconds(now))
        if cluster_us:
            self._peers[membership] = cluster_us - microseconds(now)

    def forget(self, membership: str) -> None:
        """Drop what is known of a node that is gone."""
        self._walls.pop(membership, None)
        self._peers.pop(membership, None)
        self._undated.pop(membership, None)

    def settle(self, others: Sequence[str], now: float) -> None:
        """Make up the mind: `others` are the live members besides me."""
        own = microseconds(self._clock.wall()) - microseconds(self._clock.elapsed())
        # A heartbeat is read some time after it was written, which only ever makes its clock look slow: the best sample
        # of each is its greatest.
        walls = [own, *(max(self._walls[m]) for m in others if m in self._walls)]
        first = _lower_median(walls) if self._store is None else self._store
        if self.offset_us is None:
            self.offset_us = self._first(first, others)
            if self.offset_us is None:
                return
        elif abs(first - self.offset_us) <= _STEP_US:
            self._back_in_step()
            self.offset_us = first
        else:
            # Of two clocks neither outvotes the other: cluster time goes on as it was.
            clocks = [own, *{node_of(m): max(offsets) for m, offsets in self._walls.items()}.values()]
            agreed = 2 * sum(abs(first - clock) <= _STEP_US for clock in clocks) > len(clocks)
            if self._store is not None:
                # My own host may have stood still, or its clock gone wrong while it slept, and nobody else's.
                peers = [self._peers[m] for m in others if m in self._peers]
                agreed |= bool(peers) and all(abs(first - peer) <= _STEP_US for peer in peers)
            self._consider(first, first - self.offset_us, agreed, now)
        self._report_skew(own - self.offset_us)

    def _first(self, clock: int, others: Sequence[str]) -> int | None:
        """Return the offset to begin with; None if another node has to be heard, or be dead, before that is known."""
        peers = [self._peers[m] for m in others if m in self._peers]
        if peers:
            # A heartbeat may have been read a poll late, so what is close is the same.
            return _lower_median(peers) if abs(_lower_median(peers) - clock) > _STEP_US else clock
        # What agrees with the clock is no older than that. What does not may be of a node that died hours ago.
        undated = [self._undated[m] for m in others if m in self._undated]
        informed = [abs(offset - clock) <= _STEP_US for offset, knew in undated if knew]
        agreed = any(informed) if informed else all(abs(offset - clock) <= _STEP_US for offset, _ in undated)
        return clock if agreed else None

    def _consider(self, target: int, jump_us: int, agreed: bool, now: float) -> None:
        """Follow a jump once it has lasted, and most of the nodes' clocks agree."""
        whose = "the nodes' clocks say" if self._store is None else "the store's clock says"
        if self._step is None or abs(self._step[0] - target) > _STEP_US:
            self._step = (target, now)
            logger.warning(
                "%s that it is %+.1f s from cluster time: not followed until it has lasted for %g s and most nodes'"
                " clocks agree",
                whose,
                jump_us / 1e6,
                self._ttl_s,
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
