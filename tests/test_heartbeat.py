from __future__ import annotations

import logging
from collections.abc import Callable
from uuid import uuid4

import pytest

from celery_distsched.clock import Clock, microseconds
from celery_distsched.deaths import Deaths
from celery_distsched.drivers import Member, StoreUrl
from celery_distsched.drivers.memory import MemoryDriver
from celery_distsched.errors import ConfigError, LeaseLost, StoreUnavailable
from celery_distsched.heartbeat import Heartbeat
from celery_distsched.info import Info
from celery_distsched.node_pool import NodePool
from celery_distsched.progress import Progress
from celery_distsched.schedule_epoch import Schedule

TTL_S = 5.0
#: Trust ends so many seconds before the store could call the node dead.
MARGIN_S = 0.5
EPOCH_S = 1_800_000_000.0


class VirtualClock(Clock):
    """Moves by hand."""

    now = 1000.0

    def elapsed(self) -> float:
        return self.now

    def wall(self) -> float:
        return EPOCH_S + self.now


class SlowStore(MemoryDriver):
    """A store each of whose answers takes so many seconds, if one comes at all."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(StoreUrl.parse("memory://slow"), namespace=uuid4().hex, ttl_s=TTL_S, timeout_s=1.0)
        self.clock, self.slow_s, self.answers = clock, 0.0, True
        #: When each join and renewal was sent.
        self.sent_at: list[float] = []

    def join(self, membership: str, info: str) -> int:
        return self._slowly(super().join, membership, info)

    def renew(self, membership: str, info: str) -> int:
        return self._slowly(super().renew, membership, info)

    def _slowly(self, call: Callable[[str, str], int], membership: str, info: str) -> int:
        self.sent_at.append(self.clock.now)
        self.clock.now += self.slow_s
        if not self.answers:
            raise StoreUnavailable("no answer")
        call(membership, info)
        return microseconds(EPOCH_S + self.clock.now)


class Node:
    """A node whose heart beats when it is told to."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.store = SlowStore(self.clock)
        self.pool = NodePool("me", TTL_S, self.clock)
        self.progress = Progress(at=self.clock.now)
        self.heart = Heartbeat(self.store, self.pool, self.clock, self.progress, host="here", cluster="ours")
        self.heart.schedule = Schedule("same")

    @property
    def trusted_for_s(self) -> float:
        """Seconds for which the node trusts its view, from the start of the last join or renewal."""
        return self.pool.view.trusted_until - self.store.sent_at[-1]

    def beat(self, seconds: float, *, loops: bool = True) -> None:
        """Let time pass; `loops`: the scheduler's loop goes round."""
        until = self.clock.now + seconds
        while self.clock.now < until:
            if loops:
                self.loop()
            self.clock.now = min(self.clock.now + max(self.heart.step(), 0.01), until)

    def loop(self) -> None:
        self.progress.at = self.clock.now
        self.progress.ticks += 1


@pytest.fixture
def node() -> Node:
    node = Node()
    node.loop()
    node.heart.step()
    assert node.pool.view.me == "me#1"
    return node


def other(cluster: str = "ours") -> str:
    return Info("there", 0, "same", cluster, active=True, wall_us=0).text()


def test_nodes_with_one_schedule_agree_on_its_newest_epoch(node: Node) -> None:
    """The register was lost with the store and counts from one again, and somebody remembers its epoch of before."""
    node.beat(1)
    assert node.pool.view.schedule is not None
    assert node.pool.view.schedule.epoch == 1
    for name, digest, epoch in (("knows#1", "same", 2), ("behind#1", "same", 1), ("newer#1", "changed", 3)):
        node.store.join(name, Info("there", 0, digest, "ours", active=True, wall_us=0, epoch=epoch).text())
    node.beat(2)
    assert node.pool.view.schedule.epoch == 2
    info = Info.parse(node.store.members()["me#1"].info)
    assert info is not None
    assert info.epoch == 2, "it tells those who do not see the other"


@pytest.mark.parametrize("slow_s", [0.0, 0.3, 2.0, TTL_S - MARGIN_S])
def test_a_slow_answer_shortens_trust(slow_s: float) -> None:
    node = Node()
    node.store.slow_s = slow_s
    for _ in range(2):
        node.loop()
        node.heart.step()
        assert node.trusted_for_s == TTL_S - MARGIN_S
        assert node.pool.trusted() == (slow_s < TTL_S - MARGIN_S)
        node.clock.now += 1
    assert len(node.store.sent_at) == 2


def test_a_renewal_without_an_answer_gives_no_trust(node: Node) -> None:
    node.store.answers = False
    until = node.pool.view.trusted_until
    node.beat(TTL_S - MARGIN_S - 0.1)
    assert len(node.store.sent_at) > 2
    assert node.pool.view.trusted_until == until
    assert node.pool.trusted()
    node.beat(0.1)
    assert not node.pool.trusted()
    node.store.answers = True
    node.beat(1)
    # It was away for less than the store holds a membership: it is the same member.
    assert node.pool.view.me == "me#1"
    assert node.pool.trusted()


def test_it_renews_five_times_in_a_ttl(node: Node) -> None:
    node.beat(10 * TTL_S)
    assert 45 <= len(node.store.sent_at) <= 51
    assert node.pool.trusted()


def test_a_node_whose_loop_stands_still_falls_silent(node: Node) -> None:
    node.beat(1)
    node.beat(TTL_S, loops=False)
    assert node.clock.now - node.store.sent_at[-1] > TTL_S - MARGIN_S
    assert not node.pool.trusted()
    node.beat(1)
    assert node.pool.trusted()


def test_of_a_loop_that_waits_for_the_store_nothing_is_said_beside_the_outage(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.store.answers = False
    node.beat(1.1)
    node.beat(TTL_S, loops=False)
    node.store.answers = True
    # The call that the loop is in comes to its end a little later than the heartbeat's.
    node.beat(0.5, loops=False)
    node.beat(1)
    assert "the store answers again" in caplog.text
    assert "the scheduler loop" not in caplog.text
    node.beat(2, loops=False)
    node.beat(0.1)
    assert [line for line in caplog.messages if "the scheduler loop" in line] == [
        "the scheduler loop has stood still for 1.2 s: not renewing, so other nodes take over in 5 s",
        "the scheduler loop moves again",
    ]


def test_a_node_that_cannot_reach_the_broker_falls_silent(node: Node) -> None:
    node.progress.able = False
    node.beat(TTL_S)
    assert len(node.store.sent_at) == 1
    assert not node.pool.trusted()


def test_a_node_that_is_thrown_out_joins_again_when_its_loop_has_gone_round(node: Node) -> None:
    node.store.remove("me#1")
    node.clock.now += 1
    memberships = []
    for loops in (True, False, False, True):
        if loops:
            node.loop()
        node.heart.step()
        memberships.append(node.pool.view.me)
        assert node.pool.trusted() == (memberships[-1] is not None)
    assert memberships == [None, None, None, "me#2"]
    assert set(node.store.members()) == {"me#2"}


def test_a_node_that_joins_anew_takes_its_old_membership_out(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an outage the store may still hold it: a live node, to all others, that serves no share."""

    def refuse(membership: str, info: str) -> int:
        raise LeaseLost(membership)

    with monkeypatch.context() as patch:
        patch.setattr(node.store, "renew", refuse)
        node.beat(TTL_S / 5 + 0.1)
    assert node.pool.view.me == "me#2"
    assert set(node.store.members()) == {"me#2"}
    assert node.pool.view.ring.nodes == {"here/0"}


def test_a_membership_that_is_outlived_is_left_for_a_new_one(node: Node) -> None:
    node.beat(1)
    node.progress.outlived = "me#1"
    node.beat(1)
    assert node.pool.view.me == "me#2"
    assert node.store.members().keys() == {"me#2"}
    node.beat(TTL_S)
    assert node.pool.view.me == "me#2", "once"


def test_a_dead_nodes_membership_is_removed_before_its_share_moves(node: Node) -> None:
    node.store.join("other#1", other())
    node.beat(TTL_S - 0.1)
    assert "other#1" in node.store.members()
    assert node.pool.view.ring.nodes == {"here/0", "there/0"}
    node.beat(0.6)
    assert "other#1" not in node.store.members()
    assert node.pool.view.dead == {"other#1"}
    assert node.pool.view.ring.nodes == {"here/0"}


def test_what_a_dead_node_holds_is_not_taken_before_its_membership_is_removed(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may only have been frozen: with its fence it would wake up, and send what others have taken over."""

    def gone(mark: str) -> bool:
        return deaths.gone(mark, "here#1")

    def refuse(membership: str) -> None:
        raise StoreUnavailable("writes are refused")

    deaths = Deaths(node.pool)
    node.store.join("other#1", other())
    with monkeypatch.context() as patch:
        patch.setattr(node.store, "remove", refuse)
        for _ in range(8):
            node.beat(TTL_S / 2)
            assert not gone("other#1")
        assert node.pool.view.dead == {"other#1"}
    node.beat(0.3)
    assert gone("other#1")


def test_it_is_active_at_once_when_its_records_are_loaded(node: Node) -> None:
    assert not node.pool.view.alive["me#1"].active
    node.progress.ready = True
    node.heart.step()
    assert node.pool.view.alive["me#1"].active


def test_a_stranger_in_the_namespace_is_refused() -> None:
    node = Node()
    theirs = other("app 'their' on redis://there/0")
    node.store.join("other#1", theirs)
    for _ in range(3):
        node.beat(TTL_S / 5)
        node.store.renew("other#1", theirs)
    refusal = node.heart.refusal
    assert isinstance(refusal, ConfigError)
    for word in ("app 'their' on redis://there/0", "ours", "distsched_namespace", node.store.namespace):
        assert word in str(refusal)
    assert set(node.store.members()) == {"other#1"}


def test_a_stranger_that_has_died_is_buried_and_nobody_is_refused() -> None:
    """Its last beat was killed, and the app has another broker since: nobody was left to remove it."""
    node = Node()
    node.store.join("other#1", other("app 'their' on redis://there/0"))
    node.beat(TTL_S - 0.5)
    assert (node.heart.refusal, node.pool.view.me) == (None, None)
    node.beat(2 * TTL_S)
    assert (node.heart.refusal, node.pool.view.me) == (None, "me#1")
    assert set(node.store.members()) == {"me#1"}


def test_what_the_store_warns_of_is_logged_once_after_the_first_join(caplog: pytest.LogCaptureFixture) -> None:
    node = Node()
    answers: list[Callable[[], list[str]]] = [lambda: ["it may evict the ledger"]]
    node.store.warnings = lambda: answers.pop()()  # type: ignore[method-assign]
    node.store.answers = False
    node.beat(1)
    assert "evict" not in caplog.text
    node.store.answers = True
    node.beat(5)
    assert caplog.text.count("it may evict the ledger") == 1
    assert answers == []


def test_a_store_that_may_not_be_asked_about_itself_is_no_outage(caplog: pytest.LogCaptureFixture) -> None:
    node = Node()

    def forbidden() -> list[str]:
        raise StoreUnavailable("no permission to run INFO")

    node.store.warnings = forbidden  # type: ignore[method-assign]
    node.beat(5)
    assert node.pool.trusted()
    assert "INFO" not in caplog.text


def test_a_dead_member_that_cannot_be_removed_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    node = Node()
    node.store.join("other#1", other())
    node.store.remove = lambda membership, pulse=None: True  # type: ignore[method-assign]
    node.beat(3 * TTL_S)
    assert caplog.text.count("other#1 has been silent") == 1


@pytest.mark.parametrize("digest", ["same", "of a schedule that went with it"])
def test_the_death_of_the_last_node_with_a_schedule_is_reported(
    node: Node, caplog: pytest.LogCaptureFixture, digest: str
) -> None:
    info = Info("there", 0, digest, "ours", active=True, wall_us=0)
    node.store.join("other#1", info.text())
    node.beat(TTL_S + 2)
    said = "node other#1 was the last with its schedule" in caplog.text
    assert said == (digest != "same"), caplog.text


def test_a_member_that_renews_while_it_is_buried_stays_alive(caplog: pytest.LogCaptureFixture) -> None:
    """Its renewal and the removal cross: it trusts in the renewal, so nobody may take over what it holds."""
    node = Node()
    node.store.join("other#1", other())
    remove = node.store.remove

    def renewed_just_before(membership: str, pulse: str | None = None) -> bool:
        node.store.renew("other#1", other())
        return remove(membership, pulse)

    node.store.remove = renewed_just_before  # type: ignore[method-assign]
    node.beat(TTL_S + 1)
    assert node.pool.view.buried == frozenset()
    assert "other#1" in node.store.members()
    assert "other#1 has been silent" not in caplog.text


def test_an_error_that_nobody_has_thought_of_is_told_once_while_it_lasts(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> dict[str, Member]:
        raise ZeroDivisionError("odd")

    node.store.members = broken  # type: ignore[method-assign]
    node.beat(3)
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.exc_info is not None for record in errors] == [True], "with its traceback, once"
