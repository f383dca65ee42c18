"""The lanes: each kind of store, beside each kind of broker."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from tests.acceptance.outages import (
    Outage,
    all_killed,
    cut,
    frozen,
    killed,
    leader_frozen,
    leader_killed,
    locked,
    out_of_memory,
    quorum_lost,
    revoked,
    silent,
)
from tests.acceptance.queue import RedisQueue
from tests.acceptance.rabbit_queue import RabbitQueue
from tests.acceptance.small_disk import filled, mounted
from tests.chaos.lane import Lane
from tests.servers import EtcdCluster, GuardedConsul, RabbitServer, RedisServer, Server
from tests.wire import Wire

_RULES = 'key_prefix "" { policy = "write" }'


class _Store(NamedTuple):
    """A store that runs."""

    url: str
    ways: list[Outage]
    lose: Callable[[str], object]
    servers: list[Server]
    options: Mapping[str, str] = MappingProxyType({})
    clocks: bool = False


@contextmanager
def lane(name: str) -> Iterator[Lane]:
    """Have a lane with its servers inside."""
    with LANES[name](name) as place:
        yield place


@contextmanager
def _lane(
    name: str, new_store: Callable[[], AbstractContextManager[_Store]], new_broker: Callable[[], Server]
) -> Iterator[Lane]:
    with new_store() as store, new_broker() as broker, Wire(broker.port) as wire:
        yield Lane(
            name,
            store.url,
            RabbitQueue(broker.url()) if isinstance(broker, RabbitServer) else RedisQueue(broker.url()),
            broker.url(port=wire.port),
            _by_name(store.ways),
            _by_name(_ways("broker", broker, wire)),
            store.lose,
            clocks=store.clocks,
            servers=[*store.servers, broker],
            options=store.options,
        )


@contextmanager
def _one_redis(name: str) -> Iterator[Lane]:
    """The one server is the broker too: what befalls the store befalls both."""
    with _redis() as server, Wire(server.port) as wire:
        yield Lane(
            name,
            server.url("redis+zset", port=wire.port),
            RedisQueue(server.url()),
            server.url(port=wire.port),
            _by_name(_ways("store", server, wire)),
            {},
            partial(_evict, server),
            clocks=True,
            # Who hooks into sending, to hang it, is not on the fast way.
            hangs=False,
            exactly_once=True,
            servers=[server],
        )


def _redis() -> RedisServer:
    # What a killed Redis has answered for is in its file by then: it is written before the answer.
    return RedisServer("--appendonly", "yes", "--appendfsync", "no")


@contextmanager
def _redis_store(scheme: str) -> Iterator[_Store]:
    with _redis() as server, Wire(server.port) as wire:
        url = server.url(scheme, port=wire.port)
        yield _Store(url, _ways("store", server, wire), lambda namespace: server.flush(), [server], clocks=True)


@contextmanager
def _etcd_of_three() -> Iterator[_Store]:
    """A beat that stands still for more than a second finds that its token has expired."""
    with EtcdCluster("--auth-token-ttl=1", "--bcrypt-cost=4") as servers, ExitStack() as stack:
        servers.protect()
        wires = [stack.enter_context(Wire(member.port)) for member in servers.members]
        ways = [all_killed(servers), leader_killed(servers), leader_frozen(servers), quorum_lost(servers)]
        ways += [cut("store", *wires), silent("store", *wires)]
        url = servers.url([wire.port for wire in wires])
        yield _Store(url, ways, lambda namespace: servers.flush(), [*servers.members])


@contextmanager
def _consul() -> Iterator[_Store]:
    with GuardedConsul() as server, Wire(server.port) as wire:
        token = server.token(_RULES)
        ways = [*_ways("store", server, wire), revoked(server, token, _RULES)]
        url = server.url(port=wire.port)
        yield _Store(url, ways, lambda namespace: server.flush(), [server], {"token": token})


@contextmanager
def _sqlite() -> Iterator[_Store]:
    # While a beat that reads stands still, the log grows beyond the 4 MB that it takes otherwise.
    with tempfile.TemporaryDirectory(prefix="chaos-") as made, mounted(Path(made), "64m") as small:
        folder = Path(made)
        path = folder / "store.sqlite3"
        ways = [locked(path), *([filled(folder)] if small else [])]
        yield _Store(f"sqlite:///{path}", ways, lambda namespace: _delete(folder), [])


LANES: Mapping[str, Callable[[str], AbstractContextManager[Lane]]] = {
    "Redis (zset), Redis broker": partial(_lane, new_store=partial(_redis_store, "redis+zset"), new_broker=_redis),
    "etcd of three, Redis broker": partial(_lane, new_store=_etcd_of_three, new_broker=_redis),
    "one Redis for both": _one_redis,
    "Consul, RabbitMQ": partial(_lane, new_store=_consul, new_broker=RabbitServer),
    "Redis (scan), RabbitMQ": partial(_lane, new_store=partial(_redis_store, "redis+scan"), new_broker=RabbitServer),
    "SQLite, Redis broker": partial(_lane, new_store=_sqlite, new_broker=_redis),
}


def _ways(what: str, server: Server, wire: Wire) -> list[Outage]:
    ways = [killed(what, server), frozen(what, server), cut(what, wire), silent(what, wire)]
    return [*ways, out_of_memory(server, what)] if isinstance(server, RedisServer) else ways


def _evict(server: RedisServer, namespace: str) -> None:
    """The queue is in the same database."""
    assert server.call("DEL", f"distsched:{{{namespace}}}:ledger") == b":1"


def _delete(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def _by_name(outages: list[Outage]) -> dict[str, Outage]:
    return {outage.kind: outage for outage in outages}
