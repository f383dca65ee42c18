"""From claimed to sent: each message once, in order, and what is done when the broker does not take it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from celery_distsched.clock import Clock, iso
from celery_distsched.fast_way import FastWay, in_calls
from celery_distsched.holding import Holding, Move, Phase
from celery_distsched.outcome import Outcome
from celery_distsched.progress import Progress
from celery_distsched.records import Records
from celery_distsched.settings import Settings
from celery_distsched.slices import AmqpSlices, RedisSlices

logger = logging.getLogger(__name__)

_FIRST_DELAY_S = 0.25
_LONGEST_DELAY_S = 60.0
#: Entries whose messages are sent together: well below a tenth of a second, which is what a crash may leave in doubt.
_LARGEST_SLICE = 500
#: Seconds that what was sent may wait for its confirm, while more is being sent.
_UNCONFIRMED_S = 0.1
#: Slices that are on their way at a time.
_ON_THEIR_WAY = 2


class Made(NamedTuple):
    """Messages that were made before their claims were won."""

    #: What sends them: they are written for its connection.
    lane: RedisSlices | AmqpSlices
    instants: Mapping[str, Sequence[int]]
    #: Without those of entries that go one by one.
    messages: Mapping[str, Sequence[Any]]


_Flight = tuple[Mapping[str, Sequence[int]], Callable[[], Mapping[str, Sequence[Outcome]]]]


class Backoff:
    """Waits that double: none before the first repetition, then a quarter of a second, and so on."""

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self._delay_s = 0.0
        self._until = float("-inf")

    def failed(self, now: float) -> None:
        """Wait longer than last time."""
        self._until = now + self._delay_s
        self._delay_s = min(max(_FIRST_DELAY_S, 2 * self._delay_s), self._longest_s)

    def waiting(self, now: float) -> bool:
        """Whether it is too early to try again."""
        return now < self._until


class Outbox:
    """Sends what this node has claimed."""

    def __init__(
        self,
        records: Records,
        progress: Progress,
        clock: Clock,
        settings: Settings,
        *,
        send: Callable[[str, int, int], Outcome],
        probe: Callable[[], bool],
        may_send: Callable[[], bool],
        fast_way: FastWay,
    ) -> None:
        """Keep what is needed.

        Args:
            records: Where what is claimed and sent is noted.
            progress: Told after each message.
            clock: For backing off.
            settings: The user's.
            send: Hands (entry, instant, attempt) to the broker, one bounded attempt.
            probe: Whether the broker can be reached, one bounded attempt.
            may_send: Asked just before each message, or each slice.
            fast_way: Sends slices where it can.
        """
        #: When the first message was sent that is not confirmed yet; on `Clock.elapsed`.
        self.unconfirmed_since: float | None = None
        self._records = records
        self._progress = progress
        self._clock = clock
        self._settings = settings
        self._send = send
        self._probe = probe
        self._may_send = may_send
        self._fast_way = fast_way
        self._down_since: float | None = None
        #: For as long as this, at most, a broker is back and nobody has noticed.
        self._longest_wait_s = min(settings.node_ttl / 2, 1.0)
        self._broker_backoff = Backoff(self._longest_wait_s)
        self._entry_backoff: dict[str, Backoff] = {}
        #: Slices on their way: the instants of each entry, and what waits for the broker's answers.
        self._flights: deque[_Flight] = deque()

    @property
    def open(self) -> bool:
        """Whether the broker takes messages, as far as is known; while it does not, nothing new is claimed."""
        return self._down_since is None

    def reopen(self) -> None:
        """Try a broker that is down now and then."""
        if self._down_since is None or self._broker_backoff.waiting(self._clock.elapsed()):
            return
        if self._probe():
            self._down_since = None
            self._progress.able = True
        else:
            self._broker_backoff.failed(self._clock.elapsed())

    def keep(self, names: Collection[str]) -> None:
        """Forget that messages of all other entries were rejected, or not answered for."""
        for name in [name for name in self._entry_backoff if name not in names]:
            del self._entry_backoff[name]

    def make(self, claims: Mapping[str, Move]) -> Made | None:
        """Make the messages of what is being claimed, while the store works; None where they do not go in slices."""
        if not claims:
            return None
        try:
            lane = self._fast_way.slices(self._clock.elapsed())
            if lane is None:
                return None
            instants = {name: move.claimed for name, move in claims.items() if move.claimed}
            return Made(lane, instants, self._fast_way.messages(instants))
        except Exception as exc:  # noqa: BLE001  (the claims are on their way: whoever sends meets it again)
            logger.debug("no messages are made ahead: %r", exc)
            return None

    def send(self, names: Iterable[str], flush: Callable[[], None], made: Made | None = None) -> None:
        """Send what is claimed of these entries, oldest first; `flush` is called when confirms have waited enough.

        The last slice may still be on its way then: see `land`.
        """
        names = list(names)
        self._send_slices(names, flush, made)
        for name in names:
            holding = self._records.free(name)
            if holding is None:
                continue
            for instant in holding.instants(Phase.CLAIMED):
                if not self.open or not self._may_send():
                    return
                if name in self._entry_backoff and self._entry_backoff[name].waiting(self._clock.elapsed()):
                    break
                # Confirming what was sent before may have shown that somebody else has taken this one over.
                if holding.phases.get(instant) is not Phase.CLAIMED or not self._records.free(name):
                    continue
                self._send_one(name, holding, instant)
                # An entry that catches up has many instants: they do not wait for each other either.
                self._flush_in_time(flush)

    def _send_slices(self, names: Sequence[str], flush: Callable[[], None], made: Made | None) -> None:
        """Send in slices what can be; the rest, and every further attempt, is left to go one by one."""
        if not names:
            return
        lane = self._fast_way.slices(self._clock.elapsed())
        if lane is None:
            return
        firsts = {name: instants for name in names if (instants := self._first_attempts(name))}
        if made is not None and made.lane is lane and made.instants == firsts:
            messages = made.messages
        else:
            messages = self._fast_way.messages(firsts)
        for slice_ in in_calls(messages, _LARGEST_SLICE):
            # The broker works on the slice before meanwhile: it and this node need not wait for each other.
            self.land(_ON_THEIR_WAY - 1)
            flushed = self._flush_in_time(flush)
            if not self.open or not self._may_send():
                return
            if flushed:
                # Confirming the slice before may have shown that somebody else has taken one over.
                slice_ = [name for name in slice_ if self._first_attempts(name) == firsts[name]]
            for name in slice_:
                holding = self._records.holdings[name]
                # Whoever interrupts from here on must take it that the messages may have left.
                holding.phases.update(dict.fromkeys(firsts[name], Phase.SENDING))
                holding.attempts.update(dict.fromkeys(firsts[name], 1))
            answers = self._fast_way.send({name: (firsts[name], messages[name]) for name in slice_})
            self._flights.append(({name: firsts[name] for name in slice_}, answers))

    def land(self, most: int = 0) -> None:
        """Note what became of slices that are on their way, the oldest first, until no more than so many are."""
        while len(self._flights) > most:
            instants, answers = self._flights.popleft()
            outcomes = answers()
            now = self._progress.at = self._clock.elapsed()
            for name in instants:
                for instant, outcome in zip(instants[name], outcomes[name], strict=True):
                    self._settle(name, self._records.holdings[name], instant, outcome, now)

    def _first_attempts(self, name: str) -> tuple[int, ...]:
        """The instants of an entry of which nothing has been sent, if it has no others that wait."""
        holding = self._records.free(name)
        if holding is None or name in self._entry_backoff:
            return ()
        instants = holding.instants(Phase.CLAIMED)
        return () if any(holding.attempts.get(instant) for instant in instants) else instants

    def _flush_in_time(self, flush: Callable[[], None]) -> bool:
        late = self.unconfirmed_since is not None and self._clock.elapsed() - self.unconfirmed_since > _UNCONFIRMED_S
        if late:
            flush()
        return late

    def _send_one(self, name: str, holding: Holding, instant: int) -> None:
        attempt = holding.attempts.get(instant, 0) + 1
        if attempt > 1:
            self._records.tally.counts["sent again"] += 1
        # Whoever interrupts from here on must take it that the message may have left.
        holding.phases[instant], holding.attempts[instant] = Phase.SENDING, attempt
        outcome = self._send(name, instant, attempt)
        now = self._progress.at = self._clock.elapsed()
        self._settle(name, holding, instant, outcome, now)

    def _settle(self, name: str, holding: Holding, instant: int, outcome: Outcome, now: float) -> None:
        """Note what became of an attempt."""
        self._records.tally.counts[outcome.value] += 1
        if outcome in (Outcome.ACCEPTED, Outcome.FAILED):
            holding.phases[instant] = Phase.DONE
            self.unconfirmed_since = self.unconfirmed_since or now
            self._entry_backoff.pop(name, None)
            return
        holding.phases[instant] = Phase.CLAIMED
        if outcome in (Outcome.REJECTED, Outcome.POSTPONED):
            if outcome is Outcome.REJECTED:
                # Among others, what closes a channel would cost these theirs.
                self._fast_way.rest(name, "the broker would not take its last message")
            self._entry_backoff.setdefault(name, Backoff(_LONGEST_DELAY_S)).failed(now)
            return
        if outcome is Outcome.REFUSED:
            # Nothing has left: the next attempt is the first.
            holding.attempts[instant] -= 1
        elif self._settings.at_most_once:
            self._records.tally.possibly_lost(name, instant, "the broker did not answer; at_most_once")
            holding.phases[instant] = Phase.DONE
        else:
            logger.warning(
                "entry %r, instant %s: the broker did not answer; sending it again under the same task id",
                name,
                iso(instant),
            )
            # A broker that can be reached and never answers may keep each copy, and give them out in the end.
            self._entry_backoff.setdefault(name, Backoff(_LONGEST_DELAY_S)).failed(now)
        self.close(now)

    def close(self, now: float) -> None:
        """The broker takes no messages, as far as is known: nothing new is claimed until it can be reached again."""
        self._down_since = now
        # A short outage is over before the membership runs out; a long one must not cost the share more than a TTL.
        self._progress.able = False
        self._broker_backoff = Backoff(self._longest_wait_s)
        self._broker_backoff.failed(now)
