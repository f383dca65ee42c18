"""The scheduler's loop: what is mine, what others left unfinished, and what is due, which goes in a burst.

Nothing is done without trust in the view, and every write is an exact swap: the ring only decides who tries.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from celery.beat import ScheduleEntry

from celery_distsched import collector, farewell
from celery_distsched.agenda import Agenda
from celery_distsched.burst import Burst
from celery_distsched.clock import Clock, iso
from celery_distsched.drivers.base import Driver
from celery_distsched.entries import PlannedEntry
from celery_distsched.errors import ConfigError, LeaseLost, StoreUnavailable
from celery_distsched.fast_way import FastWay
from celery_distsched.interrupts import Interrupts
from celery_distsched.ledger import Ledger
from celery_distsched.node_pool import NodePool, View
from celery_distsched.outbox import Outbox
from celery_distsched.outcome import Outcome
from celery_distsched.progress import Progress
from celery_distsched.record import node_of
from celery_distsched.records import Records
from celery_distsched.ring import HashRing, Places
from celery_distsched.schedule_epoch import heirless
from celery_distsched.settings import Settings
from celery_distsched.store_loss import StoreLoss

logger = logging.getLogger(__name__)

#: About the longest time between two ticks, in seconds: Celery's service sleeps without an ear for anything.
_LONGEST_SLEEP_S = 0.2
#: The same while something has to come first that does not come at a known time, whatever is due.
_UNSETTLED_SLEEP_S = 0.05
#: The same while entries are still looked at, a few in each tick.
_SURVEYING_SLEEP_S = 0.02
#: Seconds from the beginning of a look at the members until it is done, nearly always.
_LOOKING_S = 0.01
#: Seconds between two looks at the ways that messages may go, while nothing is due.
_LOOK_S = 1.0
#: Nodes that are named in one line of the log.
_NAMED = 10
#: Seconds between two bursts at least: what falls due meanwhile goes together, for the price of the same round trips.
_TOGETHER_S = 0.005


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
        fast_way: FastWay,
        is_due: Callable[[ScheduleEntry], Any] = ScheduleEntry.is_due,
        outdated: Callable[[], None] = lambda: None,
        interrupts: Interrupts | None = None,
    ) -> None:
        self.closed = False
        #: Whether a tick has begun that has not come to its end: what it left half done nobody is to go on with.
        self.ticking = False
        self.records = Records(pool, progress, clock, settings)
        self._agenda = Agenda(self.records, pool, settings, progress, clock, is_due, outdated)
        self._ledger = Ledger(
            driver,
            self.records,
            progress,
            clock,
            settings,
            anchor=self._agenda.first_record,
            learnt=self._agenda.schedule,
            may_take=self._agenda.may_take,
            trusted=self._trusted,
            may_begin=lambda: self._store_loss.unchanged() and self._may_go_on(),
        )
        self._send = send
        self._outbox = Outbox(
            self.records,
            progress,
            clock,
            settings,
            send=self._send_named,
            probe=probe,
            may_send=self._may_go_on,
            fast_way=fast_way,
        )
        self._burst = Burst(
            self._agenda,
            self._ledger,
            self._outbox,
            clock,
            fast_way,
            driver.max_batch,
            may_go_on=self._may_go_on,
            closed=lambda: self.closed,
        )
        self._interrupts = interrupts or Interrupts()
        self._fast_way = fast_way
        self._pool = pool
        self._progress = progress
        self._clock = clock
        self._settings = settings
        self._places = Places.of(())
        #: Entries of the share that have changed since it was last looked at.
        self._changed: set[str] = set()
        self._followed: tuple[HashRing, str | None] | None = None
        self._trusted_until = float("-inf")
        #: Whether the ledger can be gone by.
        self._settled = False
        #: When ticks began to fail with what nobody has thought of, again and again, and when one last did.
        self._failing_since = self._failed_at = float("-inf")
        self._driver = driver
        self._look_at = float("-inf")
        self._store_loss = StoreLoss(driver, self._ledger, pool, progress, clock, lambda: self._agenda.entries)

    def set_entries(self, entries: Mapping[str, PlannedEntry]) -> None:
        """Take on a schedule; what is known of its entries stays known."""
        before, share = self._agenda.entries, self._agenda.share
        self._agenda.entries = entries
        removed, added = before.keys() - entries.keys(), entries.keys() - before.keys()
        if self._pool.view.schedule is not None:
            # What came before this node's first schedule was registered is registered with it.
            self._agenda.changed(removed, added)
        if removed or added:
            self._places = self._places.changed(removed, self._progress.along(added, self._clock))
        self._changed |= {name for name in share & entries.keys() if before.get(name) is not entries[name]}
        self._followed = None
        self._outbox.keep(entries)
        self._fast_way.set_entries(entries)

    def tick(self) -> float:
        """Do all that can be done now; returns the seconds until there may be more."""
        with self._interrupts.held():
            self.ticking = True
            self._progress.at = self._clock.elapsed()
            if not self.closed:
                self._do_what_can_be_done()
            self.records.tally.lines.sum_up()
            self._agenda.lines.sum_up()
            self._progress.ticks += 1
            self._progress.at = self._clock.elapsed()
            self.ticking = False
        return self._seconds_to_next()

    def _do_what_can_be_done(self) -> None:
        try:
            if self._pool.trusted():
                self._work(self._pool.view)
            else:
                self._outbox.reopen()
        except (StoreUnavailable, LeaseLost) as exc:
            # The heartbeat meets the same store; it reports the outage, once, and its end.
            logger.debug("this tick ends early: %s", exc)
            self._land()
        except ConfigError:
            raise
        except Exception:
            now, ttl_s = self._clock.elapsed(), self._settings.node_ttl
            long_ago, self._failed_at = now - self._failed_at > ttl_s, now
            if long_ago:
                self._failing_since = now
                logger.exception("a tick failed; trying again for %g s", ttl_s)
            elif now - self._failing_since > ttl_s:
                # Its share is better off with others, and it with whoever starts it anew.
                raise
            self._settled = False
            self._land()

    def _land(self) -> None:
        if not self.closed:
            # What is on its way to the broker has nothing to do with the store. When this node is back, it may be
            # somebody else's.
            self._outbox.land()

    def next_s(self) -> float:
        """Seconds until something of this node's share falls due; negative: it has; infinity: nothing will."""
        at_us = self._agenda.timetable.next_us()
        return float("inf") if at_us is None else (at_us - self._agenda.now_us()) / 1e6

    def _work(self, view: View) -> None:
        ledger, records, outbox = self._ledger, self.records, self._outbox
        if view.schedule is None:
            return
        self._follow(view)
        self._agenda.follow_epochs(view.schedule, view.epochs)
        ledger.repeat()
        self._settled = settled = self._store_loss.settled(view) and self._all_read()
        if settled:
            records.whole()
            ledger.watch()
            ledger.take_over()
            self._progress.ready = not records.unread or bool(records.suspicious)
        outbox.reopen()
        if records.busy:
            # What others may have taken over waits, after a loss, until they have put back what they know of it.
            outbox.send(records.busy - records.doubtful, self._burst.confirm)
        outbox.land()
        if settled and self._is_due():
            self._burst.run()
        elif settled:
            self._look_ahead()
        self._burst.confirm()

    def _all_read(self) -> bool:
        """Read what has yet to be; False if the store has lost data: somebody may have put it back who knew less."""
        if not self.records.unread:
            return True
        with collector.paused():
            self._ledger.read(self.records.unread)
        return self._store_loss.unchanged()

    def _is_due(self) -> bool:
        at_us = self._agenda.timetable.next_us()
        return at_us is not None and at_us <= self._agenda.now_us()

    def _look_ahead(self) -> None:
        """Find out, before anything is due, which way messages go. That takes longer than all else of an idle tick."""
        now = self._clock.elapsed()
        if not self._outbox.open or not self._may_go_on():
            return
        if now >= self._look_at or self._fast_way.surveying:
            self._look_at = now + _LOOK_S
            self._fast_way.look_ahead(now)

    def _follow(self, view: View) -> None:
        """Take in a new membership of mine, a new ring, or a new schedule."""
        if view.me is not None and view.me != self.records.me:
            # Who was never without trust has not been called dead by anybody.
            self.records.rejoined(view.me, doubtful=self._clock.elapsed() > self._trusted_until)
        self._trusted_until = view.trusted_until
        if self._followed == (view.ring, view.place):
            return
        if self._followed is None:
            share = self._places.share(view.ring, view.place)
            mine = self._agenda.share
            gained, lost = share - mine if mine else share, mine - share
        else:
            gained, lost = self._places.moved(*self._followed, view.ring, view.place)
        self._followed = (view.ring, view.place)
        self._agenda.move(gained, lost)
        self.records.own(self._agenda.share, gained, lost)
        self._agenda.schedule((self._agenda.share & self._changed) - gained)
        self._changed = set()
        nodes = sorted(view.places)
        more = f" and {len(nodes) - _NAMED} more" if len(nodes) > _NAMED else ""
        logger.info(
            "%d of %d entries are mine, %s; nodes that share them: %s%s",
            len(self._agenda.share),
            len(self._agenda.entries),
            view.me,
            ", ".join(nodes[:_NAMED]),
            more,
        )

    def hand_back(self) -> None:
        """Confirm what was sent and pass on what was not, to leave. Runs on the heartbeat's thread, the loop at rest.

        Raises:
            StoreUnavailable: What this node held is taken over when it is dead.
        """
        if self.records.busy:
            alive, me = self._pool.view.alive, self._pool.node_id
            digests = {membership: info.digest for membership, info in alive.items()}
            others = {digest for membership, digest in digests.items() if node_of(membership) != me}
            mine = digests.get(self._pool.view.me or "", "")
            without_heir = heirless(self._driver, mine, others)
            farewell.hand_back(self.records, self._driver, without_heir, at_most_once=self._settings.at_most_once)

    def _may_go_on(self) -> bool:
        """Whether to claim or send one more: trusted, and not asked to stop."""
        return self._trusted() and not self.closed and not self._interrupts.pending

    def _trusted(self) -> bool:
        """Whether the view is trusted, and by the membership that the marks name."""
        return self._pool.trusted() and self._pool.view.me == self.records.me

    def _send_named(self, name: str, instant: int, attempt: int) -> Outcome:
        planned = self._agenda.entries.get(name)
        if planned is None:
            logger.error("entry %r, instant %s: not sent, since the entry was removed meanwhile", name, iso(instant))
            return Outcome.FAILED
        return self._send(planned, instant, attempt)

    def _seconds_to_next(self) -> float:
        if not self._pool.trusted() or self.records.unread or not self._settled:
            return _UNSETTLED_SLEEP_S
        longest_s = _SURVEYING_SLEEP_S if self._fast_way.surveying else self._idle_s()
        if not self._outbox.open:
            return longest_s
        next_s = self.next_s()
        if next_s <= 0:
            return 0.0
        return min(max(next_s, self._burst.began_at + _TOGETHER_S - self._clock.elapsed()), longest_s)

    def _idle_s(self) -> float:
        """Seconds until the members have been looked at: news come from there, and the machine wakes once for both."""
        pool = self._pool
        looks = max(1, round(_LONGEST_SLEEP_S / pool.poll_s))
        idle_s = pool.view.polled_at + looks * pool.poll_s + _LOOKING_S - self._clock.elapsed()
        return idle_s if idle_s > 0 else _LONGEST_SLEEP_S
