"""Rolling deploy: beats of two releases side by side run every entry that a live one knows, as the newest has it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import pytest

from tests.acceptance.at_once import at_once
from tests.acceptance.beat import Beat
from tests.acceptance.cluster import Cluster, wait_for_a_burst
from tests.acceptance.occurrences import Sent
from tests.acceptance.queue import RedisQueue
from tests.acceptance.rhythms import SECOND_US, Rhythm
from tests.figures import Figure
from tests.servers import RedisServer

#: The first test waits for all runs.
pytestmark = pytest.mark.timeout(240)
TTL_S = 2.0
#: Seconds within which whatever befalls a beat is made good by the others.
BOUND_S = TTL_S + 1
#: Seconds from the moment at which a release's first beat is live until an entry that it brings is first sent, which is
#: due every second.
START_S = 2.0
#: Seconds before the last beat that knows an entry is asked to end: what falls due then need not have been sent by it.
LAST_S = 1.0
#: Seconds within which the beats of two releases may disagree which is the newer one.
SETTLE_S = 1.0
#: With the start of a beat longer than a hand-over: an entry that comes back after that has been away.
AWAY_S = 10.0
STORES = ("redis+zset", "sqlite")

BY_THE_CLOCK, INTERVAL = "* * * * * *", 1.0
#: Several of each kind, so that every beat has some.
NUMBERS = range(3)
CHANGED = [f"changed-{number}" for number in NUMBERS]
#: One of these is the other under a new name.
OLD_NAMES, NEW_NAMES = ([f"{release} name-{number}" for number in NUMBERS] for release in ("old", "new"))
REMOVED, ADDED = ([f"{what}-{number}" for number in NUMBERS] for what in ("removed", "added"))
#: How often these run, in seconds.
EVERY_S = {"old": 1.0, "new": 1.5}
#: What each release has beside the entries that are kept as they are; all but the changed ones run every second.
RELEASES: dict[str, dict[str, float | str]] = {
    "old": {
        **dict.fromkeys(CHANGED, EVERY_S["old"]),
        **dict.fromkeys(OLD_NAMES, INTERVAL),
        **dict.fromkeys(REMOVED, BY_THE_CLOCK),
    },
    "new": {
        **dict.fromkeys(CHANGED, EVERY_S["new"]),
        **dict.fromkeys(NEW_NAMES, INTERVAL),
        **dict.fromkeys(ADDED, BY_THE_CLOCK),
    },
}


class Deploy(NamedTuple):
    """The beats of one release replaced by those of another, one at a time; wall clock in seconds."""

    release: str
    beats: Sequence[Beat]
    #: Before the first new one was started.
    began: float
    #: When it had sent something.
    live_at: float
    #: When the last old one was asked to end, and when it had ended.
    asked_at: float
    over_at: float


class Result(NamedTuple):
    """What one store's run has come to."""

    store: str
    cluster: Cluster
    began: float
    ended: float
    #: The new release, and back to the old one.
    there: Deploy
    back: Deploy

    def sent(self, rhythms: Mapping[str, Rhythm], after: float = 0.0, upto: float = float("inf")) -> Sent:
        """Return what was sent of these entries for instants between two moments."""
        messages = [
            one
            for one in self.cluster.queue.messages
            if one.entry in rhythms and after * SECOND_US < one.instant_us <= upto * SECOND_US
        ]
        return Sent.of(messages, rhythms)

    def lives(self) -> list[tuple[str, float, float, float]]:
        """Return name, birth and end of each life of the entries that only one release has, and the start of the next.

        Born is an entry when the first beat that knows it is live; its life ends when the last one is asked to end.
        """
        never = float("inf")
        there, back = self.there, self.back
        return [
            *((name, self.began, there.asked_at, back.began) for name in [*REMOVED, *OLD_NAMES]),
            *((name, there.live_at, back.asked_at, never) for name in [*ADDED, *NEW_NAMES]),
            *((name, back.live_at, never, never) for name in [*REMOVED, *OLD_NAMES]),
        ]


@pytest.fixture(scope="module")
def result_of(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Result]]:
    def run(nth: int, store: str, url: str) -> Result:
        return there_and_back(store, url, RedisQueue(redis_server.url(path=f"/{9 - nth}")))

    with RedisServer() as server:
        urls = (server.url("redis+zset"), f"sqlite:///{tmp_path_factory.mktemp('store')}/store.sqlite3")
        pairs = enumerate(zip(STORES, urls, strict=True))
        yield at_once({store: lambda n=nth, s=store, u=url: run(n, s, u) for nth, (store, url) in pairs})  # type: ignore[misc]


def there_and_back(store: str, url: str, queue: RedisQueue) -> Result:
    """Deploy a release under three beats of the one before, and roll it back when what it removed has been away."""
    with Cluster(url, queue, entries=12, ttl_s=TTL_S) as cluster:
        cluster.carry(carried("old"))
        beats = cluster.start(3)
        # Or the first run of an entry that the new release changes might be of the new release.
        every = {*cluster.rhythms, *carried("old")} - {"minute"}
        queue.wait_for(lambda messages: {one.entry for one in messages} >= every, within_s=10, what="of each entry")
        began = time.time()
        there = deployed(cluster, beats, "new")
        time.sleep(AWAY_S)
        back = deployed(cluster, there.beats, "old")
        time.sleep(START_S + SETTLE_S)
        ended = time.time()
        cluster.settle(began, ended)
        time.sleep(SETTLE_S)
    return Result(store, cluster, began, ended, there, back)


def deployed(cluster: Cluster, old: Sequence[Beat], release: str) -> Deploy:
    """Start a beat of this release for each old one, which then ends: one by `kill -9`, the others by SIGTERM."""
    cluster.carry(carried(release))
    began = time.time()
    first, killed, last = old
    new = cluster.start()
    live_at = time.time()
    cluster.terminate(first)
    new += cluster.start()
    wait_for_a_burst()
    taken_over_at = cluster.kill(killed).at + BOUND_S + 0.5
    new += cluster.start()
    # What only it and the last one know, the last one has to take over; and what has just fallen due is sent by then.
    time.sleep(max(0.0, taken_over_at - time.time()))
    time.sleep((1.5 - time.time() % 1) % 1)
    asked = cluster.terminate(last)
    return Deploy(release, new, began, live_at, asked.at, asked.until)


def carried(release: str) -> dict[str, dict[str, Any]]:
    return {name: {"schedule": schedule} for name, schedule in RELEASES[release].items()}


def rhythm(name: str) -> Rhythm:
    schedule = {**RELEASES["old"], **RELEASES["new"]}[name]
    return Rhythm(schedule, SECOND_US, by_the_clock=isinstance(schedule, str))


@pytest.fixture(params=STORES)
def result(request: pytest.FixtureRequest, result_of: Callable[[str], Result]) -> Result:
    return result_of(request.param)


def test_what_both_releases_have_loses_nothing(result: Result, figure: Figure) -> None:
    sent, story = result.sent(result.cluster.rhythms), result.cluster.story()
    lost, runs = sent.lost(result.began, result.ended), sent.expected(result.began, result.ended)
    what = "runs lost; three beats replaced one by one by those of a newer release and back, kill -9 twice"
    figure.runs("versions", result.store, len(lost), len(runs), what)
    assert not lost, f"lost: {', '.join(map(str, lost))}{story}"
    assert not (strays := sent.strays()), f"for no instant: {', '.join(map(str, strays))}{story}"


def test_nothing_comes_twice_but_for_what_a_killed_beat_could_not_confirm(result: Result) -> None:
    sent, story = Sent.of(result.cluster.queue.messages, {}), result.cluster.story()
    doubled = sent.doubled_without_cause(result.cluster.hurts)
    assert not doubled, f"{doubled}{story}"
    assert not (confused := sent.confused()), f"{', '.join(map(str, confused))}{story}"


def test_an_entry_of_one_release_runs_at_all_its_instants_while_a_beat_that_knows_it_lives(result: Result) -> None:
    for name, born_at, ended_at, again_at in result.lives():
        sent = result.sent({name: rhythm(name)}, after=born_at, upto=again_at)
        first = min((occurrence.instant_us / SECOND_US for occurrence in sent.messages), default=float("inf"))
        assert first <= born_at + START_S, f"{name}: not before {first}{result.cluster.story()}"
        lost = sent.lost(first, min(ended_at - LAST_S, result.ended))
        assert not lost, f"lost: {', '.join(map(str, lost))}{result.cluster.story()}"
        assert not (strays := sent.strays()), f"for no instant: {', '.join(map(str, strays))}{result.cluster.story()}"


def test_an_entry_stops_when_no_beat_knows_it_and_runs_nothing_of_that_time_when_it_is_back(result: Result) -> None:
    there, back = result.there, result.back
    absent = {
        **dict.fromkeys([*REMOVED, *OLD_NAMES], (there.over_at, back.began)),
        **dict.fromkeys([*ADDED, *NEW_NAMES], (back.over_at, float("inf"))),
    }
    for one in result.cluster.queue.messages:
        gone_at, back_at = absent.get(one.entry, (float("inf"), float("inf")))
        assert not gone_at < one.instant_us / SECOND_US < back_at, f"{one}{result.cluster.story()}"
        # By then it has been seen in the queue, too.
        assert not gone_at + 0.5 < one.seen_at < back_at, f"{one}{result.cluster.story()}"


@pytest.mark.parametrize("name", CHANGED)
def test_a_changed_entry_runs_as_the_newest_live_beats_have_it(result: Result, name: str) -> None:
    there, back, story = result.there, result.back, result.cluster.story()
    messages = result.sent({name: rhythm(name)}).messages
    runs = sorted(occurrence.instant_us / SECOND_US for occurrence in messages)
    # Each run is one interval after the one before, by the version that claims it.
    steps = {later: round(later - earlier, 6) for earlier, later in pairwise(runs)}
    odd = {later: step_s for later, step_s in steps.items() if step_s not in EVERY_S.values()}
    assert not odd, f"seconds since the run before: {odd}{story}"
    assert runs[0] <= result.began + EVERY_S["old"], story
    assert runs[-1] >= result.ended - EVERY_S["old"], story
    for release, beats, after, upto in (
        ("new", there.beats, there.live_at + SETTLE_S, back.began),
        ("old", back.beats, back.live_at + SETTLE_S, result.ended),
    ):
        reign = {later: step_s for later, step_s in steps.items() if after < later <= upto}
        assert set(reign.values()) == {EVERY_S[release]}, f"{release}: {reign}{story}"
        pids = {one.pid for at, sent in messages.items() if at.instant_us / SECOND_US in reign for one in sent}
        assert pids <= {beat.beat_pid for beat in beats}, f"{release}: {pids}{story}"


def test_no_run_waits_longer_than_a_takeover(result: Result, figure: Figure) -> None:
    since = [one for one in result.cluster.queue.messages if one.instant_us > result.began * SECOND_US]
    latest_s = Sent.of(since, {}).lateness()[-1]
    figure.seconds("versions", result.store, latest_s, BOUND_S, "the latest run of all in a deploy and back")
    assert latest_s <= BOUND_S, f"{latest_s:.2f} s{result.cluster.story()}"


def test_every_beat_that_is_asked_to_ends_in_good_order(result: Result) -> None:
    killed = {hurt.pid for hurt in result.cluster.hurts if hurt.kind == "kill -9"}
    codes = {beat.name: beat.exit_code for beat in result.cluster.beats if beat.beat_pid not in killed}
    assert set(codes.values()) == {0}, f"{codes}{result.cluster.story()}"
    assert "Traceback" not in result.cluster.story(), result.cluster.story()
