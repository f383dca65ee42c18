"""Store outage: no store, no claims, no sending; the beats stay, and rejoin and catch up by themselves."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest

from tests.acceptance.at_once import at_once
from tests.acceptance.beat import Beat
from tests.acceptance.cluster import Cluster
from tests.acceptance.outages import Outage, cut, frozen, killed, locked, out_of_memory, silent
from tests.acceptance.queue import Message, RedisQueue
from tests.figures import Figure
from tests.servers import ConsulServer, EtcdServer, RedisServer, Server
from tests.wire import Wire

TTL_S = 2.0
#: Longer than anybody trusts a view, shorter than what the catch-up policy begins to count as missed.
OUTAGE_S = TTL_S + 1
#: Seconds after which every beat has noticed that the store is back, has joined and has its share.
REJOIN_S = TTL_S + 1
#: Seconds that a beat may take to end.
END_S = 2.0
STORES = ("redis+zset", "redis+scan", "etcd", "consul", "sqlite")


class Result(NamedTuple):
    """What one store's run has come to."""

    store: str
    cluster: Cluster
    began: float
    ended: float
    #: Seconds after the end of each outage until every beat was sending again.
    back_s: list[float]
    #: Seconds that a beat took to end in the middle of the last outage, on a machine that does nothing else.
    end_s: float
    #: Whether the others were all there in the end.
    stayed: bool
    vanished: list[Message]


@pytest.fixture(scope="module")
def result_of(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Result]]:
    def run(nth: int, store: str, server: Server | None) -> Result:
        queue = RedisQueue(redis_server.url(path=f"/{9 - nth}"))
        if server is None:
            path = tmp_path_factory.mktemp("store") / "store.sqlite3"
            return hurt(store, f"sqlite:///{path}", queue, [locked(path), locked(path)])
        server.start()
        with Wire(server.port) as wire:
            outages = [killed("store", server), frozen("store", server), cut("store", wire), silent("store", wire)]
            if isinstance(server, RedisServer):
                outages.insert(0, out_of_memory(server))
            return hurt(store, server.url(store, port=wire.port), queue, outages)

    keeps_all = ("--appendonly", "yes", "--appendfsync", "no")
    servers: list[Server | None] = [RedisServer(*keeps_all), RedisServer(*keeps_all)]
    servers += [EtcdServer(), ConsulServer(), None]
    with ExitStack() as stack:
        for server in servers:
            if server is not None:
                stack.callback(server.stop)
        pairs = enumerate(zip(STORES, servers, strict=True))
        yield at_once({store: lambda n=nth, s=store, on=server: run(n, s, on) for nth, (store, server) in pairs})  # type: ignore[misc]


def hurt(store: str, url: str, queue: RedisQueue, outages: list[Outage]) -> Result:
    """Have a store away in these ways, one after the other, under three beats, of which one ends during the last."""
    back_s, end_s = [], 0.0
    with Cluster(url, queue, entries=20, ttl_s=TTL_S) as cluster:
        leaving, *staying = beats = cluster.start(3)
        began = time.time()
        for outage in outages:
            with cluster.during(outage):
                time.sleep(OUTAGE_S)
                if outage is outages[-1]:
                    end_s = seconds_to_end(cluster, leaving)
            again = staying if outage is outages[-1] else beats
            back_s.append(cluster.wait_until_each_sends(again, within_s=15) - cluster.outages[-1].until)
        ended = time.time()
        cluster.settle(began, ended)
        stayed = all(beat.exit_code is None for beat in staying)
    return Result(store, cluster, began, ended, back_s, end_s, stayed, queue.vanished())


def seconds_to_end(cluster: Cluster, beat: Beat) -> float:
    """Ask a beat to end; return how long that would have taken if others did not work at the same time."""
    asked_at = time.monotonic()
    try:
        cluster.terminate(beat, within_s=3 * END_S)
    except subprocess.TimeoutExpired:
        cluster.kill(beat)
    return (time.monotonic() - asked_at) / cluster.hurts[-1].stretch


@pytest.fixture(params=STORES)
def result(request: pytest.FixtureRequest, result_of: Callable[[str], Result]) -> Result:
    return result_of(request.param)


def test_an_outage_of_the_store_loses_nothing_and_doubles_nothing(result: Result, figure: Figure) -> None:
    cluster = result.cluster
    wrong = cluster.wrong(result.began, result.ended) + len(result.vanished)
    what = f"runs lost or sent twice; {', '.join(away.kind for away in cluster.outages)}"
    figure.runs("store outage", result.store, wrong, len(cluster.sent.messages), what)
    cluster.judge(result.began, result.ended)
    assert not result.vanished, result.cluster.story()


def test_nothing_is_sent_while_there_is_no_store(result: Result) -> None:
    for away in result.cluster.outages:
        # Until the end of trust a claim may still have been on its way.
        silence = (away.at + TTL_S, away.mended_from)
        sent = [one for one in result.cluster.queue.messages if silence[0] < one.seen_at < silence[1]]
        assert not sent, f"{away.kind}: {sent}{result.cluster.story()}"


def test_every_beat_stays_and_rejoins_by_itself(result: Result, figure: Figure) -> None:
    assert result.stayed, result.cluster.story()
    figure.seconds("store outage", result.store, max(result.back_s), REJOIN_S, "until every beat sends again")
    for away, back_s in zip(result.cluster.outages, result.back_s, strict=True):
        assert back_s <= REJOIN_S, f"{away.kind}: {back_s:.1f} s{result.cluster.story()}"


def test_a_beat_says_once_what_is_wrong_and_once_that_it_is_over(result: Result) -> None:
    for beat in result.cluster.beats[1:]:
        outages = len(result.cluster.outages)
        story = result.cluster.story()
        assert len(beat.lines("the store does not answer")) == outages, f"{beat.name}{story}"
        assert len(beat.lines("the store answers again")) == outages, f"{beat.name}{story}"
        assert "Traceback" not in beat.said(), f"{beat.name}{story}"


def test_a_beat_ends_on_sigterm_while_there_is_no_store(result: Result) -> None:
    leaving = result.cluster.beats[0]
    assert leaving.exit_code == 0, result.cluster.story()
    assert result.end_s <= END_S, f"{result.end_s:.1f} s{result.cluster.story()}"
