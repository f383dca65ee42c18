"""Catch-up: after an outage that is longer than a hand-over, each entry's policy says what becomes of what was missed.

An instant is missed that has been due for longer than a hand-over when the entry is claimed again. All younger ones
are sent, whatever the policy. Of what was missed ``all`` sends each, ``none`` nothing, and ``latest`` one run for all:
the newest, unless a younger instant is sent anyway.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.acceptance.at_once import at_once
from tests.acceptance.cluster import Cluster
from tests.acceptance.occurrences import Hurt, Sent
from tests.acceptance.outages import Outage, frozen, killed, locked
from tests.acceptance.queue import Message, Queue, RedisQueue
from tests.acceptance.rhythms import SECOND_US
from tests.figures import Figure
from tests.servers import ConsulServer, EtcdServer, RedisServer

#: The first test waits for all runs.
pytestmark = pytest.mark.timeout(240)
TTL_S = 2.0
#: What is younger is sent whatever the policy: twice the TTL or 10 s, the longer of them.
HAND_OVER_S = 10.0
OUTAGE_S = HAND_OVER_S + 6
#: Seconds from the claim of what an entry has missed until the first of it is seen in the queue, at most.
SENDING_S = 1.0
#: Seconds after the end of an outage until every beat sends again.
BACK_S = 15.0
POLICIES = ("all", "latest", "none")
#: Entries that are due now and then are due in three seconds of a minute, from one of these on.
TURNS = range(0, 60, 5)
#: So long before one of these an outage begins, in seconds: nobody trusts a view any more when it comes, and all three
#: runs have been missed when the outage is over.
BEFORE_TURN_S = TTL_S + 1.5
CASES = {
    "the Redis store killed": "redis+zset",
    "the etcd store frozen": "etcd",
    "the Consul store killed": "consul",
    "the SQLite store locked": "sqlite",
    "the broker killed": "sqlite",
}


class Entry(NamedTuple):
    """One entry with a policy of its own."""

    catch_up: str
    #: The seconds of each minute in which it is due.
    at: tuple[int, ...]

    @property
    def given(self) -> dict[str, str]:
        """What ``beat_schedule`` has of it."""
        return {"schedule": f"{','.join(map(str, self.at))} * * * * *", "catch_up": self.catch_up}

    def instants(self, after: float, upto: float) -> list[int]:
        """Return the instants in (after, upto], in whole seconds."""
        return [second for second in range(int(after) + 1, int(upto) + 1) if second % 60 in self.at]


def schedule() -> dict[str, Entry]:
    """Return those that are due all the time, and those that are due now and then, of each policy."""
    entries = {}
    for policy in POLICIES:
        entries[f"{policy}, each second"] = Entry(policy, tuple(range(60)))
        entries.update({f"{policy}, each 4 s from {nth}": Entry(policy, tuple(range(nth, 60, 4))) for nth in range(4)})
        entries.update({f"{policy}, at {turn} s": Entry(policy, (turn, turn + 1, turn + 2)) for turn in TURNS})
    return entries


ENTRIES = schedule()


class Result(NamedTuple):
    """What one run has come to, in seconds of the wall clock."""

    store: str
    cluster: Cluster
    began: float
    away: Hurt
    #: When every beat was sending again.
    back_at: float
    ended: float
    #: Whether the beats were all there in the end.
    stayed: bool
    vanished: list[Message]

    @property
    def settled(self) -> float:
        """Since when nothing could be claimed: until the end of trust a claim may have been on its way."""
        return self.away.at + TTL_S

    def sent(self, name: str) -> list[int]:
        """Return the instants of one entry that were sent, in whole seconds."""
        return sorted({one.instant_us // SECOND_US for one in self.cluster.queue.messages if one.entry == name})

    def claimed_again(self, name: str) -> tuple[float, float]:
        """Return between which moments somebody found out what was due of an entry after the outage."""
        away = self.away
        late = [
            one.seen_at
            for one in self.cluster.queue.messages
            if one.entry == name and self.settled < one.instant_us / SECOND_US < away.mended_from < one.seen_at
        ]
        return (max(away.mended_from, min(late) - SENDING_S), min(late)) if late else (away.mended_from, self.back_at)

    def judged(self, name: str) -> tuple[set[int], set[int]]:
        """Return which instants of an entry had to be sent and which had not to; of the others nothing is said."""
        entry = ENTRIES[name]
        if entry.catch_up == "all":
            return set(entry.instants(self.began, self.ended)), set()
        claimed_from, claimed_upto = self.claimed_again(name)
        due = entry.instants(self.settled, self.ended)
        missed = [at for at in due if at < claimed_from - HAND_OVER_S]
        younger = [at for at in due if claimed_from - HAND_OVER_S <= at <= claimed_from]
        fresh = [at for at in due if at >= claimed_upto - HAND_OVER_S]
        stands_for_all = missed[-1:] if entry.catch_up == "latest" and not younger else []
        # What fell due within the last second before the outage may not have been claimed any more.
        before = entry.instants(self.began, self.away.at - 1)
        return {*before, *fresh, *stands_for_all}, set(missed).difference(stands_for_all)


@pytest.fixture(scope="module")
def result_of(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Result]]:
    keeps_all = ("--appendonly", "yes", "--appendfsync", "no")
    redis, broker, etcd, consul = RedisServer(*keeps_all), RedisServer(*keeps_all), EtcdServer(), ConsulServer()

    def in_a_folder() -> Path:
        return tmp_path_factory.mktemp("store") / "store.sqlite3"

    def queue(number: int) -> Queue:
        return RedisQueue(redis_server.url(path=f"/{number}"))

    with ExitStack() as stack:
        for server in (redis, broker, etcd, consul):
            stack.enter_context(server)
        file = in_a_folder()
        runs: dict[str, tuple[str, Queue, Outage]] = {
            "the Redis store killed": (redis.url("redis+zset"), queue(9), killed("store", redis)),
            "the etcd store frozen": (etcd.url(), queue(8), frozen("store", etcd)),
            "the Consul store killed": (consul.url(), queue(7), killed("store", consul)),
            "the SQLite store locked": (f"sqlite:///{file}", queue(6), locked(file)),
            "the broker killed": (f"sqlite:///{in_a_folder()}", RedisQueue(broker.url()), killed("broker", broker)),
        }
        yield at_once({case: partial(away, CASES[case], *run) for case, run in runs.items()})


def away(store: str, url: str, queue: Queue, outage: Outage) -> Result:
    """Have a store, or the broker, away for longer than a hand-over under two beats."""
    with Cluster(url, queue, entries=2, ttl_s=TTL_S) as cluster:
        cluster.carry({name: entry.given for name, entry in ENTRIES.items()})
        beats = cluster.start(2)
        began = time.time()
        time.sleep(1)
        time.sleep(TURNS.step - (time.time() + BEFORE_TURN_S) % TURNS.step)
        with cluster.during(outage):
            time.sleep(OUTAGE_S)
        back_at = cluster.wait_until_each_sends(beats, BACK_S)
        time.sleep(1)
        ended = time.time()
        cluster.settle(back_at, ended)
        time.sleep(SENDING_S)
        stayed = all(beat.exit_code is None for beat in beats)
    return Result(store, cluster, began, cluster.outages[-1], back_at, ended, stayed, queue.vanished())


@pytest.fixture(params=CASES)
def result(request: pytest.FixtureRequest, result_of: Callable[[str], Result]) -> Result:
    return result_of(request.param)


@pytest.mark.parametrize("policy", POLICIES)
def test_what_was_missed_is_sent_by_policy_and_what_is_fresh_in_any_case(
    result: Result, policy: str, figure: Figure
) -> None:
    wrong, runs = {}, 0
    for name in (name for name, entry in ENTRIES.items() if entry.catch_up == policy):
        wanted, unwanted = result.judged(name)
        sent, runs = set(result.sent(name)), runs + len(wanted) + len(unwanted)
        if instants := [*(wanted - sent), *(unwanted & sent)]:
            wrong[name] = sorted(instants)
    promise = f"{result.away.kind.split()[0]} outage"
    what = f"runs against the catch-up policy, sent or not; {result.away.kind} for {OUTAGE_S:g} s"
    figure.runs(promise, result.store, sum(map(len, wrong.values())), runs, what)
    assert not wrong, f"{wrong}{result.cluster.story()}"


@pytest.mark.parametrize(("policy", "runs"), [("all", (0, 1, 2)), ("latest", (2,)), ("none", ())])
def test_of_an_entry_of_which_all_was_missed_the_policy_alone_decides(
    result: Result, policy: str, runs: tuple[int, ...]
) -> None:
    turn = round(result.away.at + BEFORE_TURN_S)
    sent = [at for at in result.sent(f"{policy}, at {turn % 60} s") if result.settled < at < result.ended]
    assert sent == [turn + nth for nth in runs], f"{sent}{result.cluster.story()}"


def test_nothing_comes_twice(result: Result) -> None:
    sent, story = Sent.of(result.cluster.queue.messages, {}), result.cluster.story()
    doubled = sent.doubled_without_cause(result.cluster.hurts)
    assert not doubled, f"{doubled}{story}"
    assert not (confused := sent.confused()), f"{', '.join(map(str, confused))}{story}"


def test_every_beat_stays_and_nothing_that_was_taken_vanishes(result: Result) -> None:
    assert result.stayed, result.cluster.story()
    assert not result.vanished, f"{result.vanished}{result.cluster.story()}"
