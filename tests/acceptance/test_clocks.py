"""Clocks: one that is an hour off, or is set an hour ahead or back, changes neither what is sent nor how often.

Nor does one that stands still: a machine that was suspended knows for how long it was away.

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
from tests.servers.fake_clock import FakeClock, PythonClock, SuspendedClock

TTL_S = 2.0
HOUR_S = 3600.0
#: Longer than a jump has to last before it is followed.
STEP_S = 3.5
#: The same of one back: until then the greatest of a clock's samples is from before.
STEP_BACK_S = STEP_S + 4 * TTL_S
#: Longer than it takes until others have a share, and less than what the catch-up policy begins to count as missed.
SUSPENDED_S = 3 * TTL_S
#: Seconds by which most of the runs may be late: those of a hand-over are later.
LATE_S = 0.25


class Result(NamedTuple):
    """What one run has come to."""

    cluster: Cluster
    began: float
    ended: float


@pytest.fixture(scope="module")
def result_of(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Result]]:
    right, zset, scan, etcd, consul = RedisServer(), RedisServer(), RedisServer(), EtcdServer(), ConsulServer()
    zset_clock, scan_clock = FakeClock(), FakeClock()
    zset.clock, scan.clock = zset_clock, scan_clock
    with ExitStack() as stack:
        for server in (right, zset, scan, etcd, consul):
            stack.enter_context(server)

        def queue(number: int) -> Queue:
            return RedisQueue(redis_server.url(path=f"/{number}"))

        # Not made in the threads, of which two would make the folder above them.
        ahead, back = tmp_path_factory.mktemp("ahead"), tmp_path_factory.mktemp("back")

        yield at_once(
            {
                "redis": lambda: with_wrong_clocks(redis_server.url(path="/5"), queue(9)),
                "redis+scan": lambda: with_wrong_clocks(redis_server.url("redis+scan", path="/3"), queue(2)),
                "etcd": lambda: with_wrong_clocks(etcd.url(), queue(4)),
                "consul": lambda: with_wrong_clocks(consul.url(), queue(8)),
                "the store's, zset": lambda: with_a_store_that_steps(zset.url(), queue(7), zset_clock),
                "the store's, scan": lambda: with_a_store_that_steps(scan.url("redis+scan"), queue(10), scan_clock),
                "the host's": lambda: with_a_host_that_steps(ahead, queue(6)),
                "the host's, back": lambda: with_a_host_that_is_set_back(back, queue(11)),
                "suspended": lambda: with_a_suspended_beat(right.url(), queue(12)),
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


def with_a_host_that_is_set_back(folder: Path, queue: Queue) -> Result:
    """The one clock that beats and store have in common is set an hour back, for a while."""
    clock = PythonClock()
    with Cluster(f"sqlite:///{folder}/store.sqlite3", queue, entries=20, ttl_s=TTL_S) as cluster:
        cluster.start(2, clocks=[clock, clock])
        began = time.time()
        time.sleep(1)
        clock.step_to(-HOUR_S)
        time.sleep(STEP_BACK_S)
        cluster.note("followed")
        clock.step_to(0.0)
        time.sleep(STEP_S)
        return over(cluster, began)


def with_a_suspended_beat(store: str, queue: Queue) -> Result:
    """The machine of one of two beats is suspended while it has claimed what it has yet to send."""
    clock = SuspendedClock()
    words = ("-A", "tests.acceptance.suspended_project", "beat", "-l", "INFO")
    with Cluster(store, queue, entries=40, ttl_s=TTL_S, hangs=True, fastest_s=2.0) as cluster:
        asleep, awake = cluster.start(2, words, clocks=[clock, SuspendedClock()])
        began = time.time()
        # At the next full second half of the entries are due, and nothing shortly before: that would be sent alone.
        cluster.queue.wait_for(lambda messages: any(m.entry == "interval-0" for m in messages), 10, "an interval's run")
        time.sleep(1.8 - time.time() % 1)
        asleep.hang()
        time.sleep(0.5)
        with cluster.stopped(asleep):
            since = time.monotonic()
            asleep.release()
            time.sleep(SUSPENDED_S)
            clock.step_to(since - time.monotonic())
        cluster.wait_until_each_sends([asleep, awake], within_s=15)
        return over(cluster, began)


def over(cluster: Cluster, began: float) -> Result:
    ended = time.time()
    cluster.settle(began, ended)
    return Result(cluster, began, ended)


@pytest.mark.parametrize(
    ("whose", "store"),
    [
        ("redis", "redis+zset"),
        ("redis+scan", "redis+scan"),
        ("etcd", "etcd"),
        ("consul", "consul"),
        ("the store's, zset", "redis+zset"),
        ("the store's, scan", "redis+scan"),
    ],
)
def test_an_hour_of_skew_and_steps_of_an_hour_lose_and_double_nothing(
    whose: str, store: str, result_of: Callable[[str], Result], figure: Figure
) -> None:
    cluster, began, ended = result_of(whose)
    lateness = cluster.sent.lateness()
    how = "the store's clock set an hour ahead and back" if "store" in whose else "hosts an hour slow and fast"
    what = f"runs lost, sent twice or off their grid; {how}"
    figure.runs("clocks", store, cluster.wrong(began, ended), len(cluster.sent.messages), what)
    figure.seconds("clocks", store, lateness[len(lateness) // 2], LATE_S, f"half of the runs are no later; {how}")
    cluster.judge(began, ended)
    # Cluster time is known to half a round trip, or to the time that a heartbeat takes to be read.
    assert lateness[0] >= -LATE_S, f"{lateness[0]:.3f} s{cluster.story()}"
    assert lateness[len(lateness) // 2] <= LATE_S, f"{lateness[len(lateness) // 2]:.3f} s{cluster.story()}"


@pytest.mark.parametrize("whose", ["the store's, zset", "the store's, scan"])
def test_a_store_that_is_set_ahead_forgets_its_nodes_and_they_join_anew(
    whose: str, result_of: Callable[[str], Result]
) -> None:
    cluster = result_of(whose).cluster
    for beat in cluster.beats:
        forgotten, joins = beat.lines("is no member any more"), beat.lines("joined redis")
        assert len(joins) == len(forgotten) + 1 > 1, cluster.story()


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


def test_a_host_that_is_set_back_waits_and_goes_on_when_it_is_right(
    result_of: Callable[[str], Result], figure: Figure
) -> None:
    cluster, began, ended = result_of("the host's, back")
    how = "the host, whose clock is the store's too, set an hour back for a while"
    messages = cluster.queue.messages
    figure.runs("clocks", "sqlite", cluster.wrong(began, ended), len(messages), f"runs lost or sent twice; {how}")
    cluster.judge(began, ended)
    (followed,) = cluster.hurts
    assert all(beat.lines("cluster time moves by -3600.0 s") for beat in cluster.beats), cluster.story()
    # All that would be due has run: in what its records say, an hour from now.
    early = [message for message in messages if followed.at < message.seen_at < followed.at + TTL_S / 2]
    assert not early, f"{early}{cluster.story()}"


def test_a_beat_that_was_suspended_does_not_go_by_the_trust_that_it_had(
    result_of: Callable[[str], Result], figure: Figure
) -> None:
    cluster, began, ended = result_of("suspended")
    asleep, awake = cluster.beats
    (hurt,) = cluster.hurts
    messages = cluster.queue.messages
    how = "one host of two suspended for three TTLs"
    figure.runs("clocks", "redis+zset", cluster.wrong(began, ended), len(messages), f"runs lost or sent twice; {how}")
    cluster.judge(began, ended)
    # It was in the middle of its work, which the other has taken over.
    resent = [message for message in messages if message.pid == awake.beat_pid and message.attempt > 1]
    assert len(resent) > 1, f"{resent}{cluster.story()}"
    missed = [
        occurrence
        for occurrence in cluster.sent.expected(hurt.at, hurt.until - TTL_S - 1)
        if cluster.sent.messages[occurrence][0].seen_at > hurt.until
    ]
    assert not missed, f"{missed}{cluster.story()}"
    # What was with the broker's client already cannot be called back.
    stale = [
        message
        for message in messages
        if message.pid == asleep.beat_pid and message.seen_at > hurt.until and message.instant_us < hurt.at * SECOND_US
    ]
    assert len(stale) <= 1, f"{stale}{cluster.story()}"
    joins = asleep.lines("joined redis")
    assert [join.endswith("#2") for join in joins] == [False, True], cluster.story()
