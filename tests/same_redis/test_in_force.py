"""Whether there is a same Redis, what the log says of it, and what it does where the queue will not take a message."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis

from celery_distsched import fast_way, message_kinds
from celery_distsched.drivers.redis_driver import RedisDriver
from celery_distsched.fast_way import FastWay
from tests.same_redis.sending import run
from tests.same_redis.storm import IN_FORCE, NOT_IN_FORCE
from tests.same_redis.watched import FAST, ORDINARY, Watch
from tests.scheduler.cluster import HOURLY, Beat, Cluster, in_s, until
from tests.servers import RedisServer, Server
from tests.wire import Wire

NAMES = ("one", "two")
SCHEDULE = dict.fromkeys(NAMES, HOURLY)


@pytest.fixture
def said(log: Callable[[], list[str]]) -> Callable[[], list[str]]:
    """Return what has been said so far of how messages are sent."""
    return lambda: [line for line in log() if line.startswith((IN_FORCE, NOT_IN_FORCE))]


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    with redis.Redis.from_url(url) as client:
        yield client


SPELLINGS = {
    "as the broker's": "redis://127.0.0.1:{port}/7",
    "by another name": "redis://localhost:{port}/7",
    "by its driver": "redis+scan://127.0.0.1:{port}/7",
    "with the database as an option": "redis://127.0.0.1:{port}?db=7",
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_the_same_redis_is_the_same_however_it_is_spelled(
    url: str, redis_server: RedisServer, watch: Watch, said: Callable[[], list[str]], spelling: str
) -> None:
    cluster = Cluster(spelling.format(port=redis_server.port), broker=url, ttl_s=5.0)
    run(cluster, cluster.app(SCHEDULE))
    cluster.close()
    assert watch.ways() == {name: [FAST] for name in NAMES}
    (line,) = said()
    assert line.startswith(IN_FORCE)


def test_a_broker_on_a_socket_is_the_same_redis_too(tmp_path: Path, said: Callable[[], list[str]]) -> None:
    socket = tmp_path / "redis.sock"
    with RedisServer("--unixsocket", str(socket)) as server:
        cluster = Cluster(server.url(path="/3"), broker=f"redis+socket://{socket}?virtual_host=3", ttl_s=5.0)
        run(cluster, cluster.app(SCHEDULE))
        assert len(cluster.sent()) == len(NAMES)
        cluster.close()
    assert [line.startswith(IN_FORCE) for line in said()] == [True]


def test_another_database_is_not_the_same(
    url: str, redis_server: RedisServer, watch: Watch, said: Callable[[], list[str]]
) -> None:
    cluster = Cluster(redis_server.url(path="/6"), broker=url, ttl_s=5.0)
    run(cluster, cluster.app(SCHEDULE))
    cluster.close()
    assert watch.ways() == {name: [ORDINARY] for name in NAMES}
    (line,) = said()
    assert line.startswith(NOT_IN_FORCE)
    assert "another database" in line


def test_another_server_is_not_the_same(url: str, watch: Watch, said: Callable[[], list[str]]) -> None:
    with RedisServer() as other:
        cluster = Cluster(other.url(path="/7"), broker=url, ttl_s=5.0)
        run(cluster, cluster.app(SCHEDULE))
        cluster.close()
    assert watch.ways() == {name: [ORDINARY] for name in NAMES}
    (line,) = said()
    assert "another Redis" in line


def test_a_store_that_moves_to_another_server_gets_no_messages(
    said: Callable[[], list[str]], wire_to: Callable[[Server], Wire]
) -> None:
    with RedisServer() as here, RedisServer() as there:
        wire = wire_to(here)
        cluster = Cluster(here.url(port=wire.port, path="/0"), broker=here.url(path="/0"), ttl_s=1.0)
        beat = cluster.started({"often": {"task": "nobody.runs.it", "schedule": 0.2}})
        until(lambda: len(cluster.sent()) >= 2)
        # As when a name leads to another host from now on.
        wire._server_address = (there.host, there.port)
        wire.cut()
        wire.mend()
        until(lambda: "another Redis" in said()[-1])
        before = len(cluster.sent())
        until(lambda: len(cluster.sent()) >= before + 2)
        with redis.Redis(there.host, there.port) as client:
            assert client.exists(cluster.queue) == 0
        beat.close()
        cluster.close()


def test_a_broker_that_is_found_to_be_the_store_after_a_failover_is_used_as_such(
    cluster: Cluster, watch: Watch, said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a while one of the two connections leads to the old master still."""
    server, others = RedisDriver.server, iter(2 * [("the old master", 7)])
    monkeypatch.setattr(RedisDriver, "server", lambda self: next(others, None) or server(self))
    monkeypatch.setattr(fast_way, "_ASK_AGAIN_S", 1.0)
    beat = cluster.started({"often": {"task": "nobody.runs.it", "schedule": 0.2}})
    until(lambda: len(said()) == 2 and watch.ways().get("often", [])[-1:] == [FAST])
    beat.close()
    assert [line.startswith(IN_FORCE) for line in said()] == [False, True]


def test_a_broker_that_goes_away_while_it_is_asked_who_it_is_changes_the_way_of_nothing(
    cluster: Cluster, watch: Watch, log: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has been connected to, and the store is there all the time."""
    ask, until_s = fast_way._server, time.monotonic() + 4

    def away(channel: Any) -> tuple[str, int]:
        if time.monotonic() < until_s:
            raise redis.ConnectionError("reset by peer")
        return ask(channel)

    monkeypatch.setattr(fast_way, "_server", away)
    beat = cluster.started({"often": {"task": "nobody.runs.it", "schedule": 0.2}})
    until(lambda: len(watch.ways().get("often", [])) >= 3)
    beat.close()
    assert set(watch.ways()["often"]) == {FAST}
    assert [
        line for line in log() if line.startswith("nothing new is claimed for now, since the broker cannot be asked")
    ]


def test_no_run_goes_another_way_when_a_template_is_made_while_redis_is_out_of_memory(
    monkeypatch: pytest.MonkeyPatch, log: Callable[[], list[str]]
) -> None:
    """Declaring a queue is refused then, which says nothing of the entry."""
    full, look_ahead = threading.Event(), FastWay.look_ahead
    monkeypatch.setattr(FastWay, "look_ahead", lambda way, now: look_ahead(way, now) if full.is_set() else None)
    with RedisServer() as server, closing(Cluster(server.url(path="/0"), ttl_s=5.0)) as cluster:
        cluster.broker = cluster.read_from = cluster.url
        watch = Watch(cluster.url)
        cluster.seed(*NAMES, last_us=in_s(2))
        beat = cluster.beat(SCHEDULE)
        beat.tick_until(lambda: beat.ready)
        assert server.call("CONFIG", "SET", "maxmemory", "1") == b"+OK"
        full.set()
        until_s, ticks = time.monotonic() + 4, 0
        while time.monotonic() < until_s:
            time.sleep(min(beat.tick(), 0.2))
            ticks += 1
        assert server.call("CONFIG", "SET", "maxmemory", "0") == b"+OK"
        beat.tick_until(lambda: cluster.settled(*NAMES))
        beat.close()
        ways = watch.ways()
        watch.close()
    assert ways == {name: [FAST] for name in NAMES}, log()
    # It does not go round in a circle meanwhile.
    assert ticks < 200


def test_a_server_that_is_started_anew_while_it_is_looked_for_is_still_one(
    cluster: Cluster, watch: Watch, said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Store and broker are asked one after the other which server they are."""
    server, before = RedisDriver.server, iter([("the server before", 7)])
    monkeypatch.setattr(RedisDriver, "server", lambda self: next(before, None) or server(self))
    beat = cluster.started({"often": {"task": "nobody.runs.it", "schedule": 0.2}})
    until(lambda: len(watch.ways().get("often", [])) >= 3)
    beat.close()
    assert set(watch.ways()["often"]) == {FAST}
    assert [line.startswith(IN_FORCE) for line in said()] == [True]


@pytest.mark.parametrize(
    ("broker", "store", "why"),
    [
        ("memory://", None, "the broker is neither Redis nor RabbitMQ"),
        (None, "memory://kept", "the ledger is not in Redis"),
    ],
)
def test_another_kind_of_broker_or_store_is_not_the_same(
    url: str, said: Callable[[], list[str]], broker: str | None, store: str | None, why: str
) -> None:
    cluster = Cluster(store or url, broker=broker or url, ttl_s=5.0)
    run(cluster, cluster.app(SCHEDULE))
    cluster.close()
    (line,) = said()
    assert line.startswith(NOT_IN_FORCE)
    assert why in line


def test_switched_off_it_changes_nothing_but_the_way(
    cluster: Cluster, watch: Watch, client: Any, said: Callable[[], list[str]]
) -> None:
    last_us = 1_700_000_000_000_000
    told = []
    for fast in (True, False):
        client.delete(f"distsched:{{{cluster.namespace}}}:ledger")
        cluster.seed(*NAMES, last_us=last_us)
        beat = cluster.beat(SCHEDULE, distsched_fast_publish=fast, distsched_catch_up="all", distsched_catch_up_limit=1)
        beat.tick_until(lambda: cluster.settled(*NAMES))
        beat.close()
        told.append({name: cluster.record(name) for name in NAMES})
    assert watch.ways() == {name: [FAST, ORDINARY] for name in NAMES}
    assert told[0] == told[1]
    sent = cluster.sent()
    assert len(sent) == 2 * len(NAMES)
    assert len({message.task_id for message in sent}) == len(NAMES)
    assert all(message.attempt == 1 for message in sent)
    assert [line.split(",")[0] for line in said()] == [IN_FORCE, "claimed"]
    assert "distsched_fast_publish" in said()[1]


def test_a_queue_of_the_wrong_type_costs_nobody_elses_run(
    cluster: Cluster, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    client.set("taken", "by somebody")
    schedule = {
        "barred": {**HOURLY, "options": {"queue": "taken"}},
        "second": {"task": "nobody.runs.it", "schedule": 0.2},
    }
    first = cluster.seed("barred")
    beat = cluster.started(schedule)

    def runs() -> int:
        return len(cluster.sent("second"))

    until(lambda: runs() >= 5 and "barred" in caplog.text)
    assert "will not take this message" in caplog.text
    assert client.get("taken") == b"by somebody"
    record = cluster.record("barred")
    assert record is not None
    assert record.open or record.last < first, "it is noted as sent and is not"
    client.delete("taken")
    before = runs()
    until(lambda: client.llen("taken") == 1, within_s=30)
    until(lambda: cluster.settled("barred"))
    assert client.llen("taken") == 1
    until(lambda: runs() > before)
    client.delete("taken")
    beat.close()


def test_a_store_user_who_may_not_push_costs_no_run() -> None:
    with RedisServer() as server:
        with redis.Redis(server.host, server.port) as client:
            client.execute_command("ACL", "SETUSER", "store", "on", ">secret", "~distsched:*", "+@all")
        store = f"redis://store:secret@127.0.0.1:{server.port}/0"
        cluster = Cluster(store, broker=server.url(path="/0"), ttl_s=5.0)
        try:
            run(cluster, cluster.app(SCHEDULE))
            assert len(cluster.sent()) == len(NAMES)
        finally:
            cluster.close()


def test_large_messages_go_in_as_many_calls_as_they_need(cluster: Cluster, client: Any) -> None:
    schedule = {f"entry {number}": {**HOURLY, "args": ["x" * 300_000]} for number in range(100)}
    cluster.seed(*schedule)
    beat = Beat(cluster.app(schedule))
    client.config_resetstat()
    try:
        beat.tick_until(lambda: cluster.settled(*schedule), within_s=30)
    finally:
        beat.close()
        client.delete(cluster.queue)
    # 40 MB.
    assert client.info("commandstats")["cmdstat_evalsha"]["calls"] >= 20


def test_no_run_goes_another_way_when_the_broker_was_away_while_it_was_looked_for(
    url: str,
    redis_server: RedisServer,
    watch: Watch,
    said: Callable[[], list[str]],
    log: Callable[[], list[str]],
    wire_to: Callable[[Server], Wire],
) -> None:
    """It is the store's server, by another way that is cut when the beat first looks, and is there again later."""
    wire = wire_to(redis_server)
    wire.cut()
    cluster = Cluster(url, broker=redis_server.url(port=wire.port, path="/7"), ttl_s=1.0)
    beat = cluster.started({"often": {"task": "nobody.runs.it", "schedule": 0.2}})
    until(lambda: any("the broker cannot be reached" in line for line in log()))
    wire.mend()
    until(lambda: len(cluster.sent()) >= 3)
    beat.close()
    cluster.close()
    assert set(watch.ways()["often"]) == {FAST}
    assert [line.startswith(IN_FORCE) for line in said()] == [True]


def test_no_run_goes_another_way_when_the_broker_goes_away_while_a_template_is_made(
    url: str,
    redis_server: RedisServer,
    watch: Watch,
    log: Callable[[], list[str]],
    wire_to: Callable[[Server], Wire],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The store is there all the time, so that the entry could be claimed, and sent when the broker is back."""
    wire = wire_to(redis_server)
    cluster = Cluster(url, broker=redis_server.url(port=wire.port, path="/7"), ttl_s=1.0)
    catch, cuts = message_kinds.MessageKinds._catch, iter([True])

    def cut_first(self: message_kinds.MessageKinds, entry: Any) -> Any:
        if next(cuts, False):
            wire.cut()
        return catch(self, entry)

    monkeypatch.setattr(message_kinds.MessageKinds, "_catch", cut_first)
    beat = cluster.started({"often": {"task": "nobody.runs.it", "schedule": 0.2}})
    until(lambda: any("the broker cannot be reached" in line for line in log()))
    # Some instants pass.
    time.sleep(0.5)
    wire.mend()
    until(lambda: len(cluster.sent()) >= 3)
    beat.close()
    cluster.close()
    assert set(watch.ways()["often"]) == {FAST}
