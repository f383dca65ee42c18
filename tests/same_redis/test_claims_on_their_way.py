"""While the store works on claims, what was claimed before is sent: never what is not known to be won."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest

from celery_distsched.drivers import Answer, Swap
from celery_distsched.errors import StoreUnavailable
from celery_distsched.record import Record
from tests.scheduler.cluster import HOURLY, Beat, Cluster
from tests.servers import RedisServer

#: Four slices.
NAMES = [f"entry {number}" for number in range(2000)]
Answers = Callable[[], list[Answer]]


@pytest.fixture
def cluster(redis_server: RedisServer) -> Iterator[Cluster]:
    cluster = Cluster("memory://claims", broker=redis_server.url(path="/6"), ttl_s=5.0)
    cluster.seed(*NAMES)
    yield cluster
    cluster.close()


def all_sent_by(cluster: Cluster, slowly: Callable[[Sequence[Swap], Answers], list[Answer]]) -> None:
    """Let a beat send all that is due, over a store that answers later.

    Args:
        cluster: With nothing sent.
        slowly: Given the claims of a slice and what does the swap, returns what the store answers, when asked for it.
    """
    beat = Beat(cluster.app(dict.fromkeys(NAMES, HOURLY)))
    driver = beat.scheduler.driver

    def swapping(swaps: Sequence[Swap], fence: str | None = None) -> Answers:
        return lambda: slowly(claims_in(swaps), lambda: driver.swap(swaps, fence))

    driver.swapping = swapping
    try:
        beat.tick_until(lambda: cluster.settled(*NAMES), within_s=30)
    finally:
        beat.close()


def claims_in(swaps: Sequence[Swap]) -> list[Swap]:
    return [swap for swap in swaps if swap.expected and Record.parse(swap.new).open]


def test_nothing_is_sent_before_its_claim_is_won(cluster: Cluster) -> None:
    at_each_answer = list[int]()

    def slowly(claims: Sequence[Swap], swap: Answers) -> list[Answer]:
        sent = {message.entry for message in cluster.sent()}
        if claims:
            at_each_answer.append(len(sent))
            assert sent.isdisjoint(claim.key for claim in claims)
        return swap()

    all_sent_by(cluster, slowly)
    sent = cluster.sent()
    assert sorted(message.entry for message in sent) == sorted(NAMES)
    assert all(message.attempt == 1 for message in sent)
    # What the slice before had won was sent between the beginning of these claims and their answers.
    assert any(at_each_answer), at_each_answer


def test_what_another_node_wins_meanwhile_is_not_sent(cluster: Cluster) -> None:
    taken = list[str]()

    def slowly(claims: Sequence[Swap], swap: Answers) -> list[Answer]:
        if claims:
            # Of each slice, one; the rival has confirmed it by now.
            theirs = claims[len(claims) // 2]
            last = Record.parse(theirs.new).last
            assert cluster.driver.swap([Swap(theirs.key, theirs.expected, Record(last).text())])[0].won
            taken.append(theirs.key)
        return swap()

    all_sent_by(cluster, slowly)
    assert len(taken) > 1
    assert sorted(message.entry for message in cluster.sent()) == sorted(set(NAMES) - set(taken))


@pytest.mark.parametrize("done", [True, False], ids=["done", "not done"])
def test_claims_whose_answers_are_lost_are_neither_lost_nor_sent_twice(cluster: Cluster, done: bool) -> None:
    lost = list[int]()

    def slowly(claims: Sequence[Swap], swap: Answers) -> list[Answer]:
        if claims and len(lost) < 2:
            lost.append(len(claims))
            if done:
                swap()
            raise StoreUnavailable("the answer was lost")
        return swap()

    all_sent_by(cluster, slowly)
    sent = cluster.sent()
    assert len(lost) == 2
    assert sorted(message.entry for message in sent) == sorted(NAMES)
    assert all(message.attempt == 1 for message in sent)
