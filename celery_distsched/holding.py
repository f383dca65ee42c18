"""What one node knows and holds of one entry, and the rules by which it may change the entry's record.

Nothing here knows a store, a clock or a broker: records and facts go in, the next record comes out. That makes the
rules small enough to be checked state by state:

- Of nodes that act at once only one wins the swap; the others learn the record that stood in their way.
- A swap whose answer was lost is repeated, unchanged, until it is answered; a record that holds my mark means "won",
  whatever else has changed in it by then.
- A confirm states a fact. It drops the mark of what was sent, whoever holds that mark by now.
- A mark names a membership, not only a node: after joining anew a node's older marks are its own only by a takeover.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from celery_distsched.record import HANDED_BACK, NOTHING, Record, Version, node_of


class Phase(Enum):
    """How far this node is with an instant that is, or was, marked as its own."""

    CLAIMED = "claimed"  #: won; to be sent
    SENDING = "sending"  #: being written to the broker: may have left
    DONE = "done"  #: accepted by the broker, or given up and counted; to be confirmed
    FORMER = "former"  #: claimed under an older membership; to be taken over before it is sent


class Move(NamedTuple):
    """One swap of an entry's record, and what it means if it is won."""

    expected: str | None
    new: Record
    #: Whether it needs this node to be a member: all but confirms do.
    fenced: bool
    #: Marks of dead nodes that become mine: instant → mark before.
    taken: Mapping[int, str] = NOTHING
    #: Marks that are dropped, their runs possibly lost.
    dropped: Mapping[int, str] = NOTHING
    #: Instants that become mine.
    claimed: tuple[int, ...] = ()
    #: Instants passed over by the catch-up policy.
    skipped: int = 0
    #: Its claims leave no marks: the store is to push their messages in the same step, or not to make this move.
    enqueue: bool = False

    def seen_in(self, text: str, me: str) -> Move:
        """The part of this move that a record shows to have come true, whatever has changed in it since."""
        if text == self.new.text():
            return self
        try:
            record = Record.parse(text)
        except ValueError:
            return self._replace(taken=NOTHING, skipped=0)
        taken = {at: mark for at, mark in self.taken.items() if record.open.get(at) == me}
        return self._replace(taken=taken, skipped=0)


class Holding:
    """One entry's record as this node last saw it, and this node's part in it."""

    __slots__ = ("_attempts", "_phases", "record", "unanswered")

    def __init__(
        self,
        record: Record | None = None,
        phases: dict[int, Phase] | None = None,
        attempts: dict[int, int] | None = None,
    ) -> None:
        self.record = record
        #: The swap whose answer is outstanding; nothing else is done with the entry meanwhile.
        self.unanswered: Move | None = None
        # Nothing is in hand of most entries, most of the time: these dicts would be a tenth of what an entry takes.
        self._phases = phases
        self._attempts = attempts

    @property
    def phases(self) -> dict[int, Phase]:
        """Instant → how far this node is with it."""
        if self._phases is None:
            self._phases = {}
        return self._phases

    @property
    def attempts(self) -> dict[int, int]:
        """Instant → how often it was handed to the broker, by this node or (once, at least) by the one before."""
        if self._attempts is None:
            self._attempts = {}
        return self._attempts

    @property
    def idle(self) -> bool:
        """Nothing of this entry is in this node's hands."""
        return not self._phases and self.unanswered is None

    @property
    def sent(self) -> bool:
        """Something was sent that is not confirmed yet."""
        return self._phases is not None and Phase.DONE in self._phases.values()

    def instants(self, phase: Phase) -> tuple[int, ...]:
        """Instants in this phase, oldest first."""
        if not self._phases:
            return ()
        if len(self._phases) == 1:
            # Nearly always.
            ((at, held),) = self._phases.items()
            return (at,) if held is phase else ()
        return tuple(sorted(at for at, held in self._phases.items() if held is phase))

    # What to write next

    def confirm(self) -> Move | None:
        """Close what was sent; None if there is nothing to close."""
        if self.record is None or (closed := self.record.without(self.instants(Phase.DONE))) is self.record:
            return None
        return Move(self.record.text(), closed, fenced=False)

    def advance(
        self,
        me: str,
        *,
        claim: Sequence[int] = (),
        upto: int | None = None,
        skipped: int = 0,
        gone: Callable[[str], bool] | None = None,
        at_most_once: bool = False,
        version: Version | None = None,
        enqueue: bool = False,
    ) -> Move | None:
        """Confirm, take over and claim in one swap; None if that changes nothing.

        Args:
            me: My membership.
            claim: Instants to claim, all after ``last``.
            upto: New ``last`` where it is later than the last claimed instant: what lies between is skipped.
            skipped: How many instants that passes over.
            gone: Whether a mark belongs to a node that is dead; given by the owner of the entry only.
            at_most_once: Drop the marks of dead nodes instead of sending again.
            version: The version of the entry that is claimed.
            enqueue: Whether to leave no marks, if nothing else is open either: see `Move.enqueue`.
        """
        before = self.record
        if before is None:
            return None
        if claim and not before.open:
            # Nearly every claim, nearly always: what follows would come to the same.
            marks = NOTHING if enqueue else dict.fromkeys(claim, me)
            new = Record(max(upto or 0, claim[-1]), marks, before.paused, version)
            return Move(before.text(), new, True, claimed=tuple(claim), skipped=skipped, enqueue=enqueue)
        base = before.without(self.instants(Phase.DONE))
        taken: dict[int, str] = {}
        dropped: dict[int, str] = {}
        for at, mark in base.open.items():
            if mark == me:
                continue
            if mark == HANDED_BACK:
                if gone is not None:
                    taken[at] = mark
            elif self.phases.get(at) is Phase.FORMER and node_of(mark) == node_of(me):
                taken[at] = mark
            elif gone is not None and gone(mark):
                (dropped if at_most_once else taken)[at] = mark
        new = base.without(tuple(dropped)).marked((*taken, *claim), me)
        last = max([before.last, upto or 0, *claim])
        new = Record(last, new.open, new.paused, version if claim else new.version)
        if new == before:
            return None
        if not taken and not dropped and not claim and new.last == before.last:
            return Move(before.text(), new, fenced=False)
        claimed = tuple(claim)
        return Move(before.text(), new, fenced=True, taken=taken, dropped=dropped, claimed=claimed, skipped=skipped)

    def hand_back(self, me: str, *, at_most_once: bool = False) -> Move | None:
        """Close what was sent and free the rest, to leave; None if I hold nothing."""
        if self.record is None:
            return None
        base = self.record.without(self.instants(Phase.DONE))
        mine = {at: mark for at, mark in base.open.items() if mark == me}
        sending = {at: mark for at, mark in mine.items() if self.phases.get(at) is Phase.SENDING}
        # An earlier attempt may have left too; in at_most_once such a run is given up at once.
        tried = () if at_most_once else tuple(at for at in mine if self.attempts.get(at))
        free = tuple(at for at in mine if at not in sending and at not in tried)
        # What may have left must not be sent by somebody else where no run may be doubled. Elsewhere its mark stays: if
        # the send comes through after all it is confirmed late, and if not it is taken over like any dead node's.
        dropped = sending if at_most_once else {}
        new = base.without(tuple(dropped)).marked(free, HANDED_BACK)
        if new == self.record:
            return None
        return Move(self.record.text(), new, fenced=False, dropped=dropped)

    def give_up(self, me: str) -> Move | None:
        """Close what was sent and drop the rest, to leave where nobody else has the entry; None if I hold nothing."""
        if self.record is None:
            return None
        base = self.record.without(self.instants(Phase.DONE))
        dropped = {at: mark for at, mark in base.open.items() if mark == me}
        new = base.without(tuple(dropped))
        return None if new == self.record else Move(self.record.text(), new, fenced=False, dropped=dropped)

    def restoring(
        self,
        me: str,
        stored: str | None,
        record: Record | None,
        *,
        doubtful: bool = False,
        at_most_once: bool = False,
    ) -> Move | None:
        """Put back what a store that lost data has forgotten of this entry; None if that is nothing.

        Args:
            me: My membership.
            stored: What the store holds now.
            record: The same, understood; None: there is no record.
            doubtful: I was away for so long that what I held may have been taken over and sent before the loss.
            at_most_once: What may have been sent is not sent again.
        """
        known = self.record or record
        if known is None:
            return None
        marks = {}
        for at, mark in (record.open if record else NOTHING).items():
            # I know best what I have yet to send: no other mark of mine can stand for anything, but for that of a claim
            # whose answer I never got. And what was closed when I last looked stays so: whoever has put it back knew
            # less.
            mine, was_closed = node_of(mark) == node_of(me), at <= known.last and at not in known.open
            if mine and self.record is not None and at > self.record.last:
                marks[at] = me
            elif self._to_send(at) if mine else not was_closed:
                marks[at] = mark
        dropped = {}
        for at in filter(self._to_send, self.phases):
            # What bears my mark of now I have put back myself, after an earlier loss: since then nobody has taken it.
            unsure = doubtful and at not in marks and known.open.get(at) != me
            settled = unsure and record is not None and record.last >= at
            if node_of(marks.get(at, me)) != node_of(me) or (settled and not at_most_once):
                continue
            if unsure and at_most_once:
                dropped[at] = me
            else:
                marks[at] = me
        for at, mark in known.open.items():
            # A dead node cannot put its mark back. Who is alive takes out what it has sent, but may not dare to put in
            # what it has yet to send, if it was away and somebody else may have done so.
            forgotten = at not in marks and (record is None or at > record.last)
            if forgotten and node_of(mark) != node_of(me):
                marks[at] = mark
        base = record or known
        new = Record(max(base.last, known.last), marks, base.paused, _newer(base.version, known.version))
        if new == record:
            return None
        return Move(stored, new, fenced=True, dropped=dropped)

    def _to_send(self, at: int) -> bool:
        return self.phases.get(at, Phase.DONE) is not Phase.DONE

    # What an answer means

    def learn(self, record: Record, me: str | None) -> Sequence[int]:
        """Take in the record as it is stored: from an answer to a swap, or read.

        Returns:
            Instants that were in my hands and have been taken over by another node.
        """
        self.record = record
        if not record.open:
            # All is done: sent by me, or by whoever has taken it over.
            self._phases = self._attempts = None
            return ()
        taken_away = []
        for at, mark in record.open.items():
            if mark == me and self.phases.get(at) in (None, Phase.FORMER):
                self.phases[at] = Phase.CLAIMED
        for at, phase in list(self.phases.items()):
            mark = record.open.get(at, "")
            if phase is Phase.DONE:
                finished = not mark
            elif phase is Phase.FORMER:
                finished = not mark or me is None or node_of(mark) != node_of(me)
            else:
                finished = mark != me
            if finished:
                del self.phases[at]
                self.attempts.pop(at, None)
                if phase is not Phase.DONE and mark:
                    taken_away.append(at)
        # A dict that was used once would stay.
        self._phases, self._attempts = self._phases or None, self._attempts or None
        return taken_away

    def rejoined(self) -> None:
        """My membership is a new one: what I held under the old one has to be taken over before it is sent."""
        for at, phase in self.phases.items():
            if phase in (Phase.CLAIMED, Phase.SENDING):
                self.phases[at] = Phase.FORMER


def _newer(one: Version | None, other: Version | None) -> Version | None:
    return max((one, other), key=lambda version: version.epoch if version else -1)
