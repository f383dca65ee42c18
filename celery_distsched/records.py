"""The records that this node knows: those of its share, and those in which it has something of its own.

What they were when they were last read, what becomes of them by what the store answers, and what may be written next.
Nothing here asks the store. Runs in the scheduler's loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import islice

from celery_distsched.clock import Clock, iso
from celery_distsched.deaths import Deaths
from celery_distsched.holding import Holding, Move
from celery_distsched.memories import Memories
from celery_distsched.node_pool import NodePool
from celery_distsched.progress import Progress
from celery_distsched.record import HANDED_BACK, Record, Version, node_of
from celery_distsched.settings import Settings
from celery_distsched.tally import Tally

logger = logging.getLogger(__name__)


class Records:
    """What one node knows of the ledger, and what of it is in its hands."""

    def __init__(self, pool: NodePool, progress: Progress, clock: Clock, settings: Settings) -> None:
        self.share: Collection[str] = ()
        #: My membership, as these holdings know it.
        self.me = ""
        self.holdings: dict[str, Holding] = {}
        #: Entries with something in this node's hands: claimed, sent and not confirmed, or an unanswered swap.
        self.busy: set[str] = set()
        #: Entries whose record must be read before anything else is done with them.
        self.unread: set[str] = set()
        #: Entries of mine with somebody else's open mark.
        self.watched: set[str] = set()
        #: Entries of mine of which there is no record, and that may not be new.
        self.absent: set[str] = set()
        #: Entries of mine whose records have become known, or have changed, of which nobody has been told yet.
        self.news: list[str] = []
        #: Entries of which I held something when I came back after so long that others may have taken it; until the
        #: ledger was whole, and all that was unread had been read.
        self.doubtful: set[str] = set()
        #: What shows that the store has lost data: a record is older than I remember it, or has gone. Empty: nothing.
        self.suspicious = ""
        #: A write with my membership for its fence was not answered. It may yet arrive; as long as the store keeps its
        #: data, it does not find what it expects any more.
        self.unheard = False
        self.tally = Tally(at_most_once=settings.at_most_once)
        self._progress = progress
        self._clock = clock
        self._at_most_once = settings.at_most_once
        self._deaths = Deaths(pool)
        self._garbage: set[str] = set()
        #: Of entries that are no longer mine.
        self._memories = Memories(clock)

    # Whose

    def rejoined(self, me: str, *, doubtful: bool = False) -> None:
        """My membership is a new one; `doubtful`: others may have taken over what I held under the old one."""
        if doubtful:
            self.doubtful |= self.busy
        self.me, self.unheard = me, False
        for name in self.busy:
            self.holdings[name].rejoined()
            # Its fence is void: it can neither be repeated nor arrive late any more.
            self.holdings[name].unanswered = None
        self.unread |= self.busy

    def own(self, share: Collection[str], gained: Iterable[str], lost: Iterable[str]) -> None:
        """Take on a share: read what is gained before anything else, forget what is lost and not in my hands."""
        self.share = share
        self.unread.update(gained)
        for name in self._progress.along(lost, self._clock):
            self.watched.discard(name)
            if name not in self.busy:
                self.forget(name)

    def whole(self) -> None:
        """The ledger is whole: what has been read since holds."""
        if not self.unread:
            self.doubtful.clear()

    # As they are

    def free(self, name: str) -> Holding | None:
        """Return what is known of an entry, if its record is, and if no swap of it is out."""
        holding = self.holdings.get(name)
        if holding is None or holding.record is None or holding.unanswered is not None or name in self.unread:
            return None
        return holding

    def answered(self, name: str) -> bool:
        """Whether no swap of an entry is out."""
        holding = self.holdings.get(name)
        return holding is None or holding.unanswered is None

    def memory(self, name: str) -> Record | None:
        """Return the newest record that this node remembers of an entry."""
        holding = self.holdings.get(name)
        if holding is not None and holding.record is not None:
            return holding.record
        return self._memories.recall(name)

    def known(self) -> set[str]:
        """Return the names of all entries of which this node remembers anything."""
        return {*self.holdings, *self._memories.names()}

    def parsed(self, name: str, text: str) -> Record | None:
        """Return what the store holds of an entry; None, reported once, if that is no record."""
        try:
            return Record.parse(text)
        except ValueError as exc:
            if name not in self._garbage:
                self._garbage.add(name)
                logger.error(  # noqa: TRY400
                    "entry %r: the store holds %s. It is left alone and will not run; remove or mend it, then restart",
                    name,
                    exc,
                )
            return None

    # What the store says

    def learn(self, name: str, text: str) -> None:
        """Take in what was read."""
        record = self.parsed(name, text)
        known = self.memory(name)
        if record is None:
            self.forget(name)
        elif known is not None and record.last < known.last:
            self.suspicious = (
                f"entry {name!r} was last claimed for {iso(known.last)}, and the store says {iso(record.last)}"
            )
        elif known is not None and (at := self._reopened(name, known, record)) is not None:
            self.suspicious = f"entry {name!r}, instant {iso(at)}, was confirmed, and the store shows it unsent"
        else:
            self._know(name, record)

    def begun(self, moves: Mapping[str, Move]) -> set[str]:
        """These swaps are out: whatever keeps their answers from being taken in, they are repeated then.

        Returns:
            Those that were out before.
        """
        repeated = set()
        for name, move in moves.items():
            holding = self.holdings.get(name)
            if holding is None:
                holding = self.holdings[name] = Holding()
            elif holding.unanswered is not None:
                repeated.add(name)
            holding.unanswered = move
        self.busy.update(moves)
        return repeated

    def won(self, name: str, move: Move, *, news: bool = True) -> None:
        """A swap was won; `news`: it may have changed when the entry falls due."""
        self.holdings[name].unanswered = None
        self._account_for(name, move)
        self._know(name, move.new, news=news)

    def lost(self, name: str, text: str | None, repeated: Move | None = None) -> None:
        """A swap was lost to what there is; `repeated`: its move, where that was not the first attempt at it."""
        self.holdings[name].unanswered = None
        if text is None:
            self.unread.add(name)
            return
        if repeated is not None:
            # The first attempt, which I was not told of, may be what stands in its own way.
            self._account_for(name, repeated.seen_in(text, self.me))
        self.learn(name, text)

    def left_alone(self, name: str) -> None:
        """What was to be written was not, and nothing else was: its record is as it was."""
        self.unread.discard(name)
        self.news.append(name)

    def void(self, names: Collection[str]) -> None:
        """The membership has gone: some of these swaps, or an earlier attempt at them, may have been written before."""
        for name in names:
            self.holdings[name].unanswered = None
        self.unread.update(names)

    def forget(self, name: str) -> None:
        """Nothing is to be done with an entry any more; its record stays a memory."""
        holding = self.holdings.pop(name, None)
        if holding is not None and holding.record is not None:
            self._memories.keep(name, holding.record)
        for names in (self.absent, self.busy, self.doubtful, self.unread, self.watched):
            names.discard(name)

    def slim(self) -> None:
        """Walking through a set takes as long as it was ever large, even when it is empty: take a new one."""
        self.unread = self.unread or set()
        self.busy = self.busy or set()
        self.watched = self.watched or set()
        if not self.unread and not self.busy and not self.watched:
            self._deaths.nothing_is_open()
            self.tally.nothing_is_open()

    def _know(self, name: str, record: Record, *, news: bool = True) -> None:
        holding = self.holdings.get(name)
        if holding is None:
            holding = self.holdings[name] = Holding()
        self.unread.discard(name)
        for instant in holding.learn(record, self.me):
            self.tally.taken_away(name, instant, record.open[instant])
        if holding.idle:
            self.busy.discard(name)
        else:
            self.busy.add(name)
        if name in self.share:
            others = [at for at, mark in record.open.items() if mark != self.me and at not in holding.phases]
            (self.watched.add if others else self.watched.discard)(name)
            if news:
                self.news.append(name)
        elif holding.idle:
            self.forget(name)

    def _reopened(self, name: str, known: Record, record: Record) -> int | None:
        """Return an instant that is open, though it was closed when I last looked and I do not hold it."""
        if not record.open:
            return None
        holding = self.holdings.get(name)
        held = holding.phases if holding is not None else {}
        return next((at for at in record.open if at <= known.last and at not in known.open and at not in held), None)

    def _account_for(self, name: str, move: Move) -> None:
        """Note what a won move took over and passed over."""
        if not move.taken and not move.skipped:
            return
        holding = self.holdings[name]
        for instant, mark in move.taken.items():
            holding.phases.pop(instant, None)
            # Of what I held under an older membership I know how often I have sent it.
            if mark != HANDED_BACK and node_of(mark) != node_of(self.me):
                holding.attempts[instant] = max(1, holding.attempts.get(instant, 0))
        self.tally.won(name, move, self.me)

    # What may be written next

    def advance(
        self,
        name: str,
        may_take: Callable[[str], bool] = lambda name: True,
        *,
        claim: tuple[int, ...] = (),
        upto: int | None = None,
        skipped: int = 0,
        version: Version | None = None,
        enqueue: bool = False,
    ) -> Move | None:
        """Return the move that confirms, takes over and claims what can be of an entry; see `Holding.advance`.

        `may_take` says whether what the dead left open of an entry is for this node to take over.
        """
        holding = self.free(name)
        if holding is None or holding.record is None:
            return None
        mine_to_take = bool(holding.record.open) and name in self.share and may_take(name)
        return holding.advance(
            self.me,
            claim=claim,
            upto=upto,
            skipped=skipped,
            gone=self._gone if mine_to_take else None,
            at_most_once=self._at_most_once,
            version=version,
            enqueue=enqueue,
        )

    def confirms(self, most: int | None = None) -> dict[str, Move]:
        """Return the moves that record what was sent."""
        sent = (name for name in self.busy if self.holdings[name].sent)
        moves = ((name, holding.confirm()) for name in sent if (holding := self.free(name)) is not None)
        return dict(islice(((name, move) for name, move in moves if move is not None), most))

    def restoring(self, name: str, text: str | None) -> Move | None:
        """Return the move that puts back what the store has forgotten of an entry; see `Holding.restoring`."""
        record = None if text is None else self.parsed(name, text)
        if text is not None and record is None:
            return None
        holding = self.holdings.get(name)
        if holding is None or holding.record is None:
            # A swap that lost to nothing leaves a holding that knows no record; what was known before is remembered.
            holding = Holding(self.memory(name))
        return holding.restoring(self.me, text, record, doubtful=name in self.doubtful, at_most_once=self._at_most_once)

    def _gone(self, mark: str) -> bool:
        return self._deaths.gone(mark, self.me)
