"""Whether the holder of a mark is dead, so that what it holds may be taken over."""

from __future__ import annotations

from celery_distsched.node_pool import NodePool
from celery_distsched.record import node_of


class Deaths:
    """What this node may say of the holders of marks that it has met."""

    def __init__(self, pool: NodePool) -> None:
        self._pool = pool
        #: Mark → since when its holder has been looked for and not found, and when it was last; on `Clock.elapsed`.
        self._absent: dict[str, tuple[float, float]] = {}

    def gone(self, mark: str, me: str) -> bool:
        """Whether its holder is dead. Absence is not death the moment it is seen: the key may be evicted."""
        view = self._pool.view
        if node_of(mark) == node_of(me):
            return mark != me
        if mark in view.alive:
            self._absent.pop(mark, None)
            return False
        if mark in view.dead and mark not in view.buried:
            # Its fence is not void yet: it may wake up, and go on as if nothing had happened.
            return False
        # Under another membership the node lives: it gets the time to confirm what it sent under this one.
        if mark in view.buried and node_of(mark) not in view.node_ids:
            return True
        since, asked_at = self._absent.get(mark, (view.polled_at, view.polled_at))
        # While nobody asked it may have been there.
        since = max(view.polled_at if view.polled_at - asked_at > self._pool.ttl_s / 5 else since, view.watching_since)
        self._absent[mark] = since, view.polled_at
        return view.polled_at - since >= self._pool.ttl_s

    def nothing_is_open(self) -> None:
        """No mark is looked at any more."""
        self._absent.clear()
