"""The wire breaks as its words say, for connections that are there and for new ones, and mends."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import redis

from tests.servers import RedisServer, Server
from tests.wire import Wire

#: How long silence must last to be silence, in seconds; through a whole wire an answer takes less than 1 ms.
SILENCE_S = 0.3


class Client:
    """A bare connection that says words to Redis and waits for their answers apart from each other."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=5)

    def say(self, line: str) -> None:
        self.socket.sendall(f"{line}\r\n".encode())

    def hear(self, within_s: float = 5) -> bytes:
        self.socket.settimeout(within_s)
        return self.socket.recv(4096)

    def call(self, line: str) -> bytes:
        self.say(line)
        return self.hear()


@pytest.fixture
def connect() -> Iterator[Callable[[int], Client]]:
    with ExitStack() as open_sockets:

        def connected(port: int) -> Client:
            client = Client(port)
            open_sockets.enter_context(client.socket)
            return client

        yield connected


@pytest.fixture
def wire(redis_server: RedisServer, wire_to: Callable[[Server], Wire]) -> Wire:
    redis_server.flush()
    return wire_to(redis_server)


def test_a_whole_wire_carries_large_messages_of_many_clients(wire: Wire, redis_server: RedisServer) -> None:
    large = b"x" * 20_000_000  # More than the wire and the system hold together.
    with redis.Redis.from_url(redis_server.url(port=wire.port)) as one, redis.Redis(port=wire.port) as other:
        one.set("large", large)
        assert other.get("large") == large


def test_cut_resets_connections_and_refuses_new_ones(wire: Wire, connect: Callable[[int], Client]) -> None:
    client = connect(wire.port)
    assert client.call("PING") == b"+PONG\r\n"
    wire.cut()
    with pytest.raises(ConnectionResetError):
        client.hear()
    with pytest.raises(ConnectionRefusedError):
        connect(wire.port)


def test_a_frozen_wire_takes_connections_and_passes_no_byte_either_way(
    wire: Wire, redis_server: RedisServer, connect: Callable[[int], Client]
) -> None:
    old = connect(wire.port)
    assert old.call("PING") == b"+PONG\r\n"
    wire.freeze()
    new = connect(wire.port)
    old.say("SET old 1")
    new.say("SET new 1")
    for client in (old, new):
        with pytest.raises(TimeoutError):
            client.hear(SILENCE_S)
    assert redis_server.call("DBSIZE") == b":0"


def test_a_frozen_wire_keeps_back_the_answer_that_is_under_way(
    wire: Wire, redis_server: RedisServer, connect: Callable[[int], Client]
) -> None:
    client = connect(wire.port)
    client.say("BLPOP list 0")
    wait_until(lambda: blocked(redis_server))
    wire.freeze()
    redis_server.call("RPUSH", "list", "value")
    with pytest.raises(TimeoutError):
        client.hear(SILENCE_S)
    wire.mend()
    assert client.hear().endswith(b"value\r\n")


def test_what_a_frozen_wire_held_arrives_after_mend(wire: Wire, connect: Callable[[int], Client]) -> None:
    old = connect(wire.port)
    wire.freeze()
    new = connect(wire.port)
    old.say("PING")
    new.say("PING")
    wire.mend()
    assert old.hear() == b"+PONG\r\n"
    assert new.hear() == b"+PONG\r\n"


def test_a_lost_reply_is_of_a_call_that_took_effect(
    wire: Wire, redis_server: RedisServer, connect: Callable[[int], Client]
) -> None:
    client = connect(wire.port)
    wire.drop_replies()
    client.say("SET key value")
    wait_until(lambda: redis_server.call("DBSIZE") == b":1")
    with pytest.raises(TimeoutError):
        client.hear(SILENCE_S)


def test_with_its_replies_the_hang_up_of_a_server_is_lost(wire: Wire, connect: Callable[[int], Client]) -> None:
    client = connect(wire.port)
    wire.drop_replies()
    client.say("QUIT")
    with pytest.raises(TimeoutError):
        client.hear(SILENCE_S)
    wire.mend()
    with pytest.raises(ConnectionResetError):
        client.hear()


def test_after_mend_a_connection_that_lost_a_reply_is_reset_and_others_go_on(
    wire: Wire, redis_server: RedisServer, connect: Callable[[int], Client]
) -> None:
    loser, quiet = connect(wire.port), connect(wire.port)
    assert quiet.call("PING") == b"+PONG\r\n"
    wire.drop_replies()
    loser.say("SET key value")
    wait_until(lambda: redis_server.call("DBSIZE") == b":1")
    with pytest.raises(TimeoutError):
        loser.hear(SILENCE_S)
    wire.mend()
    with pytest.raises(ConnectionResetError):
        loser.hear()
    assert quiet.call("PING") == b"+PONG\r\n"


@pytest.mark.parametrize("breakage", ["cut", "freeze", "drop_replies"])
def test_a_mended_wire_serves_new_connections(wire: Wire, breakage: str, connect: Callable[[int], Client]) -> None:
    for _ in range(3):
        getattr(wire, breakage)()
        getattr(wire, breakage)()
        wire.mend()
        assert connect(wire.port).call("PING") == b"+PONG\r\n"


@pytest.mark.parametrize("first", ["cut", "freeze", "drop_replies"])
@pytest.mark.parametrize("second", ["cut", "freeze", "drop_replies"])
def test_one_breakage_follows_another(wire: Wire, first: str, second: str, connect: Callable[[int], Client]) -> None:
    getattr(wire, first)()
    getattr(wire, second)()
    if second == "cut":
        with pytest.raises(ConnectionRefusedError):
            connect(wire.port)
    else:
        client = connect(wire.port)
        client.say("PING")
        with pytest.raises(TimeoutError):
            client.hear(SILENCE_S)


def test_a_client_of_a_server_that_is_down_is_reset_and_its_restart_is_found(
    wire_to: Callable[[Server], Wire], connect: Callable[[int], Client]
) -> None:
    with RedisServer() as server:
        wire = wire_to(server)
        client = connect(wire.port)
        assert client.call("PING") == b"+PONG\r\n"
        server.kill()
        assert hung_up(client)
        with pytest.raises(ConnectionResetError):
            connect(wire.port).hear()
        server.restart()
        assert connect(wire.port).call("PING") == b"+PONG\r\n"


def test_the_last_words_before_a_hang_up_arrive(wire: Wire, connect: Callable[[int], Client]) -> None:
    client = connect(wire.port)
    assert client.call("QUIT") == b"+OK\r\n"
    assert client.hear() == b""


def test_the_server_sees_its_clients_go(
    wire: Wire, redis_server: RedisServer, connect: Callable[[int], Client]
) -> None:
    client = connect(wire.port)
    client.call("SUBSCRIBE channel")
    assert redis_server.call("PUBLISH", "channel", "x") == b":1"
    client.socket.close()
    wait_until(lambda: redis_server.call("PUBLISH", "channel", "x") == b":0")


def test_close_ends_the_thread_and_every_connection_whatever_state_it_is_in(
    redis_server: RedisServer, connect: Callable[[int], Client]
) -> None:
    for breakage in ("cut", "freeze", "drop_replies", "mend"):
        before = set(threading.enumerate())
        with Wire(redis_server.port) as wire:
            assert len(set(threading.enumerate()) - before) == 1
            client = connect(wire.port)
            getattr(wire, breakage)()
        assert set(threading.enumerate()) == before
        assert hung_up(client)
        with pytest.raises(ConnectionRefusedError):
            connect(wire.port)
        wire.close()


def test_one_client_can_be_frozen_alone(wire: Wire, connect: Callable[[int], Client]) -> None:
    deaf, healthy = connect(wire.port), connect(wire.port)
    assert deaf.call("PING") == healthy.call("PING") == b"+PONG\r\n"
    deaf_port = deaf.socket.getsockname()[1]
    wire.freeze(only=lambda port: port == deaf_port)
    deaf.say("PING")
    assert healthy.call("PING") == b"+PONG\r\n"
    assert connect(wire.port).call("PING") == b"+PONG\r\n"
    deaf.socket.settimeout(SILENCE_S)
    with pytest.raises(TimeoutError):
        deaf.hear()
    wire.mend()
    assert deaf.hear() == b"+PONG\r\n"


@pytest.mark.parametrize("state", ["mend", "cut", "freeze", "drop_replies"])
def test_a_wire_with_nothing_to_pass_does_no_work(wire: Wire, state: str, connect: Callable[[int], Client]) -> None:
    client = connect(wire.port)
    assert client.call("PING") == b"+PONG\r\n"
    getattr(wire, state)()
    if state != "cut":
        client.say("PING")  # In a frozen wire these bytes wait all the time.
    worked = time.process_time()
    time.sleep(SILENCE_S)
    assert time.process_time() - worked < SILENCE_S / 3


def hung_up(client: Client) -> bool:
    try:
        return client.hear() == b""
    except ConnectionResetError:
        return True


def blocked(server: RedisServer) -> bool:
    with redis.Redis(port=server.port) as client:
        return bool(client.info("clients")["blocked_clients"] == 1)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "it did not come true within 5 s"
        time.sleep(0.005)
