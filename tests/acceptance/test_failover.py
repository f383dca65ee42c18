"""Failover: behind Sentinels another Redis takes the store's place; one without its replica refuses what is written.

Redis answers before its replicas have what was written. Each failover here is a bad one: the replicas have taken in
nothing for a second when the primary dies, and a beat dies with it, who alone remembers its claims of that second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest
import redis

from tests.acceptance.at_once import at_once
from tests.acceptance.beat import Beat
from tests.acceptance.cluster import Cluster
from tests.acceptance.occurrences import Hurt
from tests.acceptance.outages import Outage
from tests.acceptance.queue import Message, RedisQueue
from tests.drivers.redis_nodes import until
from tests.figures import Figure
from tests.servers import RedisServer, WatchedRedis, free_port, replica_of

TTL_S = 3.0
#: Longer than anybody trusts a view.
OUTAGE_S = TTL_S + 1
#: Seconds after which every beat that is left sends again: it has joined the new server, and waited for what the others
#: remember, a TTL at most; or a replica has found its primary again.
BACK_S = TTL_S + 2
#: Seconds for which the replicas take in nothing before the primary dies: in all of them, some entry is due.
LAG_S = 1.0
#: Seconds between the sending of a run and its confirm, at most: the claim may have come through to the replicas alone.
UNCONFIRMED_S = 0.5
#: Seconds by which a run may seem early.
EARLY_S = 0.25

HEEDLESS, CAREFUL, ALONE, UNHEARD = CASES = (
    "a failover",
    "a failover, with wait_replicas",
    "a primary without its replica, with min-replicas-to-write",
    "a primary without its replica, with wait_replicas",
)
#: What the Sentinels want is for the options; and how long they take to agree must not make anything a misfire.
SETTINGS = {
    "distsched_driver_options": {"master_name": "mymaster", "sentinel_kwargs": {"password": "of-sentinels"}},
    "distsched_catch_up": "all",
}


class LaggingRedis(WatchedRedis):
    """Behind Sentinels, with replicas that can be made to lag."""

    def __init__(self, replicas: int) -> None:
        super().__init__()
        self._count = replicas
        self._replicas = [self.replica, *(replica_of(self.primary) for _ in range(1, replicas))]

    def lag(self) -> None:
        """Let the replicas take in nothing more: they are told that their primary is where nobody is."""
        for replica in self._replicas:
            assert replica.call("REPLICAOF", replica.host, str(free_port())) == b"+OK"

    def wait_until_promoted(self) -> None:
        """Return when a Sentinel names one of the replicas as the primary."""
        until(lambda: any(self._named_by(sentinel) != self.primary.port for sentinel in self.sentinels), within_s=30)

    def _start(self) -> None:
        for server in (self.primary, *self._replicas):
            self._running.enter_context(server)
        # The Sentinels look for replicas when they start, and then every ten seconds.
        with redis.Redis(port=self.primary.port, password=self.primary.password) as primary:
            until(lambda: bool(primary.set("warm", "up")) and primary.wait(self._count, 200) == self._count)
        for sentinel in self.sentinels:
            self._running.enter_context(sentinel)
        until(self._watched, within_s=30)

    def _watched(self) -> bool:
        known = [self._seen_by(sentinel) for sentinel in self.sentinels]
        return all(one["num-slaves"] == self._count and one["num-other-sentinels"] == 2 for one in known)

    def _named_by(self, sentinel: RedisServer) -> int:
        return int(self._seen_by(sentinel)["port"])

    def _seen_by(self, sentinel: RedisServer) -> Any:
        with redis.Redis(port=sentinel.port, password=sentinel.password, decode_responses=True) as client:
            return client.sentinel_master("mymaster")


class Result(NamedTuple):
    """What one run has come to."""

    case: str
    cluster: Cluster
    began: float
    ended: float
    #: Since when nothing that was written has come through to a replica.
    lagged_at: float
    #: Seconds after the end of the outage until every beat that was left was sending again.
    back_s: float
    staying: list[Beat]
    stayed: bool

    @property
    def away(self) -> Hurt:
        """The outage."""
        (outage,) = self.cluster.outages
        return outage


@pytest.fixture(scope="module")
def result_of(redis_server: RedisServer) -> Iterator[Callable[[str], Result]]:
    def queue(number: int) -> RedisQueue:
        return RedisQueue(redis_server.url(path=f"/{number}"))

    with ExitStack() as stack:
        one, two = (stack.enter_context(LaggingRedis(replicas)) for replicas in (1, 2))
        strict = stack.enter_context(RedisServer("--min-replicas-to-write", "1", "--repl-diskless-sync-delay", "0"))
        asked = stack.enter_context(RedisServer("--repl-diskless-sync-delay", "0"))
        replicas = [stack.enter_context(replica_of(primary)) for primary in (strict, asked)]
        runs = (
            lambda: failed_over(HEEDLESS, one, one.url(), queue(9)),
            lambda: failed_over(CAREFUL, two, f"{two.url()}?wait_replicas=1", queue(8)),
            lambda: left_alone(ALONE, strict, strict.url(), replicas[0], queue(7)),
            lambda: left_alone(UNHEARD, asked, f"{asked.url()}?wait_replicas=1", replicas[1], queue(6)),
        )
        yield at_once(dict(zip(CASES, runs, strict=True)))


def failed_over(case: str, servers: LaggingRedis, url: str, queue: RedisQueue) -> Result:
    """Of three beats one dies with the primary, and what both have done at last no replica has."""
    with Cluster(url, queue, entries=30, ttl_s=TTL_S, settings=SETTINGS) as cluster:
        *staying, dying = cluster.start(3)
        time.sleep(1)
        began = time.time()
        # Most is due at the full second, and confirmed by now.
        time.sleep(1.5 - began % 1)
        lagged_at = time.time()
        servers.lag()
        time.sleep(LAG_S)
        with cluster.during(Outage("store's primary killed", servers.primary.kill, lambda: None)):
            cluster.kill(dying)
            servers.wait_until_promoted()
        return over(case, cluster, began, lagged_at, staying)


def left_alone(case: str, primary: RedisServer, url: str, replica: RedisServer, queue: RedisQueue) -> Result:
    """The only replica of a primary is gone for a while, and one is asked for."""
    until(lambda: primary.call("SET", "warm", "up") == b"+OK")
    with Cluster(url, queue, entries=20, ttl_s=TTL_S) as cluster:
        staying = cluster.start(2)
        began = time.time()
        with cluster.during(Outage("store's replica killed", replica.kill, replica.start)):
            time.sleep(OUTAGE_S)
        return over(case, cluster, began, cluster.outages[-1].at, staying)


def over(case: str, cluster: Cluster, began: float, lagged_at: float, staying: list[Beat]) -> Result:
    back_s = cluster.wait_until_each_sends(staying, within_s=20) - cluster.outages[-1].until
    ended = time.time()
    # What a dead beat has left comes a TTL after the new server was joined.
    cluster.settle(began, ended)
    stayed = all(beat.exit_code is None for beat in staying)
    return Result(case, cluster, began, ended, lagged_at, back_s, staying, stayed)


@pytest.fixture(params=CASES)
def result(request: pytest.FixtureRequest, result_of: Callable[[str], Result]) -> Result:
    return result_of(request.param)


def test_nothing_is_lost_and_each_run_has_one_task_id(result: Result) -> None:
    sent, story = result.cluster.sent, result.cluster.story()
    assert not (lost := sent.lost(result.began, result.ended)), f"lost: {', '.join(map(str, lost))}{story}"
    assert not (strays := sent.strays()), f"for no instant: {', '.join(map(str, strays))}{story}"
    assert not (confused := sent.confused()), f"task ids: {', '.join(map(str, confused))}{story}"


@pytest.mark.parametrize("case", [CAREFUL, ALONE, UNHEARD])
def test_what_was_claimed_with_a_replica_comes_once(
    case: str, result_of: Callable[[str], Result], figure: Figure
) -> None:
    result = result_of(case)
    cluster = result.cluster
    what = f"runs lost or sent twice; {case}"
    wrong = cluster.wrong(result.began, result.ended)
    figure.runs("store outage", "redis+zset", wrong, len(cluster.sent.messages), what)
    cluster.judge(result.began, result.ended)


def test_without_waiting_for_replicas_only_what_the_dead_beat_has_sent_at_last_comes_twice(
    result_of: Callable[[str], Result],
) -> None:
    result = result_of(HEEDLESS)
    (killed,) = (hurt for hurt in result.cluster.hurts if hurt.pid)
    doubled = result.cluster.sent.doubled_without_cause(result.cluster.hurts)
    story = result.cluster.story()
    # Who is left remembers its own.
    others = {occurrence: messages for occurrence, messages in doubled.items() if messages[0].pid != killed.pid}
    assert not others, f"{others}{story}"
    since = result.lagged_at - UNCONFIRMED_S
    early = {occurrence: messages for occurrence, messages in doubled.items() if messages[0].seen_at < since}
    assert not early, f"{early}{story}"
    # Were there none, the other case would show nothing.
    assert doubled, story


def test_nothing_is_claimed_that_no_replica_can_have(result: Result) -> None:
    since = result.away.at if result.case == HEEDLESS else result.lagged_at
    assert not (sent := sent_between(result, since, result.away.mended_from)), f"{sent}{result.cluster.story()}"


def sent_between(result: Result, since: float, until: float) -> list[Message]:
    messages = result.cluster.queue.messages
    return [one for one in messages if one.instant_us / 1e6 > since + EARLY_S and one.seen_at < until]


def test_every_beat_that_is_left_stays_and_goes_on_by_itself(result: Result, figure: Figure) -> None:
    assert result.stayed, result.cluster.story()
    what = f"until every beat sends again; {result.case}"
    figure.seconds("store outage", "redis+zset", result.back_s, BACK_S, what)
    assert result.back_s <= BACK_S, f"{result.back_s:.1f} s{result.cluster.story()}"


def test_a_beat_says_once_what_is_wrong_and_once_that_it_is_over(result: Result) -> None:
    story = result.cluster.story()
    for beat in result.staying:
        down = beat.lines("the store does not answer")
        assert len(down) == 1, f"{beat.name}{story}"
        assert ("NOREPLICAS" in down[0]) == (result.case == ALONE), story
        assert ("0 replicas have what was written" in down[0]) >= (result.case == UNHEARD), story
        assert len(beat.lines("the store answers again")) == 1, f"{beat.name}{story}"
        # What another server has may be older than what the beats remember.
        assert len(beat.lines("another server is in its place")) == (result.case in (HEEDLESS, CAREFUL)), story
        assert "Traceback" not in beat.said(), f"{beat.name}{story}"
