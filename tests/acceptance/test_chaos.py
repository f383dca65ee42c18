"""Three beats, a kill, a join, a pause and an orderly end, on every store: nothing is lost, nothing comes twice."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import pytest

from tests.acceptance.cluster import Cluster, wait_for_a_burst
from tests.acceptance.conftest import SERVERS
from tests.acceptance.occurrences import Hurt, Sent
from tests.acceptance.queue import Queue
from tests.figures import Figure

TTL_S = 2.0
#: Seconds that finding out about a death and taking over may take beside the TTL: one, but where this says otherwise.
TAKEOVER_S = {"etcd": 1.5}


class Chaos(NamedTuple):
    """What one run has come to."""

    store: str
    #: The wall clock between these, in seconds, is what is judged.
    began: float
    ended: float
    sent: Sent
    #: In order: the first beat is killed, the second frozen, the third asked to end, the fifth killed.
    hurts: list[Hurt]
    #: Of the beat that was asked to end.
    exit_code: int | None
    story: str

    @property
    def hurt(self) -> str:
        """What was done."""
        return f"three beats and two that came: {', '.join(hurt.kind for hurt in self.hurts)}"

    def worst_delay(self, hurt: Hurt, within_s: float) -> float:
        """Return the longest delay, in seconds, of what was due until so long after an event."""
        return max(self.sent.delays(hurt.at, upto=hurt.at + within_s).values())


@pytest.fixture(scope="module", params=SERVERS)
def chaos(request: pytest.FixtureRequest, store_url: Callable[[str], str], queue: Queue) -> Chaos:
    store: str = request.param
    with Cluster(store_url(store), queue, entries=60, ttl_s=TTL_S) as cluster:
        first, second, third = cluster.start(3)
        began = time.time()
        wait_for_a_burst()
        cluster.kill(first)
        time.sleep(TTL_S + 2)
        cluster.start()
        cluster.wait_until_sending(second)
        cluster.freeze(second, seconds=TTL_S + 1.5)
        cluster.wait_until_sending(third)
        cluster.terminate(third)
        time.sleep(1.5)
        (fifth,) = cluster.start()
        wait_for_a_burst()
        cluster.kill(fifth)
        time.sleep(TTL_S + 1.5)
        ended = time.time()
        cluster.settle(began, ended)
    return Chaos(store, began, ended, cluster.sent, cluster.hurts, third.exit_code, cluster.story())


def test_no_occurrence_is_lost(chaos: Chaos, figure: Figure) -> None:
    lost = chaos.sent.lost(chaos.began, chaos.ended)
    expected = chaos.sent.expected(chaos.began, chaos.ended)
    figure.runs("at least once", chaos.store, len(lost), len(expected), f"runs lost; {chaos.hurt}")
    assert not lost, f"{len(lost)} lost: {', '.join(map(str, lost))}{chaos.story}"
    assert not (strays := chaos.sent.strays()), f"sent for no instant: {', '.join(map(str, strays))}{chaos.story}"


def test_an_occurrence_has_one_task_id(chaos: Chaos) -> None:
    confused = chaos.sent.confused()
    assert not confused, f"{', '.join(map(str, confused))}{chaos.story}"


def test_an_occurrence_comes_twice_only_where_its_sender_could_not_confirm_it(chaos: Chaos, figure: Figure) -> None:
    doubled = chaos.sent.doubled_without_cause(chaos.hurts)
    resent, runs = len(chaos.sent.doubled()) - len(doubled), len(chaos.sent.messages)
    figure.runs(
        "one claim",
        chaos.store,
        len(doubled),
        runs,
        f"runs that came twice though one sender could have confirmed; {chaos.hurt}",
    )
    figure.also("at least once", chaos.store, resent, runs, "runs sent again, since their sender could not confirm")
    assert not doubled, f"{doubled}{chaos.story}"


def test_what_nothing_hinders_comes_on_time_and_nothing_before(chaos: Chaos) -> None:
    lateness = chaos.sent.lateness()
    # The time of a store is known to half a round trip.
    assert lateness[0] >= -0.1, chaos.story
    assert lateness[len(lateness) // 2] <= 0.25, chaos.story


@pytest.mark.parametrize("which", [0, 3], ids=["the first", "the last"])
def test_a_killed_beats_share_fires_elsewhere_in_time(chaos: Chaos, which: int, figure: Figure) -> None:
    killed = chaos.hurts[which]
    assert killed.kind == "kill -9"
    bound_s = TTL_S + TAKEOVER_S.get(chaos.store, 1.0)
    worst_s = chaos.worst_delay(killed, bound_s)
    figure.seconds("failover", chaos.store, worst_s, bound_s, "the latest run of what kill -9 left")
    assert worst_s <= bound_s, chaos.story


def test_a_frozen_beats_share_fires_elsewhere_in_time(chaos: Chaos, figure: Figure) -> None:
    frozen = chaos.hurts[1]
    assert frozen.kind == "SIGSTOP"
    # A beat that is frozen in the middle of a write keeps the lock of an SQLite file until it is thawed.
    frozen_s = frozen.until - frozen.at if chaos.store == "sqlite" else 0.0
    bound_s = max(TTL_S, frozen_s) + TAKEOVER_S.get(chaos.store, 1.0)
    worst_s = chaos.worst_delay(frozen, bound_s)
    figure.seconds("trust", chaos.store, worst_s, bound_s, "the latest run of what SIGSTOP held up")
    assert worst_s <= bound_s, chaos.story


def test_after_sigterm_a_beats_share_fires_elsewhere_within_a_second(chaos: Chaos, figure: Figure) -> None:
    terminated = chaos.hurts[2]
    assert terminated.kind == "SIGTERM"
    worst_s = chaos.worst_delay(terminated, within_s=1.5)
    figure.seconds("hand-over", chaos.store, worst_s, 1.0, "the latest run of what SIGTERM handed over")
    assert worst_s <= 1.0, chaos.story


def test_a_beat_ends_in_good_order_on_sigterm(chaos: Chaos) -> None:
    assert chaos.exit_code == 0, chaos.story
    terminated = chaos.hurts[2]
    assert terminated.until - terminated.at <= 2.0 * terminated.stretch, chaos.story
