"""etcd with three members: one down, another leader, no quorum; and what a stale member may not answer."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest

from celery_distsched.drivers import Answer, Driver, StoreUrl, Swap, open_driver
from celery_distsched.errors import StoreUnavailable
from tests.servers import EtcdCluster, free_port
from tests.servers.process import ask

Open = Callable[..., Driver]


@pytest.fixture
def cluster() -> Iterator[EtcdCluster]:
    with EtcdCluster() as members:
        yield members


@pytest.fixture
def opened() -> Iterator[Open]:
    namespace = uuid.uuid4().hex
    with ExitStack() as ends:

        def open_(url: str, timeout_s: float = 1.0) -> Driver:
            driver = open_driver(StoreUrl.parse(url), namespace=namespace, ttl_s=5.0, timeout_s=timeout_s, options={})
            return ends.enter_context(closing(driver))

        yield open_


def _answer(call: Callable[[], Any], within_s: float) -> Any:
    deadline = time.monotonic() + within_s
    while True:
        try:
            return call()
        except StoreUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def test_one_member_down_costs_one_call_a_change_of_leader_seconds_and_no_quorum_is_no_answer(
    cluster: EtcdCluster, opened: Open
) -> None:
    node = opened(cluster.url())
    node.join("me", "info")
    assert node.swap([Swap("entry", None, "1")], fence="me") == [Answer(True, "1")]

    # The leader dies: what it granted is kept.
    first = cluster.leader
    first.kill()
    _answer(lambda: node.renew("me", "again"), within_s=10)
    assert _answer(lambda: node.read(["entry"]), within_s=5) == ["1"]
    swap = [Swap("entry", "1", "2")]
    assert _answer(lambda: node.swap(swap, fence="me"), within_s=5) in ([Answer(True, "2")], [Answer(False, "2")])
    assert cluster.leader is not first

    # With one of the two others gone nothing is answered, by any call, though the last one has all the data.
    second = cluster.leader
    second.kill()
    (last,) = (member for member in cluster.members if member.pid is not None)
    key = {"key": "AA==", "range_end": "AA==", "serializable": True}
    assert ask(last, "POST", "/v3/kv/range", key)["count"] == "2", "it has what it must not tell"
    alone = opened(last.url())
    for call in (
        alone.members,
        lambda: alone.read(["entry"]),
        lambda: alone.swap([Swap("entry", "2", "3")], fence="me"),
        lambda: alone.renew("me", "info"),
        lambda: alone.join("other", "info"),
        lambda: alone.remove("me"),
    ):
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            call()
        assert time.monotonic() - started < 2

    # Two of three are a quorum again.
    first.start()
    record = _answer(lambda: node.read(["entry"]), within_s=15)
    assert record in (["2"], ["3"]), "the swap without a quorum may still have been agreed on"
    _answer(lambda: node.join("me", "back"), within_s=5)


def test_a_member_that_is_cut_off_from_the_others_tells_nothing_old(cluster: EtcdCluster, opened: Open) -> None:
    follower = next(member for member in cluster.members if not member.leads)
    others = [member for member in cluster.members if member is not follower]
    node, through = opened(cluster.url()), opened(follower.url())
    node.swap([Swap("entry", None, "old")])
    assert through.read(["entry"]) == ["old"]
    for member in others:
        member.freeze()
    for call in (through.members, lambda: through.read(["entry"])):
        with pytest.raises(StoreUnavailable):
            call()
    for member in others:
        member.thaw()
    follower.freeze()
    for member in others:
        assert _answer(opened(member.url()).members, within_s=10) == {}
    swap = [Swap("entry", "old", "new")]
    assert _answer(lambda: opened(others[0].url()).swap(swap), within_s=10)[0].record == "new"
    follower.thaw()
    # Whatever it has not heard of yet, it asks for before it answers.
    assert _answer(lambda: through.read(["entry"]), within_s=10) == ["new"]


def test_a_url_may_name_members_that_are_not_there(cluster: EtcdCluster, opened: Open) -> None:
    up = cluster.members[1]
    node = opened(f"etcd://127.0.0.1:{free_port()},127.0.0.1:{up.port},127.0.0.1:{free_port()}")
    with pytest.raises(StoreUnavailable):
        node.members()
    for _ in range(3):
        assert node.members() == {}
