"""Broker outage: nothing is confirmed that the broker did not take; what could not be sent is sent when it is back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import pytest

from tests.acceptance.at_once import at_once
from tests.acceptance.cluster import Cluster
from tests.acceptance.outages import Outage, cut, frozen, killed, silent
from tests.acceptance.queue import Message, Queue, RedisQueue
from tests.acceptance.rabbit_queue import RabbitQueue
from tests.figures import Figure
from tests.servers import RabbitServer, RedisServer, Server
from tests.wire import Wire

TTL_S = 2.0
#: Longer than a node without a broker stays a member, but for a reset, which nobody may die of.
AWAY_S = {"cut": 1.0, "killed": 6.0, "frozen": 4.0, "silent": 4.0}
#: Seconds after the broker's return until every beat sends.
BACK_S = TTL_S + 2
OWN = "the ledger's own Redis"
#: The broker, and the store of the beats.
CASES = {
    "RabbitMQ": "sqlite",
    "Redis beside the ledger": "redis+zset",
    OWN: "redis+zset",
    "Redis, and the ledger in etcd": "etcd",
    "Redis, and the ledger in Consul": "consul",
}


class Result(NamedTuple):
    """What one broker's run has come to."""

    broker: str
    cluster: Cluster
    began: float
    ended: float
    #: Seconds after the end of each outage until every beat was sending again.
    back_s: list[float]
    #: Whether the beats were all there in the end.
    stayed: bool
    vanished: list[Message]


@pytest.fixture(scope="module")
def result_of(rabbit_server: RabbitServer, store_url: Callable[[str], str]) -> Iterator[Callable[[str], Result]]:
    def run(case: str, server: Server, store: str) -> Result:
        path = server.path if isinstance(server, RabbitServer) else "/9"
        with Wire(server.port) as wire:
            queue: Queue = (RabbitQueue if isinstance(server, RabbitServer) else RedisQueue)(server.url(path=path))
            broker = server.url(port=wire.port, path=path)
            # A wire keeps what is under way where a frozen server takes it in when it is thawed: both are tried.
            outages = [cut("broker", wire), killed("broker", server), frozen("broker", server), silent("broker", wire)]
            return hurt(case, broker if case == OWN else store, queue, broker, outages)

    with ExitStack() as stack:
        runs = {}
        for case, scheme in CASES.items():
            redis = RedisServer("--appendonly", "yes", "--appendfsync", "no")
            server = rabbit_server if case == "RabbitMQ" else stack.enter_context(redis)
            runs[case] = partial(run, case, server, store_url(scheme))
        yield at_once(runs)


def hurt(case: str, store: str, queue: Queue, broker: str, outages: list[Outage]) -> Result:
    """Have a broker away in these ways, one after the other, under two beats."""
    back_s = []
    # RabbitMQ takes its time to start: what is older by then than a hand-over is for the policy to say.
    settings = {"distsched_catch_up": "all"}
    with Cluster(store, queue, entries=40, ttl_s=TTL_S, broker=broker, settings=settings) as cluster:
        beats = cluster.start(2)
        began = time.time()
        for outage in outages:
            cluster.wait_until_sending(beats[0])
            with cluster.during(outage):
                time.sleep(AWAY_S[outage.kind.split()[1]])
            back_s.append(cluster.wait_until_each_sends(beats, within_s=20) - cluster.outages[-1].until)
        ended = time.time()
        cluster.settle(began, ended)
        stayed = all(beat.exit_code is None for beat in beats)
    return Result(case, cluster, began, ended, back_s, stayed, queue.vanished())


@pytest.fixture(params=CASES)
def result(request: pytest.FixtureRequest, result_of: Callable[[str], Result]) -> Result:
    return result_of(request.param)


def test_an_outage_of_the_broker_loses_nothing(result: Result, figure: Figure) -> None:
    lost = result.cluster.sent.lost(result.began, result.ended)
    assert not lost, f"lost: {', '.join(map(str, lost))}{result.cluster.story()}"
    runs = len(result.cluster.sent.expected(result.began, result.ended))
    away = ", ".join(outage.kind for outage in result.cluster.outages)
    what = f"runs lost; {result.broker}: {away}"
    figure.runs("broker outage", CASES[result.broker], len(lost) + len(result.vanished), runs, what)
    assert not result.vanished, f"taken and not kept: {result.vanished}{result.cluster.story()}"


def test_what_comes_twice_does_so_under_one_task_id_and_where_the_broker_did_not_answer(result: Result) -> None:
    result.cluster.judge(result.began, result.ended)


def test_one_redis_doubles_nothing(result_of: Callable[[str], Result]) -> None:
    cluster = result_of(OWN).cluster
    assert "exactly once enqueued" in cluster.story()
    assert not (doubled := cluster.sent.doubled()), f"{doubled}{cluster.story()}"


def test_every_beat_stays_and_sends_again_by_itself(result: Result, figure: Figure) -> None:
    assert result.stayed, result.cluster.story()
    what = f"until every beat sends again; {result.broker}"
    figure.seconds("broker outage", CASES[result.broker], max(result.back_s), BACK_S, what)
    for away, back_s in zip(result.cluster.outages, result.back_s, strict=True):
        assert back_s <= BACK_S, f"{away.kind}: {back_s:.1f} s{result.cluster.story()}"
