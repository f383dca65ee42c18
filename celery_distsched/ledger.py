"""This node's dealings with the ledger: records are read, swaps are tried and repeated, and marks of others watched.

Runs in the scheduler's loop.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from operator import itemgetter

from celery_distsched.clock import Clock
from celery_distsched.drivers.base import Answer, Claim, Driver, Push, Pushing, PushRefused, Swap
from celery_distsched.errors import LeaseLost
from celery_distsched.holding import Move
from celery_distsched.progress import Progress
from celery_distsched.record import Record
from celery_distsched.records import Records
from celery_distsched.settings import Settings

ClaimAndPush = Callable[[Sequence[Claim], str], Pushing]

_text_of = itemgetter(Push._fields.index("text"))
#: Seconds between two attempts at a swap that was not answered.
_REPEAT_S = 0.1


class Ledger:
    """Keeps the records that this node knows in step with the store."""

    def __init__(
        self,
        driver: Driver,
        records: Records,
        progress: Progress,
        clock: Clock,
        settings: Settings,
        *,
        anchor: Callable[[str], Record],
        learnt: Callable[[Sequence[str]], None] = lambda names: None,
        may_take: Callable[[str], bool] = lambda name: True,
        trusted: Callable[[], bool] = lambda: True,
        may_begin: Callable[[], bool] = lambda: True,
    ) -> None:
        """Keep what is needed.

        Args:
            driver: The store.
            records: What is known of it.
            progress: Told after each answer of the store.
            clock: For the pace of repeating and watching.
            settings: The user's.
            anchor: Makes the first record of an entry that there is none of.
            learnt: Called with the names of entries of the share whose records are now known, or have changed.
            may_take: Whether what the dead left open of an entry is for this node to take over.
            trusted: Whether this node may act as the member whose marks it makes; asked just before each write.
            may_begin: Asked before first records are written, after it was read that there are none.
        """
        self.records = records
        #: Until then, on `Clock.elapsed`, what is not in the store is not taken for new.
        self.anchor_from = float("-inf")
        self._driver = driver
        self._progress = progress
        self._clock = clock
        self._watch_s = min(settings.node_ttl / 10, 0.5)
        self._anchor = anchor
        self._learnt = learnt
        self._may_take = may_take
        self._trusted = trusted
        self._may_begin = may_begin
        self._watched_at = float("-inf")
        self._repeated_at = float("-inf")

    # Read

    def read(self, names: Iterable[str]) -> None:
        """Read these records, and create those that there are none of: the one anchor of each entry."""
        records = self.records
        # In order, since a store keeps neighbours together: of SQLite's pages a batch of new records changes a few, and
        # not nearly all.
        answered = sorted(name for name in names if records.answered(name))
        for batch in batches(answered, self._driver.max_batch):
            texts = self._driver.read(batch)
            self._progress.at = self._clock.elapsed()
            anchors = {}
            for name, text in zip(batch, texts, strict=True):
                if text is not None:
                    records.learn(name, text)
                elif records.memory(name) is not None:
                    records.suspicious = f"entry {name!r} has no record any more"
                elif name not in records.share:
                    records.forget(name)
                elif self._clock.elapsed() < self.anchor_from:
                    records.unread.discard(name)
                    records.absent.add(name)
                else:
                    anchors[name] = Move(None, self._anchor(name), fenced=True)
            self._tell()
            if anchors and self._may_begin():
                self.swap(anchors)
        records.slim()

    def watch(self) -> None:
        """Read again, at each poll, the records in which somebody else's mark is open: no mark is without a watcher."""
        now, records = self._clock.elapsed(), self.records
        if records.absent and now >= self.anchor_from:
            records.unread.update(records.absent)
            records.absent.clear()
        if now - self._watched_at >= self._watch_s:
            self._watched_at = now
            self.read(records.watched)

    def _tell(self) -> None:
        news, self.records.news = self.records.news, []
        self._learnt(news)

    # Write

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
        me = self.records.me
        fence = me if any(move.fenced for move in batch.values()) else None
        self.records.tally.dropping(batch, me)
        repeated = self.records.begun(batch)
        with self._failing(batch, fence):
            waiting = self._driver.swapping([Swap(name, m.expected, m.new.text()) for name, m in batch.items()], fence)
        return partial(self._land, batch, repeated, fence, waiting)

    def _land(
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
            if answer.won:
                # A mere confirm changes nothing of when the entry falls due.
                self.records.won(name, move, news=move.fenced or name in repeated)
            else:
                self.records.lost(name, answer.record, move if name in repeated else None)
        self._tell()

    @contextmanager
    def _failing(self, batch: Collection[str], fence: str | None) -> Iterator[None]:
        try:
            yield
        except LeaseLost:
            self.records.void(batch)
            raise
        except Exception:
            # Whatever it is, there was no answer.
            self.records.unheard |= fence is not None
            raise

    def repeat(self) -> None:
        """Repeat, unchanged, what was not answered."""
        now, records = self._clock.elapsed(), self.records
        if not records.busy or now - self._repeated_at < _REPEAT_S:
            return
        self._repeated_at = now
        moves = {name: move for name in records.busy if (move := records.holdings[name].unanswered) is not None}
        self.swap({name: move for name, move in moves.items() if move.fenced})
        self.swap({name: move for name, move in moves.items() if not move.fenced})

    def take_over(self) -> None:
        """Take over what the dead left open, and what I held under an older membership."""
        records = self.records
        if not records.watched and not records.busy:
            return
        moves = {}
        for name in records.watched | records.busy:
            move = records.advance(name, self._may_take)
            if move is not None and move.fenced:
                moves[name] = move
        self.swap(moves)

    # Claim and push in one step

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
        self.records.unread.update(batch)
        claims = [
            Claim(name, move.expected, move.new.text(), pushes[0].key, tuple(map(_text_of, pushes)))
            for name, (move, pushes) in batch.items()
        ]
        pushing = claim_and_push(claims, self.records.me)
        return lambda: self._enqueued(batch, pushing())

    def _enqueued(
        self, batch: Mapping[str, tuple[Move, Sequence[Push]]], answers: Sequence[Answer | PushRefused]
    ) -> dict[str, str]:
        records, refused = self.records, {}
        self._progress.at = self._clock.elapsed()
        for (name, (move, pushes)), answer in zip(batch.items(), answers, strict=True):
            if isinstance(answer, PushRefused):
                refused[name] = answer.error
                records.left_alone(name)
            elif answer.won:
                records.tally.counts["accepted"] += len(pushes)
                records.won(name, move)
            else:
                records.lost(name, answer.record)
        self._tell()
        return refused


def batches(names: Iterable[str], size: int) -> Iterator[list[str]]:
    """Yield the names in lists of at most this size."""
    rest = iter(list(names))
    while batch := list(islice(rest, size)):
        yield batch
