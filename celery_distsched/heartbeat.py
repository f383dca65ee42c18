"""The only thread: join, renew, look around, join again when lost, leave.

Everything that has a time limit of its own lives here, so that a busy or stuck scheduler loop cannot delay it; but a
node whose loop is stuck must not look alive, so renewals stop when the loop stops making progress.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace

from celery_distsched.clock import Clock, microseconds
from celery_distsched.drivers.base import Driver, Member
from celery_distsched.errors import ConfigError, LeaseLost, StoreUnavailable
from celery_distsched.fitness import Fitness
from celery_distsched.info import Info, live_epochs
from celery_distsched.node_pool import NodePool, View, free_ordinal
from celery_distsched.outage import Outage
from celery_distsched.progress import Progress
from celery_distsched.schedule_epoch import Schedule, register

logger = logging.getLogger(__name__)


class Heartbeat:
    """Keeps one node a member for as long as it can do its job."""

    def __init__(
        self, driver: Driver, pool: NodePool, clock: Clock, progress: Progress, *, host: str, cluster: str
    ) -> None:
        self.driver = driver
        self.pool = pool
        #: This node's: nodes with the same one share a ring. Swapped whole by the loop.
        self.schedule = Schedule()
        #: An error that nothing but a change of the configuration mends; raised by the next tick.
        self.refusal: ConfigError | None = None
        #: Others are to take this node's share on.
        self.leaving = False
        self._clock = clock
        self._progress = progress
        self._host = host
        self._cluster = cluster
        self._renew_s = pool.ttl_s / 5
        self._joins = 0
        self._ordinal: int | None = None
        #: Who was dead when this node joined, and whether it has waited to see that.
        self._dead_before: frozenset[str] = frozenset()
        self._waiting = False
        self._renewed_at = float("-inf")
        self._renewed_state: tuple[bool, str] = (False, "")
        self._rejoin_after_tick = -1
        self._outage = Outage(driver.url.masked, clock)
        self._fitness = Fitness(pool, progress, self._outage, clock)
        #: What it last failed with that nobody has thought of.
        self._failed = ""
        #: Reported as dead; what cannot be removed is not reported again at each poll.
        self._buried: set[str] = set()
        self._asked_for_warnings = False
        self._farewell: Callable[[], None] | None = None
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="distsched-heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def wake(self) -> None:
        """Beat now: something has changed that others should know."""
        self._wake.set()

    def stop(self, farewell: Callable[[], None], timeout_s: float) -> bool:
        """Run `farewell` on the heartbeat's thread, leave, and end it; False if that took longer than `timeout_s`.

        On that thread because the caller may be a signal handler on the stack of a half-done store call.
        """
        self._farewell = farewell
        self._wake.set()
        return self._stopped.wait(timeout_s)

    # The thread

    def _run(self) -> None:
        try:
            while self._farewell is None and self.refusal is None:
                self._wake.wait(self.step())
                self._wake.clear()
            self._leave()
        finally:
            self.driver.close()
            self._stopped.set()

    def step(self) -> float:
        """Do what is due now; returns the seconds until the next step. Never raises."""
        try:
            self._beat()
        except LeaseLost:
            logger.warning("%s is no member any more: sending nothing until it has joined again", self.pool.view.me)
            self._lost()
            return 0.0
        except StoreUnavailable as exc:
            self._outage.met(exc)
        except ConfigError as exc:
            self.refusal = exc
        except Exception as exc:
            # At each poll it is likely the same.
            level = logging.DEBUG if repr(exc) == self._failed else logging.ERROR
            self._failed = repr(exc)
            logger.log(level, "the heartbeat failed; trying again each %.2g s", self.pool.poll_s, exc_info=True)
        return min(self.pool.poll_s, max(0.0, self.pool.next_death() - self._clock.elapsed()))

    def _beat(self) -> None:
        me = self._join_or_renew()
        members = self.driver.members()
        view = self.pool.observe(members, self.schedule.digest)
        if me is not None:
            view = self._take_place(me, members, view)
        self._bury(members, view)
        # Where writing fails and reading does not (a full disk, a lock), an answer to a read says nothing.
        if self._outage.lasts and self._renewed_at > self._outage.met_at:
            self._outage.over()
        if me is not None and not self._asked_for_warnings:
            self._asked_for_warnings = True
            self._pass_on_warnings()

    def _join_or_renew(self) -> str | None:
        """Return the membership that I have now; None: none."""
        me = self.pool.view.me
        if me is not None and me == self._progress.outlived and not self.leaving:
            logger.warning("leaving the membership %s: what was written under it must not arrive any more", me)
            self._lost()
            me = None
        if me is None:
            # After a loss the loop must have gone round once: a stuck node would only come back to be lost again.
            if self._fitness.fit() and not self.leaving and self._progress.ticks > self._rejoin_after_tick:
                me = self._join()
        elif self._fitness.fit() and self._renewal_due():
            asked_at = self._clock.elapsed()
            state = self._state()
            store_us = self.driver.renew(me, self._info(*state).text())
            self._renewed(me, asked_at, store_us, state)
        return me

    def _take_place(self, me: str, members: Mapping[str, Member], view: View) -> View:
        """Among those of my app and broker, with the number of my schedule; return the view with that."""
        # Two that joined at the same moment have not seen each other before: the later by name gives way. (All
        # are given time when this node joins, also the dead that nobody has removed yet.)
        earlier = {other: info for other, info in view.alive.items() if other < me}
        for other in self._dead_before - self.pool.beating:
            earlier.pop(other, None)
        self._refuse_strangers(earlier)
        if not self._registered() and view.offset_us is not None and self._register(view):
            view = self.pool.observe(members, self.schedule.digest)
            self.wake()
        self._agree_on_epoch(view)
        return view

    def _bury(self, members: Mapping[str, Member], view: View) -> None:
        """A dead node's fence must be void before anybody takes over what it has claimed."""
        self._buried &= view.dead
        for membership in view.dead.intersection(members):
            if not self.driver.remove(membership, members[membership].pulse):
                # It has renewed since it was looked at, and trusts in that: the next look sees it alive.
                continue
            self.pool.bury([membership])
            if membership not in self._buried:
                self._buried.add(membership)
                logger.warning(
                    "node %s has been silent for %g s: it died, hangs, or does not reach the store or the broker; its"
                    " share moves on",
                    membership,
                    self.pool.patience_s(membership),
                )
                self._say_if_heirless(membership, Info.parse(members[membership].info), view)

    @staticmethod
    def _say_if_heirless(membership: str, dead: Info | None, view: View) -> None:
        # Which entries only it had nobody knows any more, so that their marks can be neither found nor counted.
        if dead is not None and view.alive and dead.digest not in {info.digest for info in view.alive.values()}:
            logger.warning(
                "node %s was the last with its schedule: of an entry that no live node has, what it had claimed and not"
                " yet confirmed is not sent again",
                membership,
            )

    def _pass_on_warnings(self) -> None:
        try:
            for warning in self.driver.warnings():
                logger.warning("%s", warning)
        except StoreUnavailable as exc:
            # Not everybody may ask the store about itself.
            logger.debug("the store could not be asked about itself: %s", exc)

    def _renewal_due(self) -> bool:
        due = self._clock.elapsed() - self._renewed_at >= self._renew_s
        return due or self._state() != self._renewed_state

    def _state(self) -> tuple[bool, str]:
        """What others wait for: that I have my records, and my schedule its epoch; and my generation of the ledger."""
        active = self._progress.ready and self._registered() and not self.leaving
        return active, self._progress.generation

    def _registered(self) -> bool:
        return self.pool.schedule is not None and self.pool.schedule.digest == self.schedule.digest

    def _register(self, view: View) -> bool:
        live, now_us = live_epochs(view.alive.values()), self.pool.now_us() or 0
        self.pool.schedule = register(self.driver, self.schedule, live, now_us)
        if self.pool.schedule is None:
            return False
        logger.info(
            "this node's schedule is number %d in namespace %r; the highest is the newest",
            self.pool.schedule.epoch,
            self.driver.namespace,
        )
        return True

    def _agree_on_epoch(self, view: View) -> None:
        """Nodes with one schedule have one epoch, though the register was lost with the store and began anew.

        Otherwise an entry that another schedule has claimed under the number of one of them would wait for that one,
        and the ring gives it to all alike.
        """
        mine = self.pool.schedule
        if mine is not None and self._registered():
            newest = live_epochs(view.alive.values()).get(mine.digest, 0)
            if newest > mine.epoch:
                self.pool.schedule = replace(mine, epoch=newest)

    def _join(self) -> str | None:
        view = self.pool.observe(self.driver.members(), self.schedule.digest)
        alive, beating = view.alive, self.pool.beating
        self._refuse_strangers({other: info for other, info in alive.items() if other in beating})
        if strangers := [other for other, info in alive.items() if info.cluster != self._cluster]:
            # It may have died, with nobody left to remove it: the next looks show whether it renews.
            if not self._waiting:
                self._waiting = True
                logger.info("waiting to see whether %s, of another app or broker, is alive", strangers[0])
            return None
        self._dead_before = view.dead
        if self._ordinal is None:
            self._ordinal = free_ordinal(alive, self._host, self.pool.node_id)
        if self._joins:
            # A store that was away may still hold it: to the others that would be one more live node, with a share
            # that nobody serves until it is dead.
            self.driver.remove(f"{self.pool.node_id}#{self._joins}")
        self._joins += 1
        me = f"{self.pool.node_id}#{self._joins}"
        self._progress.ready = False
        asked_at = self._clock.elapsed()
        state = (False, self._progress.generation)
        store_us = self.driver.join(me, self._info(*state).text())
        self._renewed(me, asked_at, store_us, state)
        logger.info("joined %s as %s", self.driver.url.masked, me)
        return me

    def _refuse_strangers(self, nodes: Mapping[str, Info]) -> None:
        stranger = next((info for info in nodes.values() if info.cluster != self._cluster), None)
        if stranger is not None:
            raise ConfigError(
                f"namespace {self.driver.namespace!r} in {self.driver.url.masked} is in use by {stranger.cluster},"
                f" and this is {self._cluster}. If these are two apps, give one of them another distsched_namespace. If"
                " it is one app and one broker, spelt in two ways, spell it alike: under two namespaces both would send"
                " every run. To move to another broker, stop the other beats first"
            )

    def _renewed(self, me: str, asked_at: float, store_us: int | None, state: tuple[bool, str]) -> None:
        self.pool.renewed(me, asked_at, store_us)
        self._renewed_at, self._renewed_state = asked_at, state

    def _info(self, active: bool, generation: str) -> Info:
        return Info(
            host=self._host,
            ordinal=self._ordinal or 0,
            digest=self.schedule.digest,
            cluster=self._cluster,
            active=active,
            generation=generation,
            wall_us=microseconds(self._clock.wall()),
            cluster_us=self.pool.now_us() or 0,
            ttl_us=microseconds(self.pool.ttl_s),
            epoch=self.pool.schedule.epoch if self.pool.schedule is not None and self._registered() else 0,
        )

    def _lost(self) -> None:
        self._rejoin_after_tick = self._progress.ticks
        self.pool.lost()

    def _leave(self) -> None:
        me = self.pool.view.me
        try:
            if self._farewell is not None:
                self._farewell()
            if me is not None:
                self.driver.remove(me)
        except (LeaseLost, StoreUnavailable) as exc:
            logger.warning("could not say goodbye (%s): the share of %s moves on in %g s", exc, me, self.pool.ttl_s)
