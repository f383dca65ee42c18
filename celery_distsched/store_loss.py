"""What is done when the store has lost data: it comes back empty, without the ledger, or as it was some time ago.

The ledger holds a mark of its own, its *generation*. Whoever finds it gone, or finds another server behind the address
than the one that it was written on, or a record older than the one it remembers, writes a new one; so everybody learns
of it. Then each node

1. puts back what it remembers: of each record the later `last`, its own marks (exactly those that it has yet to send),
   and those of others as it knew them, which whoever knows better takes out; if a write of its own went unanswered, it
   joins anew before, so that this cannot arrive later; what it held when it came back from a long absence it does not
   send before all this is over;
2. claims nothing until every live node has done so, for half a TTL at least and for one at most: by then those in good
   health are members again, also those whom this node has never seen;
3. leaves alone for two TTLs what is neither there nor remembered, and starts it from now after that. Absent never means
   due: there is no burst of old runs.

Who joins an empty store cannot tell whether it is new, or has just lost everything and those who remember are yet to
join it again. So in a ledger that looks new nothing starts for half a TTL: nodes are back, and heard of, sooner.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass

from celery_distsched.clock import Clock
from celery_distsched.drivers.base import Driver, Swap
from celery_distsched.ledger import Ledger, batches
from celery_distsched.node_pool import NodePool, View
from celery_distsched.progress import Progress
from celery_distsched.record import NO_DATE_US
from celery_distsched.schedule_epoch import RESERVED

logger = logging.getLogger(__name__)

_KEY = f"{RESERVED}generation"
#: In one tick: read and write, read what has come of it, and once more where another node was quicker.
_ROUNDS = 3


@dataclass(frozen=True)
class Generation:
    """The ledger's mark of its own."""

    name: str
    #: The server that it was written on, where the store can tell one from another.
    server: str
    #: When it was written, in microseconds of cluster time.
    since_us: int
    #: Whether nobody knew of another then: nothing was lost.
    new: bool
    #: Whether there was another mark when it was written: not all was lost.
    found: bool = False

    def text(self) -> str:
        """Return the mark as it is stored."""
        return json.dumps(self.__dict__, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str | None) -> Generation | None:
        """Read a mark; None where there is none, or something else."""
        try:
            stored = json.loads(text or "")
            found = cls(
                name=str(stored["name"]),
                server=str(stored["server"]),
                since_us=int(stored["since_us"]),
                new=bool(stored["new"]),
                found=bool(stored["found"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
            return None
        return found if 0 <= found.since_us < NO_DATE_US else None


class StoreLoss:
    """Notices that the store has lost data, and puts back what this node remembers. Runs in the scheduler's loop."""

    def __init__(
        self,
        driver: Driver,
        ledger: Ledger,
        pool: NodePool,
        progress: Progress,
        clock: Clock,
        entries: Callable[[], Collection[str]],
    ) -> None:
        self._driver = driver
        self._ledger = ledger
        self._records = ledger.records
        self._pool = pool
        self._progress = progress
        self._clock = clock
        self._entries = entries
        self._known: Generation | None = None
        self._checked_at = float("-inf")
        #: The membership under which that was.
        self._checked_as: str | None = None
        self._to_put_back: set[str] = set()
        #: A membership under which nothing is put back.
        self._outlived: str | None = None
        self._holds_back_until = float("-inf")
        #: Before that, not all who remember need be members again.
        self._holds_back_from = float("-inf")
        self._holds_back = False

    def settled(self, view: View) -> bool:
        """Look after the store's data; False while nothing may be claimed.

        Raises:
            StoreUnavailable, LeaseLost: Go on with the next tick.
        """
        now = self._clock.elapsed()
        if self._holds_back:
            # What shows meanwhile, as by a confirm of what was sent, is the same loss; in the end all is read again.
            self._records.suspicious = ""
        due = now - self._checked_at >= min(self._pool.ttl_s / 10, 0.5)
        # What made me join again may be that another server has taken the store's place.
        if due or self._records.suspicious or self._checked_as != view.me:
            self._check(view)
        if self._outlived is not None and self._outlived == view.me:
            return False
        for _ in range(_ROUNDS):
            if self._to_put_back:
                self._put_back()
        if self._holds_back and (
            now >= self._holds_back_until or (now >= self._holds_back_from and self._all_have_put_back(view))
        ):
            self._holds_back = False
            # While everybody wrote, everything may have changed.
            self._records.unread.update(self._records.share, self._records.doubtful)
            logger.warning("the ledger is whole again, as far as anybody remembers it; going on")
        return not self._holds_back and self._known is not None and self._checked_as == view.me

    def unchanged(self) -> bool:
        """Whether the ledger is the one that I know: only then is new what it does not hold, and right what it does."""
        (text,) = self._driver.read([_KEY])
        stored = Generation.parse(text)
        same = stored is not None and self._known is not None and stored.name == self._known.name
        if not same:
            self._checked_at = float("-inf")
        return same

    # Notice

    def _check(self, view: View) -> None:
        (text,) = self._driver.read([_KEY])
        self._progress.at = self._clock.elapsed()
        stored, server = Generation.parse(text), self._driver.incarnation
        known = self._known is not None and stored is not None and stored.name == self._known.name
        young = stored is not None and stored.new and self._clock.elapsed() < self._ledger.anchor_from
        if known and young and self._others_know_another(view):
            self._records.suspicious = "it looked new, and a node that has joined remembers another"
        signs = self._records.suspicious or ("its mark is gone" if stored is None else "its mark is not the one it had")
        # An older mark than mine: the store went back to it, which shows nothing to those who know no other. They are
        # told by a new one.
        older = self._known is not None and stored is not None and stored.since_us < self._known.since_us
        # Somebody came to the empty store before me, who knew nothing of what was lost. What I put back must not be
        # taken for part of a new ledger by those who join meanwhile.
        mistaken = self._known is not None and stored is not None and stored.new and not known
        if stored is None or stored.server != server or older or mistaken or (known and self._records.suspicious):
            new = self._known is None and stored is None and not self._others_know_another(view)
            if not self._pool.trusted():
                # Reading has taken its time.
                return
            since_us = max(self._now_us(), 0 if self._known is None else self._known.since_us + 1)
            stored = Generation(secrets.token_hex(4), server, since_us, new, stored is not None)
            (answer,) = self._driver.swap([Swap(_KEY, text, stored.text())], view.me)
            if not answer.won:
                return
            known = False
        self._records.suspicious = ""
        self._checked_at, self._checked_as = self._clock.elapsed(), view.me
        if not known:
            self._take_on(stored, signs)

    def _take_on(self, generation: Generation, signs: str) -> None:
        before, self._known = self._known, generation
        remembers = before is not None
        # Whoever is behind in time must not wait for the hour of the mark to come: nothing is younger than now.
        age_s = max(0.0, (self._now_us() - generation.since_us) / 1e6)
        now, ttl_s = self._clock.elapsed(), self._pool.view.longest_ttl_s
        hold_s, wait_s = (0.0, ttl_s / 2) if generation.new and not remembers else (ttl_s, 2 * ttl_s)
        if before is not None:
            self._say(signs, started_anew=generation.found and generation.server != before.server)
            self._to_put_back = {*self._entries(), *self._records.known()}
            age_s = 0.0
            if self._records.unheard:
                # It may find what it expects once that is put back: a claim of mine that I take for lost. After I have
                # left this membership its fence is void.
                self._outlived = self._progress.outlived = self._records.me
        else:
            self._progress.generation = generation.name
        self._holds_back_until, self._holds_back_from = now + hold_s - age_s, now + hold_s / 2 - age_s
        self._holds_back = now < self._holds_back_until
        self._ledger.anchor_from = now + wait_s - age_s

    def _say(self, signs: str, *, started_anew: bool) -> None:
        level, what = logging.ERROR, f"the store has lost data ({self._driver.url.masked}; {signs})"
        if started_anew:
            # As after each planned restart, which may have cost nothing.
            level = logging.WARNING
            what = f"the store was started anew, or another server is in its place ({self._driver.url.masked})"
        logger.log(
            level,
            "%s: putting back what it lacks and this node remembers; nothing is claimed until all nodes have, at most"
            " for %g s",
            what,
            self._pool.view.longest_ttl_s,
        )

    def _others_know_another(self, view: View) -> bool:
        mine = "" if self._known is None else self._known.name
        others = (info.generation for membership, info in view.alive.items() if membership != view.me)
        return any(generation not in ("", mine) for generation in others)

    # Put back

    def _put_back(self) -> None:
        for names in batches(self._to_put_back, self._driver.max_batch):
            answered = [name for name in names if self._records.answered(name)]
            texts = self._driver.read(answered)
            self._progress.at = self._clock.elapsed()
            moves = {}
            for name, text in zip(answered, texts, strict=True):
                move = self._records.restoring(name, text)
                if move is None:
                    self._to_put_back.discard(name)
                else:
                    moves[name] = move
            if moves and not self._pool.trusted():
                return
            # Another node may have put back less in the meantime: an entry is done when the store shows all of it.
            self._ledger.swap(moves)
        self._records.suspicious = ""
        if not self._to_put_back and self._known is not None:
            self._progress.generation = self._known.name

    def _all_have_put_back(self, view: View) -> bool:
        if self._to_put_back or self._known is None or view.missing:
            return False
        others = (info for membership, info in view.alive.items() if membership != view.me)
        return all(info.generation == self._known.name for info in others)

    def _now_us(self) -> int:
        return self._pool.now_us() or 0
