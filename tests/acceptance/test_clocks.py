"""Clocks: one that is an hour off, or is set an hour ahead or back, changes neither what is sent nor how often.

A server's clock is stepped where it is asked for the time: that is Redis. etcd and Consul are not asked. They are Go
programs, which take the time past the C library, where alone it can be faked for one process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.acceptance.at_once import at_once
from tests.acceptance.cluster import Cluster
from tests.acceptance.queue import Queue, RedisQueue
from tests.acceptance.rhythms import SECOND_US
from tests.figures import Figure
from tests.servers import ConsulServer, EtcdServer, RedisServer
from tests.servers.fake_clock import FakeClock, PythonClock

TTL_S = 2.0
HOUR_S = 3600.0
#: Longer than a jump has to last before it is followed.
STEP_S = 3.5
#: Seconds by which most of the runs may be late: those of a hand-over are later.
LATE_S = 0.25


class Result(NamedTuple):
    """What one run has come to."""

    cluster: Cluster
    began: float
    ended: float


@pytest.fixture(scope="module")
def result_of(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Result]]:
    stepped, etcd, consul = RedisServer(), EtcdServer(), ConsulServer()
    stepped.clock = FakeClock()
    clock = stepped.clock
    with ExitStack() as stack:
        for server in (stepped, etcd, consul):
            stack.enter_context(server)

        def queue(number: int) -> Queue:
            return RedisQueue(redis_server.url(path=f"/{number}"))

        yield at_once(
            {
                "redis": lambda: with_wrong_clocks(redis_server.url(path="/5"), queue(9)),
                "redis+scan": lambda: with_wrong_clocks(redis_server.url("redis+scan", path="/3"), queue(2)),
                "etcd": lambda: with_wrong_clocks(etcd.url(), queue(4)),
                "consul": lambda: with_wrong_clocks(consul.url(), queue(8)),
                "the store's": lambda: with_a_store_that_steps(stepped.url(), queue(7), clock),
                "the host's": lambda: with_a_host_that_steps(tmp_path_factory.mktemp("store"), queue(6)),
            }
        )


def with_wrong_clocks(store: str, queue: Queue) -> Result:
    """Of three beats one is an hour slow and one an hour fast, until that is set right, and wrong once more."""
    slow, fast = PythonClock(-HOUR_S), PythonClock(HOUR_S)
    with Cluster(store, queue, entries=20, ttl_s=TTL_S) as cluster:
        # The first one's clock is the cluster's, where the store has none.
        cluster.start()
        cluster.start(2, clocks=[slow, fast])
        began = time.time()
        for ahead_s in (HOUR_S, 0.0, HOUR_S):
            fast.step_to(ahead_s)
            time.sleep(STEP_S)
        cluster.kill(cluster.beats[1])
        time.sleep(TTL_S + 1.5)
        return over(cluster, began)


def with_a_store_that_steps(store: str, queue: Queue, clock: FakeClock) -> Result:
    """The store's clock is set an hour ahead, an hour back, and right."""
    with Cluster(store, queue, entries=20, ttl_s=TTL_S) as cluster:
        cluster.start(2)
        began = time.time()
        for ahead_s in (HOUR_S, -HOUR_S, 0.0):
            clock.step_to(ahead_s)
            time.sleep(STEP_S)
        return over(cluster, began)


def with_a_host_that_steps(folder: Path, queue: Queue) -> Result:
    """The one clock that beats and store have in common is set an hour ahead."""
    clock = PythonClock()
    with Cluster(f"sqlite:///{folder}/store.sqlite3", queue, entries=20, ttl_s=TTL_S) as cluster:
        cluster.start(2, clocks=[clock, clock])
        began = time.time()
        time.sleep(1)
        clock.step_to(HOUR_S)
        time.sleep(2 * STEP_S)
        return Result(cluster, began, time.time())


def over(cluster: Cluster, began: float) -> Result:
    ended = time.time()
    cluster.settle(began, ended, within_s=5)
    return Result(cluster, began, ended)


@pytest.mark.parametrize(
    ("whose", "store"),
    [
        ("redis", "redis+zset"),
        ("redis+scan", "redis+scan"),
        ("etcd", "etcd"),
        ("consul", "consul"),
        ("the store's", "redis+zset"),
    ],
)
def test_an_hour_of_skew_and_steps_of_an_hour_lose_and_double_nothing(
    whose: str, store: str, result_of: Callable[[str], Result], figure: Figure
) -> None:
    cluster, began, ended = result_of(whose)
    lateness = cluster.sent.lateness()
    how = "the store's clock set an hour ahead and back" if whose == "the store's" else "hosts an hour slow and fast"
    what = f"runs lost, sent twice or off their grid; {how}"
    figure.runs("clocks", store, cluster.wrong(began, ended), len(cluster.sent.messages), what)
    figure.seconds("clocks", store, lateness[len(lateness) // 2], LATE_S, f"half of the runs are no later; {how}")
    cluster.judge(began, ended)
    # Cluster time is known to half a round trip, or to the time that a heartbeat takes to be read.
    assert lateness[0] >= -LATE_S, f"{lateness[0]:.3f} s{cluster.story()}"
    assert lateness[len(lateness) // 2] <= LATE_S, f"{lateness[len(lateness) // 2]:.3f} s{cluster.story()}"


@pytest.mark.parametrize("whose", ["redis", "redis+scan", "etcd", "consul"])
def test_a_host_whose_clock_is_wrong_says_so_once_and_once_when_it_is_right(
    whose: str, result_of: Callable[[str], Result]
) -> None:
    cluster = result_of(whose).cluster
    right, slow, fast = cluster.beats
    story = cluster.story()
    assert len(slow.lines("s behind cluster time")) == 1, story
    assert len(fast.lines("s ahead of cluster time")) == 2, story
    assert len(fast.lines("this host's clock agrees with cluster time again")) == 1, story
    assert not right.lines("this host's clock"), story


def test_a_host_that_is_set_ahead_goes_on_from_there_with_no_burst(
    result_of: Callable[[str], Result], figure: Figure
) -> None:
    cluster, _, ended = result_of("the host's")
    sent = cluster.sent
    how = "the host, whose clock is the store's too, set an hour ahead"
    figure.runs("clocks", "sqlite", len(sent.doubled()), len(sent.messages), f"runs sent twice; {how}")
    assert not sent.doubled(), f"{sent.doubled()}{cluster.story()}"
    assert not sent.confused(), cluster.story()
    # Behind the step there is the end of a hand-over, 10 s, to be sent, and the seconds since.
    ahead = [instant_us for name, instant_us in sent.messages if name == "second-0" and instant_us / 1e6 > ended]
    assert 1 <= len(ahead) <= 10 + 2 * STEP_S + 1, f"{len(ahead)}{cluster.story()}"
    assert max(ahead) >= (ended + HOUR_S - 2) * SECOND_US, cluster.story()
