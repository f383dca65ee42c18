"""A store of one entry that knows all that happened, and nodes that share it without a heartbeat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from celery_distsched.clock import Clock
from celery_distsched.drivers import Answer, Driver, Member, StoreUrl, Swap
from celery_distsched.errors import LeaseLost, StoreUnavailable
from celery_distsched.farewell import hand_back
from celery_distsched.ledger import Ledger
from celery_distsched.node_pool import NodePool
from celery_distsched.outbox import Outbox
from celery_distsched.outcome import Outcome
from celery_distsched.progress import Progress
from celery_distsched.record import HANDED_BACK, Record
from celery_distsched.records import Records
from celery_distsched.settings import Settings
from tests.one_by_one import OneByOne

if TYPE_CHECKING:
    from tests.test_holding_machine import Cluster

NAME = "the entry"
TTL_S = 1.0


class StandingClock(Clock):
    """Moves by hand."""

    now = 0.0

    def elapsed(self) -> float:
        return self.now


class Store:
    """One record, the memberships, and what is known of every instant, which no node knows."""

    def __init__(self) -> None:
        self.record: Record | None = None
        self.members: set[str] = set()
        #: Swaps that their senders have given up, and that will still arrive.
        self.late: list[tuple[Swap, str | None]] = []
        self.claimed: set[int] = set()
        #: Instants closed by a swap whose sender was not told.
        self.untold: set[int] = set()
        self.takeovers: Counter[int] = Counter()

    def write(self, swap: Swap, fence: str | None, *, told: bool = True) -> Answer:
        if fence is not None and fence not in self.members:
            raise LeaseLost(fence)
        before = self.record
        found = None if before is None else before.text()
        if found != swap.expected:
            return Answer(False, found)
        after = self.record = Record.parse(swap.new)
        opened = dict(before.open) if before else {}
        assert before is None or after.last >= before.last, "last has fallen"
        if not told:
            self.untold |= opened.keys() - after.open.keys()
        for at, mark in after.open.items():
            if mark not in (opened.get(at), HANDED_BACK):
                assert mark in self.members, f"{mark} has won {at} and is no member"
            if at not in opened:
                assert at not in self.claimed, f"{at} was claimed twice"
                self.claimed.add(at)
            elif HANDED_BACK not in (mark, opened[at]) and mark != opened[at]:
                self.takeovers[at] += 1
        return Answer(True, swap.new)


class Way(Driver):
    """One node's way to the store; `fate` is what becomes of its next calls, or of its swaps only."""

    fate = "answered"

    def __init__(self, store: Store) -> None:
        super().__init__(StoreUrl("test"), namespace="test", ttl_s=TTL_S, timeout_s=1.0)
        self.store = store
        self.trust_ends: Callable[[], None] = lambda: None

    def read(self, keys: Sequence[str]) -> list[str | None]:
        if self.fate == "cut off":
            raise StoreUnavailable(self.fate)
        record = self.store.record
        return [None if record is None else record.text() for _ in keys]

    def swap(self, swaps: Sequence[Swap], fence: str | None = None) -> list[Answer]:
        if not swaps:
            return []
        (swap,) = swaps
        if self.fate == "late":
            self.store.late.append((swap, fence))
        elif self.fate == "answer lost":
            with suppress(LeaseLost):
                self.store.write(swap, fence, told=False)
        elif self.fate == "answered too late":
            answer = self.store.write(swap, fence)
            self.trust_ends()
            return [answer]
        elif self.fate == "answered":
            return [self.store.write(swap, fence)]
        raise StoreUnavailable(self.fate)

    def join(self, membership: str, info: str) -> None: ...
    def renew(self, membership: str, info: str) -> None: ...
    def members(self) -> dict[str, Member]:
        return {}

    def remove(self, membership: str, pulse: str | None = None) -> bool:
        return True

    def close(self) -> None: ...


class Died(BaseException):
    """The process ends in mid-step."""


class Node:
    """A beat without a heartbeat: that it is a member, is trusted, or owns the entry, is told to it."""

    def __init__(self, name: str, cluster: Cluster) -> None:
        self.name, self.cluster, self.clock = name, cluster, cluster.clock
        self.joins, self.me, self.trusted = 0, "", False
        self.way, self.pool, progress = Way(cluster.store), NodePool(name, TTL_S, cluster.clock), Progress()
        self.way.trust_ends = self.lose_trust
        chosen = Settings(StoreUrl("test"), node_ttl=TTL_S, delivery=cluster.delivery)
        self.at_most_once = chosen.at_most_once
        self.records = Records(self.pool, progress, self.clock, chosen)
        self.ledger = Ledger(
            self.way,
            self.records,
            progress,
            self.clock,
            chosen,
            anchor=lambda _: Record(0),
            trusted=lambda: self.trusted,
        )
        self.outbox = Outbox(
            self.records,
            progress,
            self.clock,
            chosen,
            send=self._send,
            probe=lambda: True,
            may_send=lambda: self.trusted,
            fast_way=cast(Any, OneByOne()),
        )
        self.fate: Fate = ACCEPTED

    def join(self) -> None:
        self.joins += 1
        self.me, self.trusted = f"{self.name}#{self.joins}", True
        self.cluster.store.members.add(self.me)
        self.cluster.alive.add(self.me)
        self.records.rejoined(self.me)

    def lose_trust(self) -> None:
        self.trusted = False

    def own(self, mine: bool) -> None:
        if mine and not self.records.share:
            self.records.own({NAME}, gained={NAME}, lost=())
        elif not mine and self.records.share:
            self.records.own((), gained=(), lost={NAME})

    def tick(self, fate: Fate, claims: int) -> None:
        """Do what a tick does, however far it comes."""
        self.fate, ledger, records = fate, self.ledger, self.records
        with suppress(StoreUnavailable, LeaseLost):
            ledger.repeat()
            ledger.read(records.unread)
            ledger.watch()
            ledger.take_over()
            self.outbox.reopen()
            self.outbox.send(records.busy, lambda: None)
            record = records.holdings[NAME].record if records.share and records.free(NAME) else None
            if claims and record is not None:
                move = records.advance(NAME, claim=tuple(range(record.last + 1, record.last + 1 + claims)))
                assert move is not None
                ledger.swap({NAME: move})
                self.outbox.send([NAME], lambda: None)
            ledger.swap(records.confirms())

    def hand_back(self) -> None:
        with suppress(StoreUnavailable):
            hand_back(self.records, self.way, lambda name: False, at_most_once=self.at_most_once)

    def _send(self, name: str, instant: int, attempt: int) -> Outcome:
        if self.fate.leaves:
            self.cluster.leaving(self)
        if self.fate.left:
            self.cluster.sent(self, instant, attempt)
        if self.fate.outcome in (Outcome.UNKNOWN, Outcome.REJECTED):
            self.cluster.doubtful.add(instant)
        if self.fate.outcome is None:
            raise Died
        return self.fate.outcome


class Fate(NamedTuple):
    """What becomes of a message."""

    #: None: the process ends before it knows.
    outcome: Outcome | None
    #: Whether the message has left.
    left: bool
    #: Whether the node says goodbye first, on the stack of the tick.
    leaves: bool = False


ACCEPTED = Fate(Outcome.ACCEPTED, left=True)
