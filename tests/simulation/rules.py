"""The protocol without one of its rules at a time: each rule is there since a promise is broken without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import celery_distsched.agenda as agenda
from celery_distsched.cluster_time import ClusterTime
from celery_distsched.deaths import Deaths
from celery_distsched.dispatch import Dispatch
from celery_distsched.errors import StoreUnavailable
from celery_distsched.heartbeat import Heartbeat
from celery_distsched.holding import Holding, Phase
from celery_distsched.ledger import Ledger
from celery_distsched.node_pool import NodePool
from celery_distsched.outbox import Outbox
from celery_distsched.record import HANDED_BACK, node_of
from celery_distsched.records import Records
from celery_distsched.settings import Settings
from tests.simulation.store import SimulatedDriver, Store

Patch = Callable[[], Any]
RULES: dict[str, Patch] = {}


def _rule(name: str) -> Callable[[Patch], Patch]:
    def note(make: Patch) -> Patch:
        RULES[name] = make
        return make

    return note


@contextmanager
def without(rule: str | None) -> Iterator[None]:
    """Switch a rule off inside; None: none."""
    if rule is None:
        yield
        return
    with RULES[rule]():
        yield


# Trust


@_rule("trust is counted from before the round trip")
def _() -> Any:
    renewed = NodePool.renewed

    def late(self: NodePool, me: str, asked_at: float, store_us: int | None) -> None:
        renewed(self, me, self._clock.elapsed(), store_us)

    return patch.object(NodePool, "renewed", late)


@_rule("trust ends a margin before the TTL")
def _() -> Any:
    init = NodePool.__init__

    def bold(self: NodePool, *args: Any) -> None:
        init(self, *args)
        self.margin_s = 0.0

    return patch.object(NodePool, "__init__", bold)


@_rule("trust is looked at before each message")
def _() -> Any:
    init = Outbox.__init__

    def bold(self: Outbox, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **{**kwargs, "may_send": lambda: True})

    return patch.object(Outbox, "__init__", bold)


# Who is dead


@_rule("absence is death only after a TTL")
def _() -> Any:
    def hasty(self: Deaths, mark: str, me: str) -> bool:
        return mark not in self._pool.view.alive and node_of(mark) != node_of(me)

    return patch.object(Deaths, "gone", hasty)


@_rule("a silent node is dead by the longer of its TTL and mine")
def _() -> Any:
    return patch.object(NodePool, "_patience_s", lambda self, pulse: self.ttl_s)


@_rule("the dead are buried before they are robbed")
def _() -> Any:
    publish = NodePool._publish

    def early(self: NodePool, alive: Any, dead: Any, buried: Any, *rest: Any) -> Any:
        return publish(self, alive, dead, dead, *rest)

    return patch.object(NodePool, "_publish", early)


@_rule("who was away gives everybody a TTL to be seen again")
def _() -> Any:
    return patch.object(NodePool, "_give_time", lambda self, now: None)


@_rule("a failed read is no empty answer")
def _() -> Any:
    members = SimulatedDriver.members

    def nobody(self: SimulatedDriver) -> Any:
        try:
            return members(self)
        except StoreUnavailable:
            return {}

    return patch.object(SimulatedDriver, "members", nobody)


@_rule("the store checks the fence in the same step")
def _() -> Any:
    return patch.object(Store, "check", lambda self, fence, name: None)


# The ledger


@_rule("an unanswered swap is repeated until it is answered")
def _() -> Any:
    failing = Ledger._failing

    @contextmanager
    def forgetful(self: Ledger, batch: Any, fence: str | None) -> Iterator[None]:
        try:
            with failing(self, batch, fence):
                yield
        except StoreUnavailable:
            self.records.void(batch)
            raise

    return patch.object(Ledger, "_failing", forgetful)


@_rule("a mark names the membership, not only the node")
def _() -> Any:
    join = Heartbeat._join

    def same(self: Heartbeat) -> str | None:
        self._joins = 0
        return join(self)

    return patch.object(Heartbeat, "_join", same)


@_rule("whoever owns an entry watches the marks of others")
def _() -> Any:
    know = Records._know

    def blind(self: Records, name: str, record: Any, **how: Any) -> None:
        know(self, name, record)
        self.watched.discard(name)

    return patch.object(Records, "_know", blind)


@_rule("a confirm drops the mark of what was sent, whoever holds it")
def _() -> Any:
    instants, learn = Holding.instants, Holding.learn
    #: By the holding's id: it has no room for more. The holding is kept, so that its id stays its own.
    owners: dict[int, tuple[Holding, str | None]] = {}

    def own(self: Holding, phase: Phase) -> tuple[int, ...]:
        found = instants(self, phase)
        if phase is not Phase.DONE or self.record is None or id(self) not in owners:
            return found
        mine = owners[id(self)][1]
        return tuple(at for at in found if self.record.open.get(at, mine) == mine)

    def learns(self: Holding, record: Any, me: str | None) -> Sequence[int]:
        owners[id(self)] = self, me
        taken = learn(self, record, me)
        for at, mark in record.open.items():
            if self.phases.get(at) is Phase.DONE and mark != me:
                del self.phases[at]
        return taken

    return patch.multiple(Holding, instants=own, learn=learns)


@_rule("at_most_once: what may have left is not handed back")
def _() -> Any:
    hand_back = Holding.hand_back

    def generous(self: Holding, me: str, *, at_most_once: bool = False) -> Any:
        for at in self.instants(Phase.SENDING):
            self.phases[at] = Phase.CLAIMED
        return hand_back(self, me, at_most_once=at_most_once)

    return patch.object(Holding, "hand_back", generous)


@_rule("what was handed back is sent by the next owner")
def _() -> Any:
    def keep(self: Holding, me: str, *, at_most_once: bool = False) -> Any:
        move = hand_back(self, me, at_most_once=at_most_once)
        if move is None or HANDED_BACK not in move.new.open.values():
            return move
        return None

    hand_back = Holding.hand_back
    return patch.object(Holding, "hand_back", keep)


# After a loss


@_rule("a write that may arrive late is made void before anything is put back")
def _() -> Any:
    return patch.object(Records, "unheard", property(lambda self: False, lambda self, value: None), create=True)


# Time, and what is due


@_rule("a clock that jumps is not followed at once")
def _() -> Any:
    def follow(self: ClusterTime, target: int, jump_us: int, agreed: bool, now: float) -> None:
        self.offset_us = target

    return patch.object(ClusterTime, "_consider", follow)


@_rule("a heartbeat of unknown age does not say what time it is")
def _() -> Any:
    return patch.object(ClusterTime, "found", ClusterTime.heard)


@_rule("what is due during a hand-over is no misfire")
def _() -> Any:
    # The invariants have read the setting by then.
    init = Dispatch.__init__

    class Hurried(Settings):
        hand_over_s = 1.0

    def hurried(self: Any, driver: Any, pool: Any, progress: Any, clock: Any, settings: Any, **kwargs: Any) -> None:
        init(self, driver, pool, progress, clock, Hurried(**settings.__dict__), **kwargs)

    return patch.object(Dispatch, "__init__", hurried)


@_rule("of two versions of an entry the newest runs")
def _() -> Any:
    return patch.object(agenda, "may_claim", lambda version, mine, live: True)
