"""The scheduler's loop: what is mine, what of it is due, claim, publish, confirm; and whatever others left unfinished.

Nothing is done without trust in the view, and every write is an exact swap: the ring only decides who tries.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from celery_distsched.broker import Outcome
from celery_distsched.clock import Clock, iso, microseconds
from celery_distsched.drivers.base import Driver, Elsewhere
from celery_distsched.entries import PlannedEntry
from celery_distsched.errors import LeaseLost, StoreUnavailable
from celery_distsched.fast_way import FastWay, in_calls
from celery_distsched.holding import Move, Phase
from celery_distsched.instants import ask, due, jitter
from celery_distsched.interrupts import Interrupts
from celery_distsched.ledger import Ledger
from celery_distsched.node_pool import NodePool, View
from celery_distsched.outbox import Outbox
from celery_distsched.progress import Progress
from celery_distsched.record import MAX_OPEN, Record, Version, may_claim
from celery_distsched.ring import HashRing, Places
from celery_distsched.same_redis import SameRedis
from celery_distsched.schedule_epoch import ScheduleEpoch
from celery_distsched.settings import Settings
from celery_distsched.store_loss import StoreLoss
from celery_distsched.timetable import Timetable

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
#: Seconds until an entry is looked at again that has no next instant in sight.
_LOOK_AGAIN_S = 3600.0


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
        self.ledger = Ledger(
            driver,
            pool,
            progress,
            clock,
            settings,
            anchor=self._first_record,
            learnt=self._schedule,
            may_take=self._may_take,
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
        self._hand_over_us = microseconds(settings.hand_over_s)
        self._entries: Mapping[str, PlannedEntry] = {}
        self._places = Places.of(())
        self._share: set[str] = set()
        self._followed: tuple[HashRing, str | None] | None = None
        self._trusted_until = float("-inf")
        self._store_loss = StoreLoss(driver, self.ledger, pool, progress, clock, lambda: self._entries)
        self._schedule_epoch = ScheduleEpoch(0, "")
        self._epochs: Collection[int] = ()
        #: Entries of my share of which a live node has a newer version.
        self._yielded: set[str] = set()
        self._timetable = Timetable()
        self._reported: set[str] = set()

    def set_entries(self, entries: Mapping[str, PlannedEntry]) -> None:
        """Take on a schedule; what is known of its entries stays known."""
        self._entries = entries
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
        self._follow_epochs(view.schedule, view.epochs)
        ledger.repeat()
        settled = self._store_loss.settled(view)
        if settled:
            ledger.read(ledger.unread)
            ledger.watch()
            ledger.take_over()
            self._progress.ready = not ledger.unread or ledger.suspicious
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
        share = self._places.share(view.ring, view.place) if view.place else set()
        gained, lost = share - self._share, self._share - share
        self._share, self._followed = share, (view.ring, view.place)
        for name in lost:
            self._timetable.drop(name)
        self.ledger.own(share, gained, lost)
        for name in share - gained:
            self._schedule(name)
        nodes = ", ".join(sorted(view.ring.nodes))
        logger.info("%d of %d entries are mine; nodes: %s", len(share), len(self._entries), nodes)

    def _follow_epochs(self, mine: ScheduleEpoch, live: Collection[int]) -> None:
        """Take in which schedules are alive: of an entry the newest version runs."""
        if (self._schedule_epoch, self._epochs) == (mine, live):
            return
        look_again = self._yielded if self._schedule_epoch == mine else self._share
        self._schedule_epoch, self._epochs = mine, live
        for name in list(look_again):
            self._schedule(name)

    def _version(self, planned: PlannedEntry) -> Version:
        return Version(planned.fingerprint, self._schedule_epoch.epoch)

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
            names = self._timetable.pop_due(self._now_us(), most)
            if not names:
                return
            claims = {name: move for name in names if (move := self._claim_or_report(name)) is not None}
            try:
                if same_redis is not None:
                    self._enqueue(claims, same_redis)
                # Confirms of the slice before ride on the claims of this one.
                self.ledger.swap({**self.ledger.confirms(most), **claims})
            finally:
                for name in names:
                    if name not in self._timetable:
                        self._schedule(name)
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

    def _claim_or_report(self, name: str) -> Move | None:
        try:
            return self._claim(name)
        except Exception as exc:  # noqa: BLE001  (one bad schedule must not stop the others)
            self._give_up_for_now(name, exc)
            return None

    def _claim(self, name: str) -> Move | None:
        """Return the swap that claims what is due of an entry; None if there is nothing to write."""
        if not self.ledger.free(name):
            return None
        planned, holding, now = self._entries[name], self.ledger.holdings[name], self._now_us()
        record = holding.record
        if record is None:
            return None
        mine = self._version(planned)
        if not may_claim(record.version, mine, self._epochs):
            return None
        if (ready := self._ready(planned, record, now)) != record:
            dropped = {at: mark for at, mark in record.open.items() if at not in ready.open}
            return Move(record.text(), ready, fenced=True, dropped=dropped)
        if not planned.enabled:
            return None
        room = MAX_OPEN - len(record.open) + len(holding.instants(Phase.DONE))
        if room <= 0:
            self._timetable.set(name, now + microseconds(_LONGEST_SLEEP_S))
            return None
        if planned.rule is None:
            is_due, again_s = ask(planned.entry.schedule, record.last, now)
            self._timetable.set(name, now + microseconds(max(again_s, 0.01)))
            return self.ledger.advance(name, claim=(now,), version=mine) if is_due and now > record.last else None
        found = due(
            planned.rule, record.last, now, planned.catch_up, self._settings.hand_over_s, self._jitter_of(planned)
        )
        claim = found.send[:room]
        if any(not record.last < instant <= now for instant in claim):
            raise AssertionError(f"claiming {claim} after {record.last} at {now}")
        upto = found.upto if claim == found.send else claim[-1]
        return self.ledger.advance(name, claim=claim, upto=upto, skipped=found.skipped, version=mine)

    def _ready(self, planned: PlannedEntry, record: Record, now: int) -> Record:
        """Return the record as it has to be before this version of the entry is claimed: mostly as it is."""
        if self._is_back(planned.name, record):
            # What was left open when it went away nobody waits for any more.
            since = self._schedule_epoch.since_us
            record = replace(record, last=since, open={at: mark for at, mark in record.open.items() if at > since})
        if record.paused == planned.enabled:
            # Switched on: it starts from now, and nothing of the past is run. Switched off: noted for that day.
            last = max(record.last, now) if planned.enabled else record.last
            record = replace(record, last=last, paused=not planned.enabled)
        if record.version is not None and record.version.fingerprint != planned.fingerprint:
            record = replace(record, version=self._version(planned))
        return record

    def _is_back(self, name: str, record: Record) -> bool:
        """Whether an entry was away, removed by a deploy, and has come back with the schedule of this node."""
        schedule = self._schedule_epoch
        # What is as young as a hand-over has not been away.
        return record.last < schedule.since_us - self._hand_over_us and schedule.is_back(name)

    def _may_take(self, name: str) -> bool:
        planned, holding = self._entries.get(name), self.ledger.holdings.get(name)
        if planned is None or holding is None or holding.record is None:
            return False
        record = holding.record
        return may_claim(record.version, self._version(planned), self._epochs) and not self._is_back(name, record)

    def _send_named(self, name: str, instant: int, attempt: int) -> Outcome:
        planned = self._entries.get(name)
        if planned is None:
            logger.error("entry %r, instant %s: not sent, since the entry was removed meanwhile", name, iso(instant))
            return Outcome.FAILED
        return self._send(planned, instant, attempt)

    def _confirm(self) -> None:
        """Record what was sent."""
        self._outbox.unconfirmed_since = None
        self.ledger.swap(self.ledger.confirms())

    # When to look again

    def _schedule(self, name: str) -> None:
        """Note when an entry of mine falls due next."""
        planned = self._entries.get(name)
        if planned is None or name not in self._share or not self.ledger.free(name):
            self._timetable.drop(name)
            return
        record, now = self.ledger.holdings[name].record, self._now_us()
        if record is not None and not may_claim(record.version, self._version(planned), self._epochs):
            self._yield(name)
            return
        self._yielded.discard(name)
        if record is not None and record.last > now + self._hand_over_us:
            self._report_future(name, record.last)
        if record is None:
            self._timetable.drop(name)
        elif planned.rule is None or self._ready(planned, record, now) is not record:
            self._timetable.set(name, now)
        elif not planned.enabled:
            self._timetable.drop(name)
        else:
            try:
                after = planned.rule.after(record.last)
                if after is None:
                    after = now + microseconds(_LOOK_AGAIN_S)
                self._timetable.set(name, after + self._jitter_of(planned)(after))
            except Exception as exc:  # noqa: BLE001  (one bad schedule must not stop the others)
                self._give_up_for_now(name, exc)

    def _yield(self, name: str) -> None:
        self._timetable.drop(name)
        if name not in self._yielded:
            self._yielded.add(name)
            logger.debug("entry %r: a live node has a newer version of it, which runs", name)

    def _jitter_of(self, planned: PlannedEntry) -> Callable[[int], int]:
        rule, spread_s = planned.rule, planned.jitter_s
        if not spread_s or rule is None:
            return _no_jitter
        return lambda instant: jitter(planned.name, instant, spread_s, rule.after(instant))

    def _give_up_for_now(self, name: str, exc: Exception) -> None:
        self._timetable.set(name, self._now_us() + microseconds(_LOOK_AGAIN_S))
        if name not in self._reported:
            self._reported.add(name)
            logger.error(
                "entry %r: its next run cannot be worked out: %r; trying again in an hour", name, exc, exc_info=exc
            )

    def _report_future(self, name: str, last: int) -> None:
        if name not in self._reported:
            self._reported.add(name)
            logger.error(
                "entry %r: its record says that it ran at %s, which is still to come: it does not run before then. If a"
                " clock was wrong, remove its record from the store",
                name,
                iso(last),
            )

    def _first_record(self, name: str) -> Record:
        planned = self._entries[name]
        return Record(self._now_us(), paused=not planned.enabled, version=self._version(planned))

    def _now_us(self) -> int:
        now = self._pool.now_us()
        if now is None:
            raise AssertionError("there is no cluster time before the first join")
        return now

    def _seconds_to_next(self) -> float:
        if not self._pool.trusted() or self.ledger.unread:
            return 0.05
        at_us = self._timetable.next_us()
        if at_us is None or not self._outbox.open:
            return _LONGEST_SLEEP_S
        return min(max((at_us - self._now_us()) / 1e6, 0.0), _LONGEST_SLEEP_S)


def _no_jitter(instant: int) -> int:
    return 0
