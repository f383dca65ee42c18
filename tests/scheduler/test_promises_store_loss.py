"""Promise 5: a store that comes back without its data is noticed and refilled from what the nodes remember."""

from __future__ import annotations

import shutil
import sqlite3
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from celery_distsched.drivers import Swap
from celery_distsched.record import Record
from celery_distsched.store_loss import _KEY as GENERATION
from celery_distsched.store_loss import Generation
from tests.figures import Figure
from tests.scheduler.cluster import HOUR_US, HOURLY, Cluster, in_s, now_us, until
from tests.servers import ConsulServer, EtcdServer, RedisServer, Server

STORES = ("sqlite", "redis+zset", "redis+scan")
#: A server of these does not say that it is another one.
NAMELESS = ("etcd", "consul")
NAMES = [f"entry {number}" for number in range(12)]
OTHERS = Generation("another", "", 0, new=False)


@pytest.fixture
def ttl_s(scheme: str) -> float:
    # etcd makes every shorter lease one of 2 s.
    return 2.0 if scheme == "etcd" else 1.0


@pytest.fixture
def lose(scheme: str, cluster: Cluster, request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Lose the cluster's ``ledger``, or ``everything`` of it."""

    def in_sqlite(what: str) -> None:
        with sqlite3.connect(Path(cluster.driver.url.path[1:])) as db:
            for table in ("ledger",) if what == "ledger" else ("ledger", "node"):
                db.execute(f"DELETE FROM {table} WHERE namespace = ?", (cluster.namespace,))
        db.close()

    def in_redis(what: str) -> None:
        server = request.getfixturevalue("redis_server")
        with redis.Redis(port=server.port) as client:
            pattern = f"distsched:{{{cluster.namespace}}}:{'ledger' if what == 'ledger' else '*'}"
            client.delete(*client.keys(pattern))

    return in_sqlite if scheme == "sqlite" else in_redis


@pytest.fixture
def two_beats(cluster: Cluster) -> list[Any]:
    beats = [cluster.beat(dict.fromkeys(NAMES, HOURLY)) for _ in range(2)]
    cluster.together(*beats)
    until(lambda: all(cluster.record(name) for name in NAMES))
    return beats


def put_back(cluster: Cluster, before: dict[str, Record | None]) -> bool:
    return all((now := cluster.record(name)) and then and now.last == then.last for name, then in before.items())


@pytest.mark.parametrize("scheme", STORES)
@pytest.mark.parametrize("what", ["ledger", "everything"])
def test_what_the_nodes_remember_is_put_back_and_nothing_of_the_past_is_run(
    cluster: Cluster, two_beats: list[Any], lose: Callable[[str], None], what: str
) -> None:
    before = {name: cluster.record(name) for name in NAMES}
    lose(what)
    until(lambda: put_back(cluster, before), why=lambda: [(name, cluster.record(name)) for name in NAMES])
    until(lambda: all(beat.ready for beat in two_beats))
    time.sleep(1)
    assert cluster.sent() == []
    assert put_back(cluster, before)
    assert [beat.failure for beat in two_beats] == [None, None]


@pytest.mark.parametrize("scheme", STORES)
@pytest.mark.parametrize("what", ["ledger", "everything"])
def test_what_falls_due_meanwhile_is_sent_once(
    cluster: Cluster, lose: Callable[[str], None], what: str, scheme: str, figure: Figure
) -> None:
    due = cluster.seed(*NAMES, last_us=in_s(2.5))
    beats = [cluster.beat(dict.fromkeys(NAMES, HOURLY)) for _ in range(2)]
    cluster.together(*beats)
    # Just before it falls due: all of the hold is lateness.
    until(lambda: now_us() > due - 200_000)
    assert cluster.sent() == []
    ticks = sum(beat.inner.dispatch._progress.ticks for beat in beats)
    lose(what)
    until(lambda: len(cluster.sent()) >= len(NAMES), why=cluster.sent)
    # Twenty a second: what is due, and may not be claimed yet, is no reason to go round without a pause.
    assert sum(beat.inner.dispatch._progress.ticks for beat in beats) - ticks < 500
    late_s = (now_us() - due) / 1e6
    figure.seconds("store loss", scheme, late_s, 2 * cluster.ttl_s, f"the latest run; {what} lost")
    assert late_s <= 2 * cluster.ttl_s
    time.sleep(1)
    wrong = len(cluster.sent()) - len(NAMES)
    figure.runs("store loss", scheme, wrong, len(NAMES), f"runs sent twice; {what} lost")
    assert sorted((sent.entry, sent.instant_us) for sent in cluster.sent()) == [(name, due) for name in sorted(NAMES)]


@pytest.mark.parametrize("scheme", [*STORES, *NAMELESS])
def test_a_record_that_is_older_than_remembered_is_noticed_and_not_replayed(cluster: Cluster) -> None:
    """A snapshot that was restored, or a replica that lagged: the same generation, on the same server, but older."""
    beat = cluster.started({"a": {**HOURLY, "schedule": 1.0}, "b": HOURLY})
    until(lambda: len(cluster.sent("a")) >= 2)
    while True:
        (text,) = cluster.driver.read(["a"])
        assert text is not None
        older = Record(Record.parse(text).last - 2 * HOUR_US)
        (answer,) = cluster.driver.swap([Swap("a", text, older.text())])
        if answer.won:
            break
    so_far = len(cluster.sent("a"))
    until(lambda: len(cluster.sent("a")) >= so_far + 3, why=lambda: beat.failure)
    instants = [sent.instant_us for sent in cluster.sent("a")]
    assert instants == list(range(instants[0], instants[-1] + 1, 1_000_000))


@pytest.mark.parametrize("scheme", STORES)
def test_what_nobody_remembers_starts_from_now_after_two_ttls(cluster: Cluster, lose: Callable[[str], None]) -> None:
    """A beat that comes in the middle of it takes nothing for new, and nothing for due."""
    cluster.started({"a": HOURLY})
    until(lambda: cluster.record("a"))
    lose("ledger")
    until(lambda: cluster.driver.read(["\0generation"])[0])
    lost_at = now_us()
    cluster.started({"a": HOURLY, "b": HOURLY})
    until(lambda: cluster.record("b"))
    assert cluster.record("b").last >= lost_at + 1_900_000  # type: ignore[union-attr]
    assert cluster.record("a").last < lost_at  # type: ignore[union-attr]
    assert cluster.sent() == []


@pytest.mark.parametrize("scheme", [*STORES, *NAMELESS])
def test_what_was_put_back_by_who_knew_less_is_not_claimed_before_the_loss_is_noticed(cluster: Cluster) -> None:
    """Between two looks at the ledger's mark it is lost, and another node writes what it remembers of hours ago."""
    cluster.seed("a", last_us=in_s(3600))
    beat = cluster.beat({"a": HOURLY})
    driver, read = beat.scheduler.driver, beat.scheduler.driver.read

    def after_the_loss(keys: list[str]) -> Any:
        if "a" in keys:
            driver.read = read
            for key, new in {GENERATION: OTHERS.text(), "a": Record(in_s(-10)).text()}.items():
                (before,) = cluster.driver.read([key])
                assert cluster.driver.swap([Swap(key, before, new)])[0].won
        return read(keys)

    driver.read = after_the_loss
    beat.tick_until(lambda: driver.read is read)
    # Whoever knows more has half a TTL to come back.
    held_until = time.monotonic() + cluster.ttl_s / 2 - 0.1
    beat.tick_until(lambda: time.monotonic() > held_until)
    assert cluster.sent() == []
    beat.tick_until(cluster.sent)


@pytest.mark.parametrize("scheme", ["sqlite"])
def test_a_file_that_was_replaced_is_let_go_of(cluster: Cluster, two_beats: list[Any]) -> None:
    before = {name: cluster.record(name) for name in NAMES}
    path = Path(cluster.driver.url.path[1:])
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    until(lambda: path.exists() and put_back(cluster, before), why=lambda: [beat.failure for beat in two_beats])
    assert path.stat().st_mode & 0o777 == 0o600


def snapshot(server: Server) -> Callable[[], object]:
    """Keep what a store has now; what is returned makes it go back to that, under the beats."""
    if isinstance(server, ConsulServer):
        archive = consul_snapshot(server, "GET")
        return lambda: consul_snapshot(server, "PUT", archive)
    if isinstance(server, RedisServer):
        assert server.call("SAVE") == b"+OK"
    kept = server.folder / "kept"
    server.freeze()
    shutil.copytree(server.data, kept)
    server.thaw()

    def restore() -> None:
        server.kill()
        shutil.rmtree(server.data)
        shutil.copytree(kept, server.data)
        server.start()

    return restore


def consul_snapshot(server: ConsulServer, method: str, archive: bytes | None = None) -> bytes:
    """Save a snapshot, or restore one; unlike everything else there, it is no JSON."""
    request = urllib.request.Request(f"http://{server.host}:{server.port}/v1/snapshot", archive, method=method)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as response:
        answer: bytes = response.read()
    return answer


@pytest.mark.parametrize("scheme", ["redis+zset", "redis+scan", *NAMELESS])
def test_a_store_that_is_rolled_back_to_a_snapshot_replays_nothing(scheme: str, ttl_s: float) -> None:
    """What was sent after the snapshot is not sent again, and what had been open in it is not waited for."""
    servers = {"etcd": EtcdServer, "consul": ConsulServer}
    with servers.get(scheme, lambda: RedisServer("--dbfilename", "snapshot.rdb"))() as server, RedisServer() as broker:
        cluster = Cluster(server.url(scheme), broker=broker.url(), ttl_s=ttl_s)
        try:
            beats = [cluster.beat({name: {**HOURLY, "schedule": 1.0} for name in NAMES}) for _ in range(2)]
            cluster.together(*beats)
            until(lambda: len(cluster.sent()) >= 2 * len(NAMES))
            # In the middle of a second's work.
            until(lambda: any((record := cluster.record(name)) and record.open for name in NAMES))
            restore = snapshot(server)
            so_far = len(cluster.sent())
            until(lambda: len(cluster.sent()) >= so_far + 3 * len(NAMES))
            restore()
            so_far = len(cluster.sent())
            until(lambda: len(cluster.sent()) >= so_far + 3 * len(NAMES), why=lambda: [beat.failure for beat in beats])
            for name in NAMES:
                instants = sorted(sent.instant_us for sent in cluster.sent(name))
                assert instants == list(range(instants[0], instants[-1] + 1, 1_000_000)), name
            until(lambda: not any(record.open for name in NAMES if (record := cluster.record(name))))
        finally:
            cluster.close()
