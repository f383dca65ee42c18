"""What should have been sent, what was sent, and the difference."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import NamedTuple

from tests.acceptance.queue import Message
from tests.acceptance.rhythms import SECOND_US, Rhythm

#: Seconds between a message's arrival and the confirm of its run, at most: the work that the package allows for, 0.1 s,
#: and one slow answer of a store.
_UNCONFIRMED_S = 0.5
#: The same of one whose confirms are known: longer than it may take on any machine, and shorter than never.
_NEVER_CONFIRMED_S = 5.0

#: A broker has recovered when nothing that arrives has been late by so many seconds, for so many seconds.
_LATE_S, _CALM_S = 2.0, 3.0


class Occurrence(NamedTuple):
    """An entry and one of its instants."""

    entry: str
    instant_us: int

    def __str__(self) -> str:
        instant = datetime.fromtimestamp(self.instant_us / SECOND_US, timezone.utc)
        return f"{self.entry} at {instant:%H:%M:%S.%f}"


class Hurt(NamedTuple):
    """What was done to a beat or to a server, in seconds of the wall clock."""

    #: What was done to the broker begins with "broker".
    kind: str
    #: 0 for what was done to a server.
    pid: int
    at: float
    #: When it was over, for what does not last.
    until: float = float("inf")
    #: From when on it may have been over: a server is there before anybody can say that it is.
    mended_from: float = float("inf")
    #: When the store had gone, where this befell a beat that had not been able to confirm since.
    cut_off_at: float = float("inf")
    #: How many times as long as on an idle machine it takes to confirm.
    stretch: float = 1.0
    #: What the store had told the beat to be confirmed; None: not known.
    confirmed: frozenset[Occurrence] | None = None

    def until_nothing_is_late(self, arrivals: Iterable[Message]) -> Hurt:
        """Return what was done to a broker as it lasted for those who use it.

        One that comes back has much to take in and to give out, and may answer nobody in time meanwhile.

        Args:
            arrivals: All messages, in the order in which they were seen.
        """
        until = self.until
        for message in arrivals:
            if message.seen_at > until + _CALM_S:
                break
            if message.seen_at > until and message.seen_at - message.instant_us / SECOND_US > _LATE_S:
                until = message.seen_at
        return self._replace(until=until)

    def kept_from_confirming(self, message: Message) -> bool:
        """Say whether this befell the sender between the broker's acceptance of a message and its confirm.

        Of a broker that went away, or came back to what had queued up for it, no sender had an answer.
        """
        unconfirmed_s = _UNCONFIRMED_S * self.stretch
        if self.kind.startswith("broker"):
            return self.at - unconfirmed_s <= message.seen_at <= self.until + unconfirmed_s
        if message.pid != self.pid or (self.kind == "SIGTERM" and self.cut_off_at > self.at):
            return False
        since = min(self.at, self.cut_off_at)
        if self.confirmed is not None:
            # What a beat that has ended did not confirm it never will, whenever its broker gives the message out.
            open_ = Occurrence(message.entry, message.instant_us) not in self.confirmed
            return open_ and since - _NEVER_CONFIRMED_S <= message.seen_at
        return since - unconfirmed_s <= message.seen_at <= self.at + unconfirmed_s

    def came_between_check_and_write(self, message: Message) -> bool:
        """Say whether the sender may have been stopped between its last check and the write, which then came late."""
        late = 0 <= message.seen_at - self.until <= _UNCONFIRMED_S * self.stretch
        return message.pid == self.pid and self.kind in ("SIGSTOP", "hung") and late


@dataclass(frozen=True)
class Sent:
    """The messages of a run, by occurrence, oldest first."""

    messages: Mapping[Occurrence, list[Message]]
    rhythms: Mapping[str, Rhythm]

    @classmethod
    def of(cls, messages: Iterable[Message], rhythms: Mapping[str, Rhythm]) -> Sent:
        """Sort these messages."""
        sorted_out: defaultdict[Occurrence, list[Message]] = defaultdict(list)
        for message in messages:
            sorted_out[Occurrence(message.entry, message.instant_us)].append(message)
        return cls(sorted_out, rhythms)

    def expected(self, after: float, upto: float) -> set[Occurrence]:
        """Return every occurrence with its instant between two moments of the wall clock, in seconds.

        The grid of an interval is that of its first message; without one, any grid will do: all of it is lost.
        """
        firsts: dict[str, int] = {}
        for entry, instant_us in self.messages:
            firsts[entry] = min(instant_us, firsts.get(entry, instant_us))
        return {
            Occurrence(name, instant)
            for name, rhythm in self.rhythms.items()
            for instant in rhythm.instants(firsts.get(name, 0), round(after * SECOND_US), round(upto * SECOND_US))
        }

    def lost(self, after: float, upto: float) -> list[Occurrence]:
        """Return what ought to have been sent for this time and was not."""
        return sorted(self.expected(after, upto) - self.messages.keys())

    def strays(self) -> list[Occurrence]:
        """Return what was sent for an instant that is none of its entry."""
        instants = [instant_us / SECOND_US for _, instant_us in self.messages]
        return sorted(self.messages.keys() - self.expected(min(instants) - 1, max(instants)))

    def confused(self) -> list[Occurrence]:
        """Return the occurrences with more than one task id, or with the task id of another one."""
        owners: defaultdict[str, set[Occurrence]] = defaultdict(set)
        for occurrence, messages in self.messages.items():
            for message in messages:
                owners[message.task_id].add(occurrence)
        return sorted(
            occurrence
            for occurrence, messages in self.messages.items()
            if len({message.task_id for message in messages}) > 1 or len(owners[messages[0].task_id]) > 1
        )

    def doubled(self) -> dict[Occurrence, list[Message]]:
        """Return what was sent more than once."""
        return {occurrence: messages for occurrence, messages in self.messages.items() if len(messages) > 1}

    def doubled_without_cause(self, hurts: Iterable[Hurt]) -> dict[Occurrence, list[Message]]:
        """Return what was sent more than once though not more than one of its senders could have confirmed it."""
        # A frozen beat is between a check and a write only once: what comes late in this way is crossed off.
        arrivals = sorted((one for some in self.messages.values() for one in some), key=lambda one: one.seen_at)
        causes = [one.until_nothing_is_late(arrivals) if one.kind.startswith("broker") else one for one in hurts]
        late = list(causes)
        return {
            occurrence: messages
            for occurrence, messages in self.doubled().items()
            if sum(_could_confirm(message, causes, late) for message in messages) > 1
            # Whoever sends again knows it, and says so.
            or sum(message.attempt == 1 for message in messages) > 1
        }

    def lateness(self) -> list[float]:
        """Return how long after its instant each occurrence was there first, in seconds, the shortest first."""
        return sorted(messages[0].seen_at - at / SECOND_US for (_, at), messages in self.messages.items())

    def delays(self, event_at: float, upto: float) -> dict[Occurrence, float]:
        """Return how long each occurrence took, in seconds after its instant and after an event, whichever was later.

        Those with an instant up to `upto` that were not there before the event.
        """
        return {
            occurrence: messages[0].seen_at - max(event_at, occurrence.instant_us / SECOND_US)
            for occurrence, messages in self.messages.items()
            if occurrence.instant_us <= upto * SECOND_US and messages[0].seen_at > event_at
        }


def _could_confirm(message: Message, causes: list[Hurt], late: list[Hurt]) -> bool:
    if any(hurt.kept_from_confirming(message) for hurt in causes):
        return False
    for hurt in late:
        if hurt.came_between_check_and_write(message):
            late.remove(hurt)
            return False
    return True
