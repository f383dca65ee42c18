"""One node: everything that lives from a scheduler's first tick to its close, in one process."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

from celery_distsched.clock import Clock
from celery_distsched.dispatch import Dispatch
from celery_distsched.entries import PlannedEntry
from celery_distsched.fast_way import FastWay
from celery_distsched.heartbeat import Heartbeat
from celery_distsched.interrupts import asked_again
from celery_distsched.node_pool import NodePool
from celery_distsched.progress import Progress
from celery_distsched.schedule_epoch import Schedule
from celery_distsched.settings import broker_identity

#: Longest sleep of another node's loop, and its reading of what it takes on, in seconds.
_TAKING_ON_S = 0.25
#: Seconds for the last tick of the handing over, before it is cut off.
_GRACE_S = 0.1


class Node:
    """What one process is to the cluster."""

    def __init__(self, scheduler: Any) -> None:
        self.pid = os.getpid()
        self._thread = threading.get_ident()
        settings, clock, progress = scheduler.settings, Clock(), Progress()
        host = socket.gethostname()
        progress.at = clock.elapsed()
        self._progress, self._clock = progress, clock
        self.pool = NodePool(f"{host}-{self.pid}-{secrets.token_hex(4)}", settings.node_ttl, clock)
        self.dispatch = Dispatch(
            scheduler.driver,
            self.pool,
            progress,
            clock,
            settings,
            send=scheduler._send,
            probe=scheduler._probe,
            is_due=scheduler.is_due,
            outdated=lambda: scheduler.schedule.changed(),
            fast_way=FastWay(scheduler, self.pool.node_id),
        )
        cluster = f"app {scheduler.app.main!r} on {broker_identity(scheduler.app)}"
        self.heartbeat = Heartbeat(scheduler.driver, self.pool, clock, progress, host=host, cluster=cluster)
        self.planned_version = -1
        #: Whether a schedule is being taken on: by half of it nobody is to serve the share.
        self._taking_on = False

    def take_on(self, planned: Mapping[str, PlannedEntry], version: int) -> None:
        """Work by this schedule from now on, and tell the others which entries it has."""
        self.planned_version = version
        digest, between = blake2b(digest_size=16), ""
        for name in self.along(sorted(planned)):
            digest.update(f"{between}{name}\0{planned[name].fingerprint}".encode())
            between = "\0"
        self._taking_on = True
        self.heartbeat.schedule = Schedule(digest.hexdigest(), planned)
        self.dispatch.set_entries(planned)
        self._taking_on = False
        self._progress.at = self._clock.elapsed()

    def tick(self) -> float:
        """Do all that is due; returns the seconds until the next call."""
        try:
            return self.dispatch.tick()
        finally:
            if self.dispatch.closed:
                # By somebody on the stack of this tick, which has gone on to confirm what was on its way.
                self.heartbeat.driver.close()

    def hand_over(self) -> None:
        """Let the others take this node's share on, and serve it until they have: nothing is late for a redeploy.

        Both may try for a run meanwhile, as at any change of the ring; the claim decides. Where nothing falls due so
        soon, or nobody is there to take anything on, there is nothing to wait for.
        """
        busy = self._taking_on or self.dispatch.ticking
        if threading.get_ident() != self._thread or busy or self.heartbeat.leaving:
            return
        self.heartbeat.leaving = True
        self.heartbeat.wake()
        within_s = self.pool.poll_s + _TAKING_ON_S
        until = self._clock.elapsed() + within_s
        with asked_again(within_s + _GRACE_S):
            while self._is_heir_there() and not self.dispatch.closed:
                left_s = until - self._clock.elapsed()
                if self.dispatch.next_s() > left_s:
                    return
                time.sleep(min(self.tick(), max(left_s, 0.0)))

    def _is_heir_there(self) -> bool:
        """Whether others share the ring, by a store that answers."""
        view = self.pool.view
        answers = self._clock.elapsed() - view.polled_at < 2 * self.pool.poll_s
        return answers and self.pool.trusted() and len(view.ring.nodes) > 1

    def along(self, names: Iterable[str]) -> Iterable[str]:
        """Yield these; the heartbeat sees that the loop goes on."""
        return self._progress.along(names, self._clock)
