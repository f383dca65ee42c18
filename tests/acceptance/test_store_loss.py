"""Store loss: one that comes back empty is noticed and filled again; no old run comes again, and each grid goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.acceptance.at_once import at_once
from tests.acceptance.cluster import Cluster
from tests.acceptance.queue import RedisQueue
from tests.figures import Figure
from tests.servers import ConsulServer, EtcdServer, RedisServer

TTL_S = 2.0
#: What happens, and to which store.
CASES = {
    "a Redis is flushed": "redis+zset",
    "a Redis with a key for each beat is flushed": "redis+scan",
    "a Redis starts empty": "redis+zset",
    "a Redis evicts the ledger": "redis+zset",
    "an etcd is emptied": "etcd",
    "an etcd starts empty": "etcd",
    "a Consul is emptied": "consul",
    "a Consul starts empty": "consul",
    "an SQLite file is deleted": "sqlite",
}
#: Seconds that a run may be late by which falls due while a store is empty, from when it can be reached.
REFILL_S = 2 * TTL_S


class Result(NamedTuple):
    """What one run has come to."""

    case: str
    cluster: Cluster
    began: float
    lost_at: float
    #: When there was a store again.
    back_at: float
    ended: float


def evict(server: RedisServer, namespace: str) -> None:
    """As ``allkeys-lru`` does under pressure."""
    assert server.call("DEL", f"distsched:{{{namespace}}}:ledger") == b":1"


def delete(path: Path) -> None:
    """Remove an SQLite file under those who have it open."""
    for file in path.parent.iterdir():
        file.unlink()


@pytest.fixture(scope="module")
def result_of(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Result]]:
    flushed, with_keys, emptied = RedisServer(), RedisServer(), RedisServer()
    etcd, new_etcd, consul, new_consul = EtcdServer(), EtcdServer(), ConsulServer(), ConsulServer()
    evicting = RedisServer("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    file = tmp_path_factory.mktemp("store") / "store.sqlite3"
    ways: list[tuple[str, Callable[[str], None]]] = [
        (flushed.url(), lambda namespace: flushed.flush()),
        (with_keys.url("redis+scan"), lambda namespace: with_keys.flush()),
        (emptied.url(), lambda namespace: emptied.restart(empty=True)),
        (evicting.url(), lambda namespace: evict(evicting, namespace)),
        (etcd.url(), lambda namespace: etcd.flush()),
        (new_etcd.url(), lambda namespace: new_etcd.restart(empty=True)),
        (consul.url(), lambda namespace: consul.flush()),
        (new_consul.url(), lambda namespace: new_consul.restart(empty=True)),
        (f"sqlite:///{file}", lambda namespace: delete(file)),
    ]

    def run(nth: int, case: str) -> Result:
        url, lose = ways[nth]
        queue = RedisQueue(redis_server.url(path=f"/{9 - nth}"))
        with Cluster(url, queue, entries=20, ttl_s=TTL_S) as cluster:
            cluster.start(2)
            time.sleep(1)
            began = time.time()
            # What is between claim and confirm is for the tests of outages.
            time.sleep(1.5 - began % 1)
            lost_at = time.time()
            lose(cluster.namespace)
            back_at = time.time()
            time.sleep(TTL_S + 1)
            # One that knows nothing of what was there must not take that for the beginning of all.
            cluster.start()
            time.sleep(2 * TTL_S)
            ended = time.time()
            cluster.settle(began, ended)
            return Result(case, cluster, began, lost_at, back_at, ended)

    with ExitStack() as stack:
        for server in (flushed, with_keys, emptied, evicting, etcd, new_etcd, consul, new_consul):
            stack.enter_context(server)
        yield at_once({case: lambda nth=nth, case=case: run(nth, case) for nth, case in enumerate(CASES)})  # type: ignore[misc]


@pytest.fixture(params=CASES)
def result(request: pytest.FixtureRequest, result_of: Callable[[str], Result]) -> Result:
    return result_of(request.param)


def test_a_lost_store_loses_no_run_and_each_grid_goes_on(result: Result, figure: Figure) -> None:
    sent, story = result.cluster.sent, result.cluster.story()
    worst_s = max(sent.delays(result.back_at, upto=result.ended).values())
    figure.seconds("store loss", CASES[result.case], worst_s, REFILL_S, f"the latest run; {result.case}")
    assert worst_s <= REFILL_S, f"{worst_s:.2f} s{story}"
    assert not (lost := sent.lost(result.began, result.ended)), f"lost: {', '.join(map(str, lost))}{story}"
    assert not (strays := sent.strays()), f"off their grids: {', '.join(map(str, strays))}{story}"


def test_a_lost_store_makes_nothing_come_twice(result: Result, figure: Figure) -> None:
    sent, story = result.cluster.sent, result.cluster.story()
    what = f"runs sent twice; {result.case}"
    figure.runs("store loss", CASES[result.case], len(sent.doubled()), len(sent.messages), what)
    assert not (doubled := sent.doubled()), f"{doubled}{story}"
    assert not (confused := sent.confused()), f"{', '.join(map(str, confused))}{story}"


def test_a_lost_store_brings_no_burst_of_old_runs(result: Result) -> None:
    oldest_us = (result.lost_at - 10) * 1e6
    messages = [one for one in result.cluster.queue.messages if one.seen_at > result.lost_at]
    old = [one for one in messages if one.instant_us < oldest_us]
    assert not old, f"{old}{result.cluster.story()}"


def test_a_lost_store_is_reported_once(result: Result) -> None:
    for beat in result.cluster.beats[:2]:
        # The beats that were there know; one that came later need not.
        assert len(beat.lines("the store has lost")) == 1, f"{beat.name}{result.cluster.story()}"


def test_a_store_that_may_evict_the_ledger_is_warned_about_at_the_start(result_of: Callable[[str], Result]) -> None:
    for case in CASES:
        cluster = result_of(case).cluster
        for beat in cluster.beats:
            warned = beat.lines("evicts keys when it is full (maxmemory-policy allkeys-lru)")
            assert len(warned) == (case == "a Redis evicts the ledger"), f"{case}: {beat.name}{cluster.story()}"
