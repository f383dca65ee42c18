"""What is due is claimed, sent and confirmed, slice by slice: while the store works on one, the next is made ready."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from celery_distsched import collector
from celery_distsched.agenda import Agenda
from celery_distsched.clock import Clock
from celery_distsched.drivers.base import Elsewhere, Push
from celery_distsched.fast_way import FastWay, in_calls
from celery_distsched.holding import Move
from celery_distsched.ledger import Ledger
from celery_distsched.outbox import Made, Outbox
from celery_distsched.same_redis import SameRedis

logger = logging.getLogger(__name__)

#: Entries claimed in one go: about a tenth of a second of sending, which is what a crash may leave unconfirmed.
_SLICE = 100
#: The same where what is claimed is sent in slices.
_LARGE_SLICE = 500
#: Entries claimed and pushed in one go.
_PUSHED_AT_ONCE = 250
#: Longest burst of claims within one tick, in seconds.
_LONGEST_BURST_S = 0.5


class _Claiming(NamedTuple):
    """Claims that are on their way, or have been."""

    names: Sequence[str]
    claims: Mapping[str, Move]
    #: What waits for the store's answers.
    landing: Callable[[], None]
    made: Made | None = None


class Burst:
    """The way of what is due, from the agenda to the broker."""

    def __init__(
        self,
        agenda: Agenda,
        ledger: Ledger,
        outbox: Outbox,
        clock: Clock,
        fast_way: FastWay,
        most: int,
        *,
        may_go_on: Callable[[], bool],
        closed: Callable[[], bool],
    ) -> None:
        """Keep what is needed.

        Args:
            agenda: What is due.
            ledger: Where it is claimed.
            outbox: Sends it.
            clock: For the length of bursts.
            fast_way: Claims and pushes in one step, or makes messages ahead, where it can.
            most: Entries that the store takes in one go.
            may_go_on: Whether to claim or send one more.
            closed: Whether this node has left meanwhile.
        """
        #: When the last burst began, on `Clock.elapsed`.
        self.began_at = float("-inf")
        self._agenda = agenda
        self._ledger = ledger
        self._outbox = outbox
        self._clock = clock
        self._fast_way = fast_way
        self._slice = min(_SLICE, most)
        self._may_go_on = may_go_on
        self._closed = closed
        #: A call that claims and pushes and is on its way: what it claims, and what waits for the answer.
        self._flight: tuple[Mapping[str, tuple[Move, Sequence[Push]]], Callable[[], Mapping[str, str]]] | None = None
        #: Claims that are on their way, to be sent when they are won.
        self._claiming: _Claiming | None = None

    def run(self) -> None:
        """Claim and send what is due, for half a second at most."""
        # A long burst must not keep the rest of the loop waiting: the next tick goes on with it at once.
        self.began_at, outbox = self._clock.elapsed(), self._outbox
        until = self.began_at + _LONGEST_BURST_S
        with collector.paused():
            try:
                while outbox.open and self._may_go_on() and self._clock.elapsed() < until:
                    same_redis, most = self._lane_and_slice()
                    if why := self._fast_way.out_of_reach:
                        logger.error("nothing new is claimed for now, since %s", why)
                        outbox.close(self._clock.elapsed())
                        return
                    names = self._agenda.timetable.pop_due(self._agenda.now_us(), most)
                    if not names:
                        return
                    self._claim_slice(names, most, same_redis)
            finally:
                if not self._closed():
                    self._land()
                    self._send_claimed(self._claimed())
                    outbox.land()

    def _claim_slice(self, names: Sequence[str], most: int, same_redis: SameRedis | None) -> None:
        """Claim these. What goes in slices is sent in the next round, or at the end, while the store works."""
        try:
            claims = self._agenda.claims(names, self._enqueues(same_redis))
            if same_redis is not None:
                self._enqueue(claims, same_redis)
            before = self._claimed()
            # Confirms of what was sent before ride on the claims of this one.
            landing = self._ledger.swapping({**self._ledger.records.confirms(most), **claims})
        except BaseException:
            self._schedule(names)
            raise
        self._claiming = _Claiming(names, claims, landing)
        self._send_claimed(before)
        # Which of these are won nobody knows yet; nearly always all are.
        self._claiming = self._claiming._replace(made=self._outbox.make(claims))
        if self._claiming.made is None:
            self._send_claimed(self._claimed())

    def _claimed(self) -> _Claiming | None:
        """Take in which of the claims that are on their way, if any are, are won."""
        claiming, self._claiming = self._claiming, None
        if claiming is not None:
            try:
                claiming.landing()
            finally:
                self._schedule(claiming.names)
        return claiming

    def _send_claimed(self, claimed: _Claiming | None) -> None:
        if claimed is not None:
            self._outbox.send(claimed.claims, self.confirm, claimed.made)

    def _schedule(self, names: Sequence[str]) -> None:
        """Schedule these, but for what is scheduled when its answer comes, or when its record has been read."""
        scheduled, unread = self._agenda.timetable, self._ledger.records.unread
        self._agenda.schedule([name for name in names if name not in scheduled and name not in unread])

    def _lane_and_slice(self) -> tuple[SameRedis | None, int]:
        """Return what claims and pushes in one step, if anything does, and how many entries to claim in one go."""
        now = self._clock.elapsed()
        # One look decides all of it: two need not find the same.
        same_redis = self._fast_way.same_redis(now)
        if self._fast_way.surveying or not (same_redis or self._fast_way.slicing):
            return same_redis, self._slice
        return same_redis, _LARGE_SLICE if same_redis is None else _PUSHED_AT_ONCE

    def _enqueues(self, same_redis: SameRedis | None) -> Callable[[str], bool]:
        """Return what says of an entry whether it is claimed and pushed in one step."""
        return _nothing if same_redis is None else self._fast_way.takes

    def _enqueue(self, claims: dict[str, Move], same_redis: SameRedis) -> None:
        """Claim and push in one step those that were made ready for it, and take them out."""
        moves = {name: claims.pop(name) for name in [name for name, move in claims.items() if move.enqueue]}
        messages = self._fast_way.messages({name: move.claimed for name, move in moves.items()})
        if moves and not messages:
            # The broker is away, or takes nothing for now: there is time until it is asked again.
            self._outbox.close(self._clock.elapsed())
            return
        for names in in_calls(messages, _PUSHED_AT_ONCE):
            batch = {name: (moves[name], messages[name]) for name in names}
            # Up to here the server has worked on the call before: it and this node need not wait for each other.
            self._land()
            if not self._may_go_on():
                return
            self._flight = batch, self._ledger.enqueue(batch, same_redis.claim_and_push)

    def _land(self) -> None:
        """Take in what became of the call that is on its way, if one is."""
        flight, self._flight = self._flight, None
        if flight is None:
            return
        batch, landing = flight
        try:
            refused = landing()
        except Elsewhere:
            self._fast_way.look_again()
            return
        for name, (move, _) in batch.items():
            if name in refused:
                self._fast_way.rest(name, refused[name])
            elif (holding := self._ledger.records.holdings.get(name)) is not None and holding.record is move.new:
                self._fast_way.note(name, move.claimed)

    def confirm(self) -> None:
        """Record what was sent."""
        self._outbox.unconfirmed_since = None
        self._ledger.swap(self._ledger.records.confirms())


def _nothing(name: str) -> bool:
    return False
