"""A beat that leaves, in whatever way and at whatever moment, loses no run and doubles none."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from celery_distsched import cron
from celery_distsched.agenda import Agenda
from tests.figures import Figure
from tests.scheduler.cluster import HOURLY, Cluster, Crash, now_us, until
from tests.servers import RedisServer
from tests.wire import Wire

NAMES = [f"entry {number}" for number in range(50)]

NewCluster = Callable[..., Cluster]


@pytest.fixture
def on_redis(new_cluster: NewCluster, redis_server: RedisServer) -> Cluster:
    """A cluster with a broker that is no part of this process."""
    return new_cluster(broker=redis_server.url(path="/7"), ttl_s=5.0)


def others_send_the_rest(cluster: Cluster) -> None:
    cluster.started(dict.fromkeys(NAMES, HOURLY))
    until(lambda: len(cluster.sent()) >= len(NAMES) and cluster.settled(*NAMES), why=cluster.sent)
    assert sorted(sent.entry for sent in cluster.sent()) == sorted(NAMES)
    assert {sent.attempt for sent in cluster.sent()} == {1}


@pytest.mark.parametrize("scheme", ["sqlite", "redis+scan", "redis+zset", "etcd", "consul"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_sigterm_between_claim_and_publish_or_confirm(
    on_redis: Cluster, tmp_path: Path, when: str, scheme: str, figure: Figure
) -> None:
    cluster, note = on_redis, tmp_path / "note"
    cluster.seed(*NAMES)
    beat = cluster.process(*NAMES, interrupt={"when": when, "at": 5, "note": str(note)})
    output, _ = beat.communicate(timeout=30)
    took_s = time.time() - float(note.read_text())
    assert beat.returncode == 0, output
    assert "Traceback" not in output
    # The message under way is finished, and nothing new is begun; what is left is free for others at once.
    assert len(cluster.sent()) == 5
    assert cluster.driver.members() == {}
    figure.seconds("hand-over", scheme, took_s, 1.0, f"its farewell, SIGTERM {when} a message of 50")
    assert took_s <= 1
    others_send_the_rest(cluster)
    sent = cluster.sent()
    wrong = len(NAMES) - len({one.entry for one in sent}) + len(sent) - len({one.task_id for one in sent})
    figure.runs("hand-over", scheme, wrong, len(NAMES), "runs lost or sent twice; SIGTERM in the middle of them")


@pytest.mark.parametrize(
    ("scheme", "fault"), [("redis+zset", "cut"), ("redis+zset", "frozen"), ("etcd", "frozen"), ("consul", "frozen")]
)
def test_sigterm_ends_beat_soon_though_the_store_is_gone(
    on_redis: Cluster, wired_store: Callable[[], tuple[Wire, str]], fault: str
) -> None:
    wire, url = wired_store()
    on_redis.seed("a")
    beat = on_redis.process("a", conf={"distsched_url": url})
    until(on_redis.sent)
    (wire.cut if fault == "cut" else wire.freeze)()
    time.sleep(0.3)
    began = time.monotonic()
    beat.terminate()
    output, _ = beat.communicate(timeout=30)
    took_s = time.monotonic() - began
    assert beat.returncode == 0, output
    assert "Traceback" not in output
    # A second of farewell, after half a second for a tick that is in the middle of something.
    assert took_s <= 2


@pytest.mark.parametrize("scheme", ["sqlite", "redis+zset"])
@pytest.mark.parametrize("broker", ["memory", "redis"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_close_from_inside_tick(new_cluster: NewCluster, redis_server: RedisServer, broker: str, when: str) -> None:
    cluster = new_cluster(broker="memory://" if broker == "memory" else redis_server.url(path="/7"), ttl_s=5.0)
    cluster.seed(*NAMES)
    beat = cluster.beat(dict.fromkeys(NAMES, HOURLY))
    published: list[str] = []

    def close_at_the_fifth(node: str, entry: str) -> None:
        published.append(entry)
        if len(published) == 5:
            beat.scheduler.close()

    (cluster.before_publish if when == "before" else cluster.after_publish)(close_at_the_fifth)
    beat.tick_until(lambda: len(published) >= 5)
    with pytest.raises(SystemExit):
        beat.tick()
    beat.scheduler.close()
    assert len(published) == 5
    assert cluster.driver.members() == {}
    others_send_the_rest(cluster)


@pytest.mark.parametrize("scheme", ["redis+zset"])
def test_close_from_inside_tick_sends_nothing_more_though_the_store_is_gone(
    cluster: Cluster, wired_store: Callable[[], tuple[Wire, str]]
) -> None:
    wire, url = wired_store()
    cluster.seed(*NAMES)
    beat = cluster.beat(dict.fromkeys(NAMES, HOURLY), distsched_url=url)
    published: list[str] = []

    def close_at_the_fifth(node: str, entry: str) -> None:
        published.append(entry)
        if len(published) == 5:
            wire.cut()
            beat.scheduler.close()

    cluster.after_publish(close_at_the_fifth)
    beat.tick_until(lambda: len(published) >= 5)
    # None of it could be confirmed, so all of it would be sent again.
    assert len(published) == 5


@pytest.mark.parametrize("scheme", ["redis+zset"])
def test_at_most_once_a_message_that_may_have_left_is_not_handed_back(
    on_redis: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = on_redis
    cluster.seed("a", "b")
    conf = {"distsched_delivery": "at_most_once"}
    beat = cluster.beat({"a": HOURLY, "b": HOURLY}, **conf)
    under_way: list[str] = []

    def close(node: str, entry: str) -> None:
        if node == beat.node:
            under_way.append(entry)
            # As Celery's handler does for a signal that has waited long enough.
            beat.scheduler.close()
            raise Crash

    cluster.before_publish(close)
    with pytest.raises(Crash):
        beat.tick_until(lambda: False)
    beat.scheduler.close()
    assert "possibly lost" in caplog.text
    (other,) = {"a", "b"} - set(under_way)
    cluster.started({"a": HOURLY, "b": HOURLY}, **conf)
    until(lambda: cluster.sent(other) and cluster.settled("a", "b"))
    assert len(cluster.sent(other)) == 1
    assert cluster.sent(under_way[0]) == []


@pytest.mark.parametrize("scheme", ["sqlite", "redis+zset"])
def test_a_handed_back_run_is_sent_at_once_by_a_node_that_is_there(new_cluster: NewCluster) -> None:
    cluster = new_cluster(ttl_s=12.0)
    cluster.seed(*NAMES)
    beat = cluster.beat(dict.fromkeys(NAMES, HOURLY))
    published: list[str] = []

    def close_at_the_fifth(node: str, entry: str) -> None:
        if node == beat.node:
            published.append(entry)
            if len(published) == 5:
                cluster.started({**dict.fromkeys(NAMES, HOURLY), "another": HOURLY})
                beat.scheduler.close()

    cluster.after_publish(close_at_the_fifth)
    beat.tick_until(lambda: len(published) >= 5)
    # Far less than a TTL.
    until(lambda: len(cluster.sent()) >= len(NAMES) and cluster.settled(*NAMES), within_s=5)
    assert sorted(sent.entry for sent in cluster.sent()) == sorted(NAMES)


@pytest.mark.parametrize("scheme", ["sqlite", "redis+scan", "redis+zset", "etcd", "consul"])
def test_what_nobody_else_could_send_is_given_up_and_counted(
    new_cluster: NewCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """The last beat with an entry leaves in the middle of a deploy that removes the entry."""
    cluster = new_cluster(ttl_s=5.0)
    cluster.seed(*NAMES)
    beat = cluster.beat(dict.fromkeys(NAMES, HOURLY))
    kept, published = NAMES[:25], list[str]()

    def close_at_the_first(node: str, entry: str) -> None:
        if node == beat.node and not published:
            published.append(entry)
            cluster.started(dict.fromkeys(kept, HOURLY))
            # It reads who is there: its heart beats on while its loop is in here.
            until(lambda: len({info.digest for info in beat.inner.pool.view.alive.values()}) == 2)
            beat.scheduler.close()

    cluster.after_publish(close_at_the_first)
    beat.tick_until(lambda: published)
    sent = {published[0], *kept}
    until(lambda: len(cluster.sent()) >= len(sent) and cluster.settled(*NAMES), within_s=5)
    assert {one.entry for one in cluster.sent()} == sent
    lost = [line for line in caplog.messages if "no other live one has the entry): it is not sent again" in line]
    assert {line.split("'")[1] for line in lost} == set(NAMES) - sent
    assert beat.counts["possibly lost"] == len(lost)


@pytest.mark.parametrize("scheme", ["sqlite", "redis+scan", "redis+zset", "etcd", "consul"])
def test_a_beat_that_leaves_serves_its_share_until_the_others_have_it(
    new_cluster: NewCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = new_cluster(ttl_s=5.0)
    every_second = {name: {"task": "nobody.runs.it", "schedule": cron("* * * * * *")} for name in NAMES}
    other = cluster.started(every_second)
    beat = cluster.beat(every_second)
    beat.tick_until(lambda: beat.ready and all(len(one.inner.pool.view.ring.nodes) == 2 for one in (beat, other)))
    # It finds out long after the next second that somebody has left.
    step, polled_at = other.inner.heartbeat.step, other.inner.pool.view.polled_at
    monkeypatch.setattr(other.inner.heartbeat, "step", lambda: max(step(), 2.0))
    beat.tick_until(lambda: other.inner.pool.view.polled_at > polled_at)
    beat.tick_until(lambda: 0 < beat.inner.dispatch.next_s() < 0.2)
    closed_us, share = now_us(), set(beat.inner.dispatch._agenda.share)
    beat.scheduler.close()
    assert share
    assert {one.entry for one in cluster.sent() if one.node == beat.node and one.instant_us > closed_us} == share
    assert list(cluster.driver.members()) == [other.inner.pool.view.me]
    # And then the other has it, without a gap.
    until(lambda: {one.entry for one in cluster.sent() if one.instant_us > closed_us + 2_000_000} >= share)
    assert len(cluster.sent()) == len({one.task_id for one in cluster.sent()})
    for entry in share:
        instants = sorted(one.instant_us for one in cluster.sent(entry))
        assert instants == list(range(instants[0], instants[-1] + 1, 1_000_000))


@pytest.mark.parametrize("scheme", ["sqlite"])
def test_a_beat_that_is_asked_to_stop_while_it_takes_on_a_schedule_does_not_serve_half_of_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    schedule = dict.fromkeys(NAMES, HOURLY)
    heir, leaving = cluster.started(schedule), cluster.beat(schedule)
    leaving.tick_until(lambda: leaving.ready and len(leaving.inner.pool.view.ring.nodes) == 2)

    def asked_to_stop(agenda: Agenda, removed: Any, added: Any) -> None:
        for name in agenda.share & removed:
            agenda.timetable.set(name, 0)
        leaving.scheduler.close()
        raise SystemExit(0)

    monkeypatch.setattr(Agenda, "changed", asked_to_stop)
    leaving.scheduler.schedule.clear()
    with pytest.raises(SystemExit):
        leaving.tick()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    until(lambda: leaving.node not in str(cluster.driver.members()))
    assert heir.failure is None


@pytest.mark.parametrize("scheme", ["sqlite", "redis+zset"])
def test_a_second_signal_ends_the_handing_over(
    new_cluster: NewCluster, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = new_cluster(ttl_s=5.0)
    every_second = {name: {"task": "nobody.runs.it", "schedule": cron("* * * * * *")} for name in NAMES}
    other, beat = cluster.started(every_second), cluster.beat(every_second)

    def close(*signal_: object) -> None:
        """What Celery's handler does."""
        beat.scheduler.close()
        raise SystemExit(0)

    request.addfinalizer(partial(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, close)))
    beat.tick_until(lambda: beat.ready and all(len(one.inner.pool.view.ring.nodes) == 2 for one in (beat, other)))
    # Soon enough to be waited for.
    beat.tick_until(lambda: 0.3 < beat.inner.dispatch.next_s() < 0.45)
    closed_us, share = now_us(), set(beat.inner.dispatch._agenda.share)
    again = threading.Timer(0.1, signal.pthread_kill, (threading.get_ident(), signal.SIGTERM))
    again.start()
    with pytest.raises(SystemExit):
        close()
    assert list(cluster.driver.members()) == [other.inner.pool.view.me]
    until(lambda: {one.entry for one in cluster.sent() if one.instant_us > closed_us} >= share)
    assert {one.node for one in cluster.sent() if one.instant_us > closed_us} == {other.node}
    assert len(cluster.sent()) == len({one.task_id for one in cluster.sent()})
    assert "could not say goodbye" not in caplog.text


FORKING = """
    import json, os, sys, time
    from tests.scheduler.cluster import HOURLY, Cluster

    cluster = Cluster(sys.argv[1], broker=sys.argv[2])
    beat = cluster.beat({"a": HOURLY})
    beat.tick_until(lambda: beat.ready)
    before, driver = beat.node, beat.scheduler.driver
    told, tell = os.pipe()
    if os.fork() == 0:
        beat.tick_until(lambda: beat.ready)
        os.write(tell, json.dumps([beat.node, os.getpid(), beat.scheduler.driver is driver]).encode())
        over = time.monotonic() + 1
        beat.tick_until(lambda: time.monotonic() > over)
        beat.scheduler.close()
        os._exit(0)
    os.set_blocking(told, False)
    heard = []
    def hear():
        try:
            heard.append(json.loads(os.read(told, 1000)))
        except BlockingIOError:
            pass
        return heard
    beat.tick_until(hear)
    members = sorted(membership.rpartition("#")[0] for membership in cluster.driver.members())
    beat.tick_until(lambda: os.waitpid(-1, os.WNOHANG)[0])
    print(json.dumps([before, beat.node, os.getpid(), heard[0], members, list(cluster.driver.members())]))
    cluster.close()
"""


@pytest.mark.parametrize("scheme", ["sqlite", "redis+zset", "consul"])
def test_a_fork_gets_another_identity(cluster: Cluster, redis_server: RedisServer) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FORKING), cluster.url, redis_server.url(path="/7")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    before, after, parent, (forked, child, same_driver), members, left = json.loads(ran.stdout)
    assert before == after
    assert f"-{parent}-" in before
    assert f"-{child}-" in forked
    assert not same_driver
    assert members == sorted([before, forked])
    # The fork's farewell was its own.
    assert [membership.rpartition("#")[0] for membership in left] == [before]


@pytest.mark.parametrize("scheme", ["redis+scan", "redis+zset", "etcd", "consul"])
def test_no_local_file_is_needed_with_a_server(on_redis: Cluster, tmp_path: Path, scheme: str, figure: Figure) -> None:
    on_redis.seed("a")
    where = tmp_path / "empty"
    where.mkdir()
    beat = on_redis.process(
        "a",
        cwd=where,
        env={"HOME": str(where), "TMPDIR": str(where), "PYTHONDONTWRITEBYTECODE": "1"},
        # Any write to any file fails.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
    )
    until(lambda: on_redis.sent() and on_redis.settled("a"))
    beat.terminate()
    output, _ = beat.communicate(timeout=30)
    assert beat.returncode == 0, output
    files = list(where.iterdir())
    figure.runs("nothing local", scheme, len(files), len(on_redis.sent()), "files for a run; no file could be written")
    assert files == []


@pytest.mark.parametrize("scheme", ["sqlite"])
def test_the_embedded_store_needs_no_file_but_its_own(on_redis: Cluster, tmp_path: Path, figure: Figure) -> None:
    on_redis.seed("a")
    where = tmp_path / "empty"
    where.mkdir()
    beat = on_redis.process(
        "a", cwd=where, env={"HOME": str(where), "TMPDIR": str(where), "PYTHONDONTWRITEBYTECODE": "1"}
    )
    until(lambda: on_redis.sent() and on_redis.settled("a"))
    beat.terminate()
    output, _ = beat.communicate(timeout=30)
    assert beat.returncode == 0, output
    files = [file for file in tmp_path.rglob("*") if file != where and not file.name.startswith("store.sqlite3")]
    figure.runs("nothing local", "sqlite", len(files), len(on_redis.sent()), "files for a run beside the store's own")
    assert files == []
