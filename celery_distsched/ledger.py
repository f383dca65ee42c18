"""This node's dealings with the ledger: which records it knows, which swaps are out, and whose marks it waits for.

Runs in the scheduler's loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from operator import itemgetter

from celery_distsched.clock import Clock, iso
from celery_distsched.deaths import Deaths
from celery_distsched.drivers.base import Answer, Claim, Driver, Push, Pushing, PushRefused, Swap
from celery_distsched.errors import LeaseLost, StoreUnavailable
from celery_distsched.holding import Holding, Move
from celery_distsched.memories import Memories
from celery_distsched.node_pool import NodePool
from celery_distsched.progress import Progress
from celery_distsched.record import HANDED_BACK, Record, Version, node_of
from celery_distsched.settings import Settings
from celery_distsched.tally import Tally

logger = logging.getLogger(__name__)

ClaimAndPush = Callable[[Sequence[Claim], str], Pushing]

_text_of = itemgetter(Push._fields.index("text"))
#: Seconds between two attempts at a swap that was not answered.
_REPEAT_S = 0.1


class Ledger:
    """The records of this node's share, and those in which it has marks of its own."""

    def __init__(
        self,
        driver: Driver,
        pool: NodePool,
        progress: Progress,
        clock: Clock,
        settings: Settings,
        *,
        anchor: Callable[[str], Record],
        learnt: Callable[[Sequence[str]], None],
        may_take: Callable[[str], bool] = lambda name: True,
        trusted: Callable[[], bool] = lambda: True,
        may_begin: Callable[[], bool] = lambda: True,
    ) -> None:
        """Keep what is needed.

        Args:
            driver: The store.
            pool: Who is dead.
            progress: Told after each answer of the store.
            clock: For the pace of repeating and watching.
            settings: The user's.
            anchor: Makes the first record of an entry that there is none of.
            learnt: Called with the names of entries of the share whose records are now known, or have changed.
            may_take: Whether what the dead left open of an entry is for this node to take over.
            trusted: Whether this node may act as the member whose marks it makes; asked just before each write.
            may_begin: Asked before first records are written, after it was read that there are none.
        """
        self.share: Collection[str] = ()
        #: My membership, as these holdings know it.
        self.me = ""
        self.holdings: dict[str, Holding] = {}
        #: Entries with something in this node's hands: claimed, sent and not confirmed, or an unanswered swap.
        self.busy: set[str] = set()
        #: Entries whose record must be read before anything else is done with them.
        self.unread: set[str] = set()
        #: What shows that the store has lost data: a record is older than I remember it, or has gone. Empty: nothing.
        self.suspicious = ""
        #: A write with my membership for its fence was not answered. It may yet arrive; as long as the store keeps its
        #: data, it does not find what it expects any more.
        self.unheard = False
        #: Until then, on `Clock.elapsed`, what is not in the store is not taken for new.
        self.anchor_from = float("-inf")
        self.tally = Tally(at_most_once=settings.at_most_once)
        self._driver = driver
        self._pool = pool
        self._progress = progress
        self._clock = clock
        self._settings = settings
        self._anchor = anchor
        self._learnt = learnt
        #: Those of which it has not been told yet.
        self._news: list[str] = []
        self._may_take = may_take
        self._trusted = trusted
        self._may_begin = may_begin
        #: Entries of mine with somebody else's open mark.
        self._watched: set[str] = set()
        self._watched_at = float("-inf")
        self._repeated_at = float("-inf")
        self._deaths = Deaths(pool)
        self._garbage: set[str] = set()
        #: Of entries that are no longer mine.
        self._memories = Memories(clock)
        #: Entries of mine of which there is no record, and that may not be new.
        self._absent: set[str] = set()
        #: I was away for so long that others may have taken over what I held.
        self._doubtful = False

    # Whose

    def rejoined(self, me: str, *, doubtful: bool = False) -> None:
        """My membership is a new one; `doubtful`: others may have taken over what I held under the old one."""
        # The doubt stays until what I held has been read: I may have come back twice since.
        self._doubtful = doubtful or (self._doubtful and not self.unread.isdisjoint(self.busy))
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
            self._watched.discard(name)
            if name not in self.busy:
                self._forget(name)

    def free(self, name: str) -> Holding | None:
        """Return what is known of an entry, if its record is, and if no swap of it is out."""
        holding = self.holdings.get(name)
        if holding is None or holding.record is None or holding.unanswered is not None or name in self.unread:
            return None
        return holding

    # Reading

    def read(self, names: Iterable[str]) -> None:
        """Read these records, and create those that there are none of: the one anchor of each entry."""
        # In order, since a store keeps neighbours together: of SQLite's pages a batch of new records changes a few, and
        # not nearly all.
        answered = sorted(name for name in names if self.answered(name))
        for batch in batches(answered, self._driver.max_batch):
            records = self._driver.read(batch)
            self._progress.at = self._clock.elapsed()
            anchors = {}
            for name, text in zip(batch, records, strict=True):
                if text is not None:
                    self._learn(name, text)
                elif self.memory(name) is not None:
                    self.suspicious = f"entry {name!r} has no record any more"
                elif name not in self.share:
                    self._forget(name)
                elif self._clock.elapsed() < self.anchor_from:
                    self.unread.discard(name)
                    self._absent.add(name)
                else:
                    anchors[name] = Move(None, self._anchor(name), fenced=True)
            self._tell()
            if anchors and self._may_begin():
                self.swap(anchors)
        self._slim()

    def watch(self) -> None:
        """Read again, at each poll, the records in which somebody else's mark is open: no mark is without a watcher."""
        now = self._clock.elapsed()
        if self._absent and now >= self.anchor_from:
            self.unread.update(self._absent)
            self._absent.clear()
        if now - self._watched_at >= min(self._settings.node_ttl / 10, 0.5):
            self._watched_at = now
            self.read(self._watched)

    def _learn(self, name: str, text: str) -> None:
        record = self.parsed(name, text)
        known = self.memory(name)
        if record is None:
            self._forget(name)
        elif known is not None and record.last < known.last:
            self.suspicious = (
                f"entry {name!r} was last claimed for {iso(known.last)}, and the store says {iso(record.last)}"
            )
        elif known is not None and (at := self._reopened(name, known, record)) is not None:
            self.suspicious = f"entry {name!r}, instant {iso(at)}, was confirmed, and the store shows it unsent"
        else:
            self._know(name, record)

    def _reopened(self, name: str, known: Record, record: Record) -> int | None:
        """Return an instant that is marked as mine, though it was closed when I last looked and I do not hold it."""
        holding = self.holdings.get(name)
        held = holding.phases if holding is not None else {}
        for at, mark in record.open.items():
            if node_of(mark) == node_of(self.me) and at <= known.last and at not in known.open and at not in held:
                return at
        return None

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

    def _holding(self, name: str) -> Holding:
        holding = self.holdings.get(name)
        if holding is None:
            holding = self.holdings[name] = Holding()
        return holding

    def _know(self, name: str, record: Record, *, news: bool = True) -> None:
        holding = self._holding(name)
        self.unread.discard(name)
        for instant in holding.learn(record, self.me):
            self.tally.taken_away(name, instant, record.open[instant])
        if holding.idle:
            self.busy.discard(name)
        else:
            self.busy.add(name)
        if name in self.share:
            others = [at for at, mark in record.open.items() if mark != self.me and at not in holding.phases]
            (self._watched.add if others else self._watched.discard)(name)
            if news:
                self._news.append(name)
        elif holding.idle:
            self._forget(name)

    def _tell(self) -> None:
        news, self._news = self._news, []
        self._learnt(news)

    def _slim(self) -> None:
        """Walking through a set takes as long as it was ever large, even when it is empty: take a new one."""
        self.unread = self.unread or set()
        self.busy = self.busy or set()
        self._watched = self._watched or set()
        if not self.unread and not self.busy and not self._watched:
            self._deaths.nothing_is_open()
            self.tally.nothing_is_open()

    def _forget(self, name: str) -> None:
        holding = self.holdings.pop(name, None)
        if holding is not None and holding.record is not None:
            self._memories.keep(name, holding.record)
        self._absent.discard(name)
        self.busy.discard(name)
        self.unread.discard(name)
        self._watched.discard(name)

    # After the store has lost data

    def known(self) -> set[str]:
        """Return the names of all entries of which this node remembers anything."""
        return {*self.holdings, *self._memories.names()}

    def memory(self, name: str) -> Record | None:
        """Return the newest record that this node remembers of an entry."""
        holding = self.holdings.get(name)
        if holding is not None and holding.record is not None:
            return holding.record
        return self._memories.recall(name)

    def answered(self, name: str) -> bool:
        """Whether no swap of an entry is out."""
        holding = self.holdings.get(name)
        return holding is None or holding.unanswered is None

    def restoring(self, name: str, text: str | None) -> Move | None:
        """Return the move that puts back what the store has forgotten of an entry; see `Holding.restoring`."""
        record = None if text is None else self.parsed(name, text)
        if text is not None and record is None:
            return None
        holding = self.holdings.get(name)
        if holding is None or holding.record is None:
            # A swap that lost to nothing leaves a holding that knows no record; what was known before is remembered.
            holding = Holding(self.memory(name))
        return holding.restoring(
            self.me, text, record, gone=self._gone, doubtful=self._doubtful, at_most_once=self._settings.at_most_once
        )

    # Writing

    def swap(self, moves: Mapping[str, Move]) -> None:
        """Try to write these moves; without trust in the view only what needs none, and the rest is left as it is.

        Raises:
            StoreUnavailable: The outcome is unknown; the moves are kept, to be repeated before anything else is done.
            LeaseLost: Not all was written; the records are read before anything else is done.
        """
        self.swapping(moves)()

    def swapping(self, moves: Mapping[str, Move]) -> Callable[[], None]:
        """Begin a `swap`, which may raise by then what it raises.

        Returns:
            What waits for the store's answers, to be called once. Until then nothing is known of these entries.
        """
        if any(move.enqueue for move in moves.values()):
            raise AssertionError("a claim that leaves no mark, without its message: the run would be lost")
        parts = batches(moves, self._driver.max_batch)
        first = self._begin(moves, next(parts, []))

        def land() -> None:
            first()
            for names in parts:
                self._begin(moves, names)()

        return land

    def _begin(self, moves: Mapping[str, Move], names: Iterable[str]) -> Callable[[], None]:
        # What came before, such as reading, may have taken its time.
        trusted = self._trusted()
        batch = {name: move for name in names if not (move := moves[name]).fenced or trusted}
        if not batch:
            return lambda: None
        fence = self.me if any(move.fenced for move in batch.values()) else None
        self.tally.dropping(batch, self.me)
        # Whatever keeps the answers from being taken in, these are repeated then.
        repeated = set()
        for name, move in batch.items():
            holding = self._holding(name)
            if holding.unanswered is not None:
                repeated.add(name)
            holding.unanswered = move
        self.busy.update(batch)
        with self._failing(batch, fence):
            waiting = self._driver.swapping([Swap(name, m.expected, m.new.text()) for name, m in batch.items()], fence)
        return partial(self._answered, batch, repeated, fence, waiting)

    def _answered(
        self,
        batch: Mapping[str, Move],
        repeated: Collection[str],
        fence: str | None,
        waiting: Callable[[], list[Answer]],
    ) -> None:
        with self._failing(batch, fence):
            answers = waiting()
        self._progress.at = self._clock.elapsed()
        for (name, move), answer in zip(batch.items(), answers, strict=True):
            holding = self.holdings[name]
            holding.unanswered = None
            if answer.won:
                self._won(name, holding, move)
                # A mere confirm changes nothing of when the entry falls due.
                self._know(name, move.new, news=move.fenced or name in repeated)
                continue
            if name in repeated and answer.record is not None:
                # The first attempt, which I was not told of, may be what stands in its own way.
                self._won(name, holding, move.seen_in(answer.record, self.me))
            if answer.record is None:
                self.unread.add(name)
            else:
                self._learn(name, answer.record)
        self._tell()

    @contextmanager
    def _failing(self, batch: Iterable[str], fence: str | None) -> Iterator[None]:
        try:
            yield
        except StoreUnavailable:
            self.unheard |= fence is not None
            raise
        except LeaseLost:
            # Some of these, or an earlier attempt at them, may have been written before the membership went.
            for name in batch:
                self.holdings[name].unanswered = None
            self.unread.update(batch)
            raise

    def enqueue(
        self, batch: Mapping[str, tuple[Move, Sequence[Push]]], claim_and_push: ClaimAndPush
    ) -> Callable[[], dict[str, str]]:
        """Claim and push in one step of the store.

        Returns:
            What waits for the answers, to be called once. It returns the entries whose messages the server would not
            take, and what it said.

        Raises:
            StoreUnavailable: Unknown. This may come with the answers too, and with the answers only:
            LeaseLost: Nothing was done.
            Elsewhere: Nothing was done, since the broker is another server than the store.
        """
        # Until there is an answer, and if there is none, nothing is known of these entries. Whatever happens, their
        # records are read first: one that has come to the claimed instant has its messages in the queue.
        self.unread.update(batch)
        claims = [
            Claim(name, move.expected, move.new.text(), pushes[0].key, tuple(map(_text_of, pushes)))
            for name, (move, pushes) in batch.items()
        ]
        pushing = claim_and_push(claims, self.me)
        return lambda: self._enqueued(batch, pushing())

    def _enqueued(
        self, batch: Mapping[str, tuple[Move, Sequence[Push]]], answers: Sequence[Answer | PushRefused]
    ) -> dict[str, str]:
        self._progress.at = self._clock.elapsed()
        refused = {}
        for (name, (move, pushes)), answer in zip(batch.items(), answers, strict=True):
            if isinstance(answer, PushRefused):
                refused[name] = answer.error
                self.unread.discard(name)
                self._news.append(name)
            elif answer.won:
                self.tally.counts["accepted"] += len(pushes)
                self._won(name, self.holdings[name], move)
                self._know(name, move.new)
            elif answer.record is None:
                self.unread.add(name)
            else:
                self._learn(name, answer.record)
        self._tell()
        return refused

    def repeat(self) -> None:
        """Repeat, unchanged, what was not answered."""
        now = self._clock.elapsed()
        if not self.busy or now - self._repeated_at < _REPEAT_S:
            return
        self._repeated_at = now
        moves = {name: move for name in self.busy if (move := self.holdings[name].unanswered) is not None}
        self.swap({name: move for name, move in moves.items() if move.fenced})
        self.swap({name: move for name, move in moves.items() if not move.fenced})

    def take_over(self) -> None:
        """Take over what the dead left open, and what I held under an older membership."""
        if not self._watched and not self.busy:
            return
        moves = {}
        for name in self._watched | self.busy:
            move = self.advance(name)
            if move is not None and move.fenced:
                moves[name] = move
        self.swap(moves)

    def advance(
        self,
        name: str,
        claim: tuple[int, ...] = (),
        upto: int | None = None,
        skipped: int = 0,
        version: Version | None = None,
        *,
        enqueue: bool = False,
    ) -> Move | None:
        """Return the move that confirms, takes over and claims what can be of an entry; see `Holding.advance`."""
        holding = self.free(name)
        if holding is None or holding.record is None:
            return None
        mine_to_take = bool(holding.record.open) and name in self.share and self._may_take(name)
        return holding.advance(
            self.me,
            claim=claim,
            upto=upto,
            skipped=skipped,
            gone=self._gone if mine_to_take else None,
            at_most_once=self._settings.at_most_once,
            version=version,
            enqueue=enqueue,
        )

    def confirms(self, most: int | None = None) -> dict[str, Move]:
        """Return the moves that record what was sent."""
        sent = (name for name in self.busy if self.holdings[name].sent)
        moves = ((name, holding.confirm()) for name in sent if (holding := self.free(name)) is not None)
        return dict(islice(((name, move) for name, move in moves if move is not None), most))

    def _gone(self, mark: str) -> bool:
        return self._deaths.gone(mark, self.me)

    def _won(self, name: str, holding: Holding, move: Move) -> None:
        if not move.taken and not move.skipped:
            return
        for instant, mark in move.taken.items():
            holding.phases.pop(instant, None)
            # Of what I held under an older membership I know how often I have sent it.
            if mark != HANDED_BACK and node_of(mark) != node_of(self.me):
                holding.attempts[instant] = max(1, holding.attempts.get(instant, 0))
        self.tally.won(name, move, self.me)


def batches(names: Iterable[str], size: int) -> Iterator[list[str]]:
    """Yield the names in lists of at most this size."""
    rest = iter(list(names))
    while batch := list(islice(rest, size)):
        yield batch
