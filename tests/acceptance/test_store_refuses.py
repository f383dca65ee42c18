"""Stores that are there and say no: a token that has expired or was revoked, another leader, no quorum."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import pytest

from tests.acceptance.at_once import at_once
from tests.acceptance.beat import Beat
from tests.acceptance.cluster import Cluster
from tests.acceptance.occurrences import Hurt
from tests.acceptance.outages import Outage, killed, leader_killed, quorum_lost, revoked
from tests.acceptance.queue import RedisQueue
from tests.servers import EtcdCluster, EtcdServer, GuardedConsul, RedisServer

TTL_S = 2.0
#: Longer than anybody trusts a view, shorter than what the catch-up policy begins to count as missed.
OUTAGE_S = TTL_S + 1
#: Seconds after which every beat has noticed that the store answers, has joined and sends; an election takes its part.
BACK_S = TTL_S + 3
#: Seconds without a call after which etcd has certainly forgotten a token that lasts for one.
EXPIRED_S = 3.0
CASES = ("Consul with tokens", "etcd with users", "etcd of three")


class Away(NamedTuple):
    """One outage, and what became of it."""

    hurt: Hurt
    #: Seconds after its end until every beat was sending again.
    back_s: float
    #: What each beat has said of it: that it is there, and that it is over.
    said: list[tuple[list[str], list[str]]]


class Result(NamedTuple):
    """What one run has come to."""

    cluster: Cluster
    began: float
    ended: float
    aways: list[Away]
    stayed: bool


@pytest.fixture(scope="module")
def result_of(redis_server: RedisServer) -> Iterator[Callable[[str], Result]]:
    def queue(number: int) -> RedisQueue:
        return RedisQueue(redis_server.url(path=f"/{number}"))

    guarded, with_users, three = GuardedConsul(), EtcdServer("--auth-token-ttl=1", "--bcrypt-cost=4"), EtcdCluster()
    with ExitStack() as stack:
        stack.enter_context(guarded)
        stack.enter_context(with_users)
        stack.enter_context(three)
        runs = (
            lambda: with_a_token(guarded, queue(9)),
            lambda: as_a_user(with_users, queue(8)),
            lambda: hurt(three.url(), queue(7), [leader_killed(three), quorum_lost(three)]),
        )
        yield at_once(dict(zip(CASES, runs, strict=True)))


def with_a_token(server: GuardedConsul, queue: RedisQueue) -> Result:
    """The beats' token is revoked, and made again."""
    rules = 'key_prefix "" { policy = "write" }'
    token = server.token(rules)
    return hurt(server.url(), queue, [revoked(server, token, rules)], options={"token": token})


def as_a_user(server: EtcdServer, queue: RedisQueue) -> Result:
    """What etcd gives a user for a password ends after a second without a call, and with the server that gave it."""
    server.protect()
    return hurt(server.url(), queue, [killed("store", server)], frozen_s=EXPIRED_S)


def hurt(
    url: str,
    queue: RedisQueue,
    outages: Sequence[Outage],
    options: dict[str, str] | None = None,
    frozen_s: float = 0.0,
) -> Result:
    """Have a store say no in these ways, one after the other, to two beats that may have been frozen before."""
    aways = []
    with Cluster(url, queue, entries=20, ttl_s=TTL_S, settings={"distsched_driver_options": options or {}}) as cluster:
        beats = cluster.start(2)
        began = time.time()
        if frozen_s:
            with cluster.stopped(beats[0]), cluster.stopped(beats[1]):
                time.sleep(frozen_s)
            cluster.wait_until_each_sends(beats, within_s=15)
        for outage in outages:
            before = [said(beat) for beat in beats]
            with cluster.during(outage):
                time.sleep(OUTAGE_S)
            back_s = cluster.wait_until_each_sends(beats, within_s=20) - cluster.outages[-1].until
            since = [
                (down[len(d) :], up[len(u) :]) for (d, u), (down, up) in zip(before, map(said, beats), strict=True)
            ]
            aways.append(Away(cluster.outages[-1], back_s, since))
        ended = time.time()
        cluster.settle(began, ended)
        stayed = all(beat.exit_code is None for beat in beats)
    return Result(cluster, began, ended, aways, stayed)


def said(beat: Beat) -> tuple[list[str], list[str]]:
    return beat.lines("the store does not answer"), beat.lines("the store answers again")


@pytest.fixture(params=CASES)
def result(request: pytest.FixtureRequest, result_of: Callable[[str], Result]) -> Result:
    return result_of(request.param)


def test_a_store_that_says_no_loses_nothing_and_doubles_nothing(result: Result) -> None:
    result.cluster.judge(result.began, result.ended)


def test_every_beat_stays_and_goes_on_by_itself(result: Result) -> None:
    assert result.stayed, result.cluster.story()
    for away in result.aways:
        assert away.back_s <= BACK_S, f"{away.hurt.kind}: {away.back_s:.1f} s{result.cluster.story()}"


def test_a_beat_says_once_what_is_wrong_and_once_that_it_is_over(result: Result) -> None:
    for away in result.aways:
        for down, up in away.said:
            # An election may be over before a beat has asked in vain.
            assert len(down) == len(up) <= 1, f"{away.hurt.kind}{result.cluster.story()}"
            assert down or "leader" in away.hurt.kind, f"{away.hurt.kind}{result.cluster.story()}"
    for beat in result.cluster.beats:
        assert "Traceback" not in beat.said(), result.cluster.story()


def test_a_token_that_has_expired_is_no_outage(result_of: Callable[[str], Result]) -> None:
    cluster = result_of("etcd with users").cluster
    for beat in cluster.beats:
        # A call that was under way when the beat was frozen may have had no answer.
        assert not [line for line in said(beat)[0] if "token" in line or "auth" in line.lower()], cluster.story()


def test_a_revoked_token_is_said_with_its_mend(result_of: Callable[[str], Result]) -> None:
    (away,) = result_of("Consul with tokens").aways
    for (line,), _ in away.said:
        assert "'token' in distsched_driver_options" in line


def test_another_leader_costs_less_than_a_death(result_of: Callable[[str], Result]) -> None:
    cluster = result_of("etcd of three").cluster
    change = cluster.outages[0]
    worst_s = max(cluster.sent.delays(change.at, upto=change.at + OUTAGE_S).values())
    assert worst_s <= TTL_S + 1.5, f"{worst_s:.1f} s{cluster.story()}"
