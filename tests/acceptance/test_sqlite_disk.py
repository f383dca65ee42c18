"""SQLite on a disk that is full, which costs a call, or that may not be written to: the beat says what to do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.acceptance.at_once import at_once
from tests.acceptance.beat import Beat
from tests.acceptance.cluster import Cluster
from tests.acceptance.outages import Outage, full
from tests.acceptance.queue import RedisQueue
from tests.acceptance.small_disk import filled, mounted
from tests.servers import RedisServer

TTL_S = 2.0
#: Longer than anybody trusts a view, shorter than what the catch-up policy begins to count as missed.
OUTAGE_S = TTL_S + 2
#: Seconds after which a beat has noticed that it can write again, has joined and sends.
BACK_S = TTL_S + 1
#: The superuser may write to what is read-only, unless the right to do so is taken from it.
ORDINARY_USER = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if os.geteuid() == 0 else ()
MENDS = ("Make room on its disk", "Has its disk room")


class Result(NamedTuple):
    """What one run has come to."""

    cluster: Cluster
    began: float
    #: When each that noticed that it could not write had done so.
    gone_at: float
    ended: float
    #: Those that had to do without the store, and were there in the end.
    stayed: list[Beat]
    back_s: float


@pytest.fixture(scope="module")
def result_of(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Result]:
    def folder() -> Path:
        return tmp_path_factory.mktemp("store")

    return at_once(
        {
            "full": lambda: on_a_full_disk(folder(), RedisQueue(redis_server.url(path="/9"))),
            "read-only": lambda: on_a_read_only_one(folder(), RedisQueue(redis_server.url(path="/8"))),
        }
    )


def on_a_full_disk(folder: Path, queue: RedisQueue) -> Result:
    """Two beats run when it fills up."""
    with mounted(folder) as small, Cluster(store_in(folder), queue, entries=20, ttl_s=TTL_S) as cluster:
        beats = cluster.start(2)
        began = time.time()
        # Where nothing may be mounted, a limit on the size of files stands in for the disk's.
        with cluster.during(filled(folder) if small else full(beats)):
            time.sleep(2 * OUTAGE_S)
            stayed = [beat for beat in beats if beat.exit_code is None]
        back_s = cluster.wait_until_each_sends(beats, within_s=15) - cluster.outages[-1].until
        ended = time.time()
        cluster.settle(began, ended)
        return Result(cluster, began, ended, ended, stayed, back_s)


def on_a_read_only_one(folder: Path, queue: RedisQueue) -> Result:
    """A beat that has the file open goes on; one that is started again has to wait."""
    path = folder / "store.sqlite3"
    with Cluster(store_in(folder), queue, entries=20, ttl_s=TTL_S, prefix=ORDINARY_USER) as cluster:
        (beat,) = cluster.start()
        began = time.time()
        path.chmod(0o400)
        folder.chmod(0o500)
        cluster.wait_until_each_sends([beat], within_s=15)
        cluster.terminate(beat)
        beat.stop()
        beat.launch()

        def mend() -> None:
            folder.chmod(0o700)
            path.chmod(0o600)

        return without_a_store(cluster, [beat], Outage("store read-only", lambda: None, mend), began)


def store_in(folder: Path) -> str:
    return f"sqlite:///{folder}/store.sqlite3"


def without_a_store(cluster: Cluster, beats: list[Beat], outage: Outage, began: float) -> Result:
    with cluster.during(outage):
        deadline = time.monotonic() + 15
        while not all(beat.lines("the store does not answer") for beat in beats):
            assert time.monotonic() < deadline, cluster.story()
            time.sleep(0.02)
        gone_at = time.time()
        time.sleep(OUTAGE_S)
        stayed = [beat for beat in beats if beat.exit_code is None]
    back_s = cluster.wait_until_each_sends(beats, within_s=15) - cluster.outages[-1].until
    ended = time.time()
    cluster.settle(began, ended)
    return Result(cluster, began, gone_at, ended, [beat for beat in stayed if beat.exit_code is None], back_s)


@pytest.fixture(params=["full", "read-only"])
def result(request: pytest.FixtureRequest, result_of: Callable[[str], Result]) -> Result:
    return result_of(request.param)


def test_nothing_is_lost_and_nothing_doubled(result: Result) -> None:
    result.cluster.judge(result.began, result.ended)


def test_a_full_disk_holds_nothing_up(result_of: Callable[[str], Result]) -> None:
    cluster = result_of("full").cluster
    (away,) = cluster.outages
    worst_s = max(cluster.sent.delays(away.at, upto=away.until).values())
    assert worst_s <= 1.0, f"{worst_s:.1f} s{cluster.story()}"
    said = [line for beat in cluster.beats for line in beat.lines("going on with the room that its log has")]
    assert said, cluster.story()
    assert any(mend in said[0] for mend in MENDS), cluster.story()


def test_nothing_is_sent_while_nothing_can_be_written(result_of: Callable[[str], Result]) -> None:
    result = result_of("read-only")
    (away,) = result.cluster.outages
    sent = [one for one in result.cluster.queue.messages if result.gone_at + TTL_S < one.seen_at < away.until]
    assert not sent, f"{sent}{result.cluster.story()}"


def test_every_beat_stays_and_goes_on_by_itself(result: Result) -> None:
    assert result.stayed == result.cluster.beats, result.cluster.story()
    assert result.back_s <= BACK_S, f"{result.back_s:.1f} s{result.cluster.story()}"


def test_a_beat_says_once_what_is_wrong_and_how_to_mend_it_and_once_that_it_is_over(result: Result) -> None:
    cluster = result.cluster
    for beat in cluster.beats:
        said = beat.lines("the store does not answer")
        assert len(said) == len(beat.lines("the store answers again")) <= 1, f"{beat.name}{cluster.story()}"
        assert "Traceback" not in beat.said(), f"{beat.name}{cluster.story()}"


def test_a_beat_that_may_not_write_says_what_to_do(result_of: Callable[[str], Result]) -> None:
    cluster = result_of("read-only").cluster
    for beat in cluster.beats:
        (said,) = beat.lines("the store does not answer")
        assert "must be allowed to write the file and its directory" in said, f"{beat.name}{cluster.story()}"
