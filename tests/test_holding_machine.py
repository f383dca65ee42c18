"""Any number of nodes share one entry while everything around them goes wrong, and nothing is lost or doubled."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from celery_distsched.errors import LeaseLost
from celery_distsched.info import Info
from celery_distsched.node_pool import View
from celery_distsched.outcome import Outcome
from tests.holding_nodes import ACCEPTED, TTL_S, Died, Fate, Node, StandingClock, Store


@pytest.fixture(autouse=True)
def _without_the_log() -> Iterator[None]:
    """Of thousands of examples, each with its losses, nobody reads it."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


FATES = [
    *(ACCEPTED, ACCEPTED, Fate(Outcome.UNKNOWN, left=True), Fate(Outcome.UNKNOWN, left=False)),
    *(Fate(Outcome.REFUSED, left=False), Fate(Outcome.REJECTED, left=False)),
    *(Fate(None, left=True), Fate(None, left=False)),
    *(Fate(None, left=True, leaves=True), Fate(None, left=False, leaves=True)),
]
nodes = st.integers(0, 2)
messages = st.sampled_from(FATES)
calls = st.sampled_from(["answered", "answered", "answered", "answered too late", "answer lost", "cut off", "late"])


class Cluster(RuleBasedStateMachine):
    """Three nodes; each may believe at any time that the entry is its own."""

    delivery = "at_least_once"

    def __init__(self) -> None:
        super().__init__()
        self.store, self.clock = Store(), StandingClock()
        #: Memberships that nobody takes for dead, and those that everybody does.
        self.alive: set[str] = set()
        self.dead: set[str] = set()
        self.started = 0
        self.ended: list[Node] = []
        #: Instant → how often its message has left.
        self.left: Counter[int] = Counter()
        #: Instant → how often there was a reason to send it again.
        self.reasons: Counter[int] = Counter()
        #: Instants that the broker did not answer, or whose message it would not take.
        self.doubtful: set[int] = set()
        #: Instants whose next sender cannot know that they may have left.
        self.unknowing: set[int] = set()

    @initialize()
    def start(self) -> None:
        self.nodes = [self.new_node() for _ in range(3)]
        self.nodes[0].own(True)

    def new_node(self) -> Node:
        self.started += 1
        node = Node(f"node{self.started}", self)
        node.join()
        return node

    # What happens

    @rule(at=nodes, call=calls, fate=messages, claims=st.integers(0, 3))
    def tick(self, at: int, call: str, fate: Fate, claims: int) -> None:
        node = self.nodes[at]
        self.clock.now += TTL_S
        self.look()
        node.way.fate = call
        if node.trusted:
            try:
                node.tick(fate, claims)
            except Died:
                self.replace(node)

    @rule(at=nodes, mine=st.booleans())
    def the_ring_says(self, at: int, mine: bool) -> None:
        self.nodes[at].own(mine)

    @rule(at=nodes)
    def loses_its_membership_and_does_not_know(self, at: int) -> None:
        self.store.members.discard(self.nodes[at].me)

    @rule(at=nodes)
    def is_cut_off_for_a_ttl(self, at: int) -> None:
        self.nodes[at].trusted = False

    @rule()
    def the_silent_are_buried(self) -> None:
        silent = self.alive - {node.me for node in self.nodes if node.trusted}
        self.store.members -= silent
        self.alive -= silent
        self.dead |= silent

    @rule(at=nodes)
    def is_back(self, at: int) -> None:
        node = self.nodes[at]
        if node.me in self.store.members:
            node.trusted = True
        else:
            self.alive.discard(node.me)
            self.dead.add(node.me)
            node.join()

    @rule(at=nodes)
    def crashes(self, at: int) -> None:
        self.replace(self.nodes[at])

    @rule(at=nodes, call=calls)
    def leaves(self, at: int, call: str) -> None:
        node = self.nodes[at]
        node.way.fate = call
        self.leaving(node)
        self.replace(node)

    @rule(first=st.booleans())
    def a_late_swap_arrives(self, first: bool) -> None:
        if self.store.late:
            swap, fence = self.store.late.pop(0 if first else -1)
            with suppress(LeaseLost):
                self.store.write(swap, fence, told=False)

    # How

    def look(self) -> None:
        info = Info("host", 0, "digest", "cluster", active=True, wall_us=0)
        for node in self.nodes:
            node.pool.view = View(
                me=node.me,
                alive=dict.fromkeys(self.alive, info),
                dead=frozenset(self.dead),
                buried=frozenset(self.dead),
                polled_at=self.clock.now,
                watching_since=0.0,
                longest_ttl_s=TTL_S,
            )

    def leaving(self, node: Node) -> None:
        open_marks = self.store.record.open if self.store.record else {}
        self.unknowing.update(at for at, mark in open_marks.items() if mark == node.me)
        node.hand_back()
        if node.way.fate == "answered":
            self.store.members.discard(node.me)
            self.alive.discard(node.me)

    def replace(self, node: Node) -> None:
        node.trusted = False
        self.ended.append(node)
        self.nodes[self.nodes.index(node)] = self.new_node()

    def sent(self, node: Node, at: int, attempt: int) -> None:
        assert self.store.record is not None
        if not node.fate.leaves:
            assert self.store.record.open.get(at) == node.me, "sent what is not mine"
            assert node.trusted, "sent without trust"
        assert not (self.left[at] and self.delivery == "at_most_once"), f"{at} was sent twice"
        if self.left[at] and at not in self.unknowing:
            assert attempt > 1, f"{at} was sent again as if for the first time"
        if at not in self.doubtful and not self.store.takeovers[at]:
            assert attempt == 1, f"{at} is said to be sent again"
        assert self.left[at] <= self.reasons[at] + self.store.takeovers[at], f"{at} was sent again without a reason"
        self.left[at] += 1
        self.reasons[at] += node.fate.outcome is Outcome.UNKNOWN or node.fate.leaves

    # What holds

    @property
    def reported(self) -> int:
        """How many runs were said to be possibly lost."""
        return sum(node.records.tally.counts["possibly lost"] for node in [*self.ended, *self.nodes])

    @invariant()
    def nothing_is_lost(self) -> None:
        still_open = self.store.record.open if self.store.record else {}
        missing = {at for at in self.store.claimed if at not in still_open and not self.left[at]}
        if self.delivery == "at_most_once":
            # Who was not told asks again, and may be dead by then.
            missing -= self.store.untold
        assert len(missing) <= self.reported

    def teardown(self) -> None:
        """In good weather, everything that is open is sent and closed by whoever owns the entry."""
        for at, node in enumerate(self.nodes):
            # Who gains an entry reads its record; who had it all along would learn of a mark by its own next claim.
            node.own(False)
            node.own(at == 0)
            self.is_back(at)
        self.the_silent_are_buried()
        for _ in range(20):
            for at in range(3):
                self.is_back(at)
                self.tick(at, "answered", ACCEPTED, claims=0)
        assert self.store.record is not None
        assert not self.store.record.open
        self.nothing_is_lost()


class ClusterThatSendsAtMostOnce(Cluster):
    delivery = "at_most_once"


_LONG = settings(max_examples=300, stateful_step_count=40, deadline=None, report_multiple_bugs=False)
TestAtLeastOnce = Cluster.TestCase
TestAtMostOnce = ClusterThatSendsAtMostOnce.TestCase
TestAtLeastOnce.settings = TestAtMostOnce.settings = _LONG


def three_nodes(kind: type[Cluster], fate: Fate) -> Cluster:
    """The first claims an instant, the broker's answer is this, and it falls silent; the others both take the entry."""
    cluster = kind()
    cluster.start()
    cluster.tick(0, "answered", ACCEPTED, claims=0)
    cluster.tick(0, "answered", fate, claims=1)
    cluster.is_cut_off_for_a_ttl(0)
    cluster.the_silent_are_buried()
    for at in (1, 2):
        cluster.the_ring_says(at, True)
    # The second's swap is written, and it is not told; then the third writes.
    cluster.tick(1, "answer lost", ACCEPTED, claims=0)
    cluster.tick(2, "answered", ACCEPTED, claims=1)
    cluster.tick(1, "answered", ACCEPTED, claims=0)
    return cluster


def test_a_takeover_is_a_resend_though_its_answer_was_lost_and_the_record_has_changed() -> None:
    cluster = three_nodes(Cluster, Fate(Outcome.UNKNOWN, left=True))
    assert cluster.left == {1: 2, 2: 1}
    cluster.teardown()


def test_what_is_dropped_is_counted_though_the_answer_was_lost_and_the_record_has_changed() -> None:
    cluster = three_nodes(ClusterThatSendsAtMostOnce, Fate(Outcome.REFUSED, left=False))
    assert cluster.left == {2: 1}
    assert cluster.reported == 1
    cluster.teardown()


def test_what_is_dropped_by_a_farewell_is_counted_though_its_answer_is_lost() -> None:
    cluster = ClusterThatSendsAtMostOnce()
    cluster.start()
    cluster.tick(0, "answered", ACCEPTED, claims=0)
    cluster.tick(0, "answered", Fate(Outcome.REFUSED, left=False), claims=1)
    cluster.tick(0, "answer lost", Fate(None, left=False, leaves=True), claims=0)
    assert cluster.reported == 1
    cluster.teardown()


def test_a_message_that_was_refused_is_not_said_to_be_sent_again() -> None:
    cluster = Cluster()
    cluster.start()
    cluster.tick(0, "answered", ACCEPTED, claims=0)
    for claims in (1, 0, 0):
        cluster.tick(0, "answered", Fate(Outcome.REFUSED, left=False), claims)
    cluster.teardown()
    assert cluster.left == {1: 1}
