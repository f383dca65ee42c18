"""Each server starts, answers a real client, dies at a word, and comes back on the same port."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import amqp
import pytest
import redis

from tests.servers import (
    ConsulServer,
    EtcdServer,
    MissingServer,
    RabbitServer,
    RedisServer,
    Server,
    ServerFailed,
    find_binary,
)

# One call of the real client, that fails within a second or two where nobody answers.


def ask_redis(server: RedisServer) -> None:
    with redis.Redis.from_url(server.url(), socket_timeout=1, retry=None) as client:
        assert client.set("key", "value")


def ask_etcd(server: EtcdServer) -> None:
    import pyetcd

    client = pyetcd.client(host=server.host, port=server.port, timeout=1)
    try:
        client.put("key", "value")
        assert client.get("key")[0] == b"value"
    finally:
        client.close()


def ask_consul(server: ConsulServer) -> None:
    import consul

    client = consul.Consul(host=server.host, port=server.port, connections_timeout=1)
    try:
        assert client.kv.put("key", "value")
        assert client.session.create(ttl=10)
    finally:
        client.http.session.close()


def ask_rabbit(server: RabbitServer) -> None:
    with amqp.Connection(f"{server.host}:{server.port}", connect_timeout=1, read_timeout=5) as connection:
        channel = connection.channel()
        channel.queue_declare("q")
        channel.basic_publish(amqp.Message("value"), routing_key="q")
        assert channel.basic_get("q", no_ack=True).body == "value"


ASK: dict[type[Server], Callable[[Any], None]] = {
    RedisServer: ask_redis,
    EtcdServer: ask_etcd,
    ConsulServer: ask_consul,
    RabbitServer: ask_rabbit,
}


@pytest.mark.parametrize("kind", ASK)
def test_a_server_answers_and_after_kill_9_nobody_does_until_its_restart(kind: type[Server]) -> None:
    ask = ASK[kind]
    with kind() as server:
        ask(server)
        server.kill()
        with pytest.raises(Exception):  # noqa: B017, PT011 - each client has its own
            ask(server)
        server.restart()
        ask(server)
        pid = server.pid
        assert pid is not None
    assert server.pid is None
    assert not runs(pid)


@pytest.mark.parametrize("kind", [RedisServer, EtcdServer, ConsulServer])
def test_a_frozen_server_keeps_silent_and_a_thawed_one_answers(kind: type[Server]) -> None:
    ask = ASK[kind]
    with kind() as server:
        server.freeze()
        started = time.monotonic()
        with pytest.raises(Exception):  # noqa: B017, PT011 - each client has its own
            ask(server)
        assert time.monotonic() - started > 0.9
        server.thaw()
        answers_again(ask, server)


def test_a_frozen_server_can_be_stopped() -> None:
    with RedisServer() as server:
        server.freeze()
        started = time.monotonic()
        server.stop()
        assert time.monotonic() - started < 5


def test_etcd_keeps_its_data_over_a_restart_unless_it_is_to_be_empty() -> None:
    with EtcdServer() as server:
        ask_etcd(server)
        server.restart()
        assert keys_in_etcd(server) == ["key"]
        server.restart(empty=True)
        assert keys_in_etcd(server) == []


def test_redis_takes_a_password_and_options() -> None:
    with RedisServer("--appendonly", "yes", "--maxclients", "77", password="p@ss/word") as server:
        with redis.Redis.from_url(server.url(), decode_responses=True) as client:
            assert client.config_get("maxclients") == {"maxclients": "77"}
            client.set("kept", "1")
        with redis.Redis(host=server.host, port=server.port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        server.restart()
        with redis.Redis.from_url(server.url()) as client:
            assert client.get("kept") == b"1"


def test_flush_empties_redis(redis_server: RedisServer) -> None:
    ask_redis(redis_server)
    redis_server.flush()
    with redis.Redis.from_url(redis_server.url()) as client:
        assert client.dbsize() == 0


def test_flush_empties_etcd_of_leases_too(etcd_server: EtcdServer) -> None:
    import pyetcd

    client = pyetcd.client(host=etcd_server.host, port=etcd_server.port, timeout=2)
    try:
        lease = client.lease(60)
        client.put("leased", "value", lease=lease)
        etcd_server.flush()
        assert lease.remaining_ttl == -1
    finally:
        client.close()
    assert keys_in_etcd(etcd_server) == []


def test_flush_empties_consul_of_sessions_too(consul_server: ConsulServer) -> None:
    import consul

    ask_consul(consul_server)
    consul_server.flush()
    client = consul.Consul(host=consul_server.host, port=consul_server.port)
    try:
        assert client.kv.get("", recurse=True)[1] is None
        assert client.session.list()[1] == []
    finally:
        client.http.session.close()


def test_rabbit_runs_beside_another_and_takes_its_port_mapper_with_it(rabbit_server: RabbitServer) -> None:
    with RabbitServer() as other:
        ask_rabbit(other)
        mapper = other._mapper.pid
        assert mapper is not None
    assert not runs(mapper)
    ask_rabbit(rabbit_server)


def test_a_server_does_not_outlive_a_run_that_is_killed() -> None:
    run = """
import os
from tests.servers import RedisServer
server = RedisServer()
server.start()
print(server.pid, server.folder, flush=True)
os.kill(os.getpid(), 9)
"""
    ended = subprocess.run([sys.executable, "-c", run], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert ended.returncode == -9
    deadline = time.monotonic() + 5
    pid, folder = ended.stdout.split()
    while runs(int(pid)) or Path(folder).exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_missing_program_is_an_error_that_says_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingServer, match=r"'no-such-server'.*make servers"):
        find_binary("no-such-server")


def test_a_server_that_ends_by_itself_shows_its_last_words() -> None:
    server = RedisServer("--no-such-option", "1")
    with pytest.raises(ServerFailed, match="no-such-option"):
        server.start()
    assert server.pid is None


def test_the_folder_goes_with_the_server() -> None:
    with RedisServer() as server:
        folder = server.folder
    del server
    assert not Path(folder).exists()


def keys_in_etcd(server: EtcdServer) -> list[str]:
    import pyetcd

    client = pyetcd.client(host=server.host, port=server.port, timeout=2)
    try:
        return [metadata.key.decode() for _, metadata in client.get_all()]
    finally:
        client.close()


def answers_again(ask: Callable[[Any], None], server: Server) -> None:
    """A cluster of one that was frozen holds a new election first."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return ask(server)
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
