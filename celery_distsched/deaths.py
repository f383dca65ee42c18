"""Whether the holder of a mark is dead, so that what it holds may be taken over."""

from __future__ import annotations

from celery_distsched.node_pool import NodePool
from celery_distsched.record import node_of


class Deaths:
    """What this node may say of the holders of marks that it has met."""

    def __init__(self, pool: NodePool) -> None:
        self._pool = pool
        #: Mark → when its holder, of which the pool knows nothing, was first looked for; on `Clock.elapsed`.
        self._unknown_since: dict[str, float] = {}

    def gone(self, mark: str, me: str) -> bool:
        """Whether its holder is dead. Absence is not death the moment it is seen: the key may be evicted."""
        view = self._pool.view
        if node_of(mark) == node_of(me):
            return mark != me
        if mark in view.alive or mark in view.absent:
            self._unknown_since.pop(mark, None)
            return False
        if mark in view.dead and mark not in view.buried:
            # Its fence is not void yet: it may wake up, and go on as if nothing had happened.
            return False
        # Under another membership the node lives: it gets the time to confirm what it sent under this one.
        if mark in view.buried and node_of(mark) not in view.node_ids:
            return True
        since = max(self._unknown_since.setdefault(mark, view.polled_at), view.watching_since)
        return view.polled_at - since >= view.longest_ttl_s

    def nothing_is_open(self) -> None:
        """No mark is looked at any more."""
        self._unknown_since.clear()
