"""The scheduler's loop: what is mine, what of it is due, claim, publish, confirm; and whatever others left unfinished.

Nothing is done without trust in the view, and every write is an exact swap: the ring only decides who tries.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from celery_distsched import collector
from celery_distsched.agenda import Agenda
from celery_distsched.broker import Outcome
from celery_distsched.clock import Clock, iso
from celery_distsched.drivers.base import Driver, Elsewhere
from celery_distsched.entries import PlannedEntry
from celery_distsched.errors import LeaseLost, StoreUnavailable
from celery_distsched.fast_way import FastWay, in_calls
from celery_distsched.holding import Move
from celery_distsched.interrupts import Interrupts
from celery_distsched.ledger import Ledger
from celery_distsched.node_pool import NodePool, View
from celery_distsched.outbox import Outbox
from celery_distsched.progress import Progress
from celery_distsched.ring import HashRing, Places
from celery_distsched.same_redis import SameRedis
from celery_distsched.settings import Settings
from celery_distsched.store_loss import StoreLoss

logger = logging.getLogger(__name__)

#: Entries claimed in one go: about a tenth of a second of sending, which is what a crash may leave unconfirmed.
_SLICE = 100
#: The same where what is claimed is sent in slices.
_LARGE_SLICE = 500
#: Entries claimed and pushed in one go.
_FAST_SLICE = 1000
#: Longest time between two ticks, in seconds: Celery's service sleeps without an ear for anything.
_LONGEST_SLEEP_S = 0.2
#: Longest burst of claims within one tick, in seconds.
_LONGEST_BURST_S = 0.5


class Dispatch:
    """This node's share of the schedule, from the records of its entries to the messages."""

    def __init__(
        self,
        driver: Driver,
        pool: NodePool,
        progress: Progress,
        clock: Clock,
        settings: Settings,
        *,
        send: Callable[[PlannedEntry, int, int], Outcome],
        probe: Callable[[], bool],
        fast_way: FastWay | None = None,
        interrupts: Interrupts | None = None,
    ) -> None:
        self.closed = False
        self._agenda = Agenda(pool, settings)
        self.ledger = self._agenda.ledger = Ledger(
            driver,
            pool,
            progress,
            clock,
            settings,
            anchor=self._agenda.first_record,
            learnt=self._agenda.schedule,
            may_take=self._agenda.may_take,
            may_begin=lambda: self._store_loss.unchanged() and self._may_go_on(),
        )
        self._send = send
        self._outbox = Outbox(
            self.ledger,
            progress,
            clock,
            settings,
            send=self._send_named,
            probe=probe,
            may_send=self._may_go_on,
            fast_way=fast_way,
        )
        self._interrupts = interrupts or Interrupts()
        self._fast_way = fast_way
        self._slice = min(_SLICE, driver.max_batch)
        self._pool = pool
        self._progress = progress
        self._clock = clock
        self._settings = settings
        self._places = Places.of(())
        self._followed: tuple[HashRing, str | None] | None = None
        self._trusted_until = float("-inf")
        self._store_loss = StoreLoss(driver, self.ledger, pool, progress, clock, lambda: self._agenda.entries)

    def set_entries(self, entries: Mapping[str, PlannedEntry]) -> None:
        """Take on a schedule; what is known of its entries stays known."""
        self._agenda.entries = entries
        self._places = Places.of(entries)
        self._followed = None
        if self._fast_way is not None:
            self._fast_way.set_entries(entries)

    def tick(self) -> float:
        """Do all that can be done now; returns the seconds until there may be more."""
        with self._interrupts.held():
            self._progress.at = self._clock.elapsed()
            try:
                if self._pool.trusted() and not self.closed:
                    self._work(self._pool.view)
                elif not self.closed:
                    self._outbox.reopen()
            except (StoreUnavailable, LeaseLost) as exc:
                # The heartbeat meets the same store; it reports the outage, once, and its end.
                logger.debug("this tick ends early: %s", exc)
            self._progress.ticks += 1
            self._progress.at = self._clock.elapsed()
        return self._seconds_to_next()

    def _work(self, view: View) -> None:
        ledger, outbox = self.ledger, self._outbox
        if view.schedule is None:
            return
        self._follow(view)
        self._agenda.follow_epochs(view.schedule, view.epochs)
        ledger.repeat()
        settled = self._store_loss.settled(view)
        if settled:
            if ledger.unread:
                with collector.paused():
                    ledger.read(ledger.unread)
            ledger.watch()
            if self._may_go_on():  # reading may have taken its time
                ledger.take_over()
            self._progress.ready = not ledger.unread or bool(ledger.suspicious)
        outbox.reopen()
        outbox.send(ledger.busy, self._confirm)
        if settled:
            self._claim_and_send()
        self._confirm()

    def _follow(self, view: View) -> None:
        """Take in a new membership of mine, a new ring, or a new schedule."""
        if view.me is not None and view.me != self.ledger.me:
            # Who was never without trust has not been called dead by anybody.
            self.ledger.rejoined(view.me, doubtful=self._clock.elapsed() > self._trusted_until)
        self._trusted_until = view.trusted_until
        if self._followed == (view.ring, view.place):
            return
        another_schedule = self._followed is None
        if self._followed is None:
            share = self._places.share(view.ring, view.place)
            gained, lost = share - self._agenda.share, self._agenda.share - share
        else:
            gained, lost = self._places.moved(*self._followed, view.ring, view.place)
        self._followed = (view.ring, view.place)
        self._agenda.move(gained, lost)
        self.ledger.own(self._agenda.share, gained, lost)
        if another_schedule:
            for name in self._agenda.share - gained:
                self._agenda.schedule(name)
        nodes = ", ".join(sorted(view.ring.nodes))
        logger.info("%d of %d entries are mine; nodes: %s", len(self._agenda.share), len(self._agenda.entries), nodes)

    # Claim, publish, confirm

    def _may_go_on(self) -> bool:
        """Whether to claim or send one more: trusted, by the membership that the marks name, and not asked to stop."""
        return (
            self._pool.trusted()
            and self._pool.view.me == self.ledger.me
            and not self.closed
            and not self._interrupts.pending
        )

    def _claim_and_send(self) -> None:
        # A long burst must not keep the rest of the loop waiting: the next tick goes on with it at once.
        until = self._clock.elapsed() + _LONGEST_BURST_S
        while self._outbox.open and self._may_go_on() and self._clock.elapsed() < until:
            same_redis, most = self._way()
            names = self._agenda.timetable.pop_due(self._agenda.now_us(), most)
            if not names:
                return
            claims = {name: move for name in names if (move := self._agenda.claim(name)) is not None}
            try:
                if same_redis is not None:
                    self._enqueue(claims, same_redis)
                # Confirms of the slice before ride on the claims of this one.
                self.ledger.swap({**self.ledger.confirms(most), **claims})
            finally:
                for name in names:
                    if name not in self._agenda.timetable:
                        self._agenda.schedule(name)
            self._outbox.send(claims, self._confirm)

    def _way(self) -> tuple[SameRedis | None, int]:
        """Return what claims and pushes in one step, if anything does, and how many entries to claim in one go."""
        if self._fast_way is None:
            return None, self._slice
        now = self._clock.elapsed()
        same_redis = self._fast_way.same_redis(now)
        if self._fast_way.surveying or (same_redis is None and self._fast_way.slices(now) is None):
            return same_redis, self._slice
        return same_redis, _LARGE_SLICE if same_redis is None else _FAST_SLICE

    def _enqueue(self, claims: dict[str, Move], same_redis: SameRedis) -> None:
        """Claim and push in one step those for which that can be done, and take them out."""
        if self._fast_way is None:
            return
        plain = {n: move.claimed for n, move in claims.items() if move.claimed and not move.taken and not move.dropped}
        messages = self._fast_way.messages(plain)
        moves = {name: claims.pop(name) for name in messages}
        for names in in_calls(messages, _FAST_SLICE):
            batch = {name: (moves[name].enqueued(), messages[name]) for name in names}
            try:
                refused = self.ledger.enqueue(batch, same_redis.claim_and_push)
            except Elsewhere:
                self._fast_way.look_again()
                return
            for name, (move, _) in batch.items():
                if name in refused:
                    self._fast_way.avoid(name, refused[name])
                elif (holding := self.ledger.holdings.get(name)) is not None and holding.record is move.new:
                    self._fast_way.note(name, move.claimed)

    def _send_named(self, name: str, instant: int, attempt: int) -> Outcome:
        planned = self._agenda.entries.get(name)
        if planned is None:
            logger.error("entry %r, instant %s: not sent, since the entry was removed meanwhile", name, iso(instant))
            return Outcome.FAILED
        return self._send(planned, instant, attempt)

    def _confirm(self) -> None:
        """Record what was sent."""
        self._outbox.unconfirmed_since = None
        self.ledger.swap(self.ledger.confirms())

    def _seconds_to_next(self) -> float:
        if not self._pool.trusted() or self.ledger.unread:
            return 0.05
        at_us = self._agenda.timetable.next_us()
        if at_us is None or not self._outbox.open:
            return _LONGEST_SLEEP_S
        return min(max((at_us - self._agenda.now_us()) / 1e6, 0.0), _LONGEST_SLEEP_S)
