"""The lanes: each kind of store, beside each kind of broker."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from tests.acceptance.outages import Outage, cut, frozen, killed, locked, out_of_memory, silent
from tests.acceptance.queue import Queue, RedisQueue
from tests.acceptance.rabbit_queue import RabbitQueue
from tests.chaos.lane import Lane
from tests.servers import ConsulServer, EtcdServer, RabbitServer, RedisServer, Server
from tests.wire import Wire

# What a killed Redis has answered for is in its file by then: it is written before the answer.
_KEEPS_ALL = ("--appendonly", "yes", "--appendfsync", "no")


def _redis() -> RedisServer:
    return RedisServer(*_KEEPS_ALL)


#: Scheme of the store, its server, the broker's server; None for the store: a file, for the broker: the store.
LANES: Mapping[str, tuple[str, Callable[[], Server] | None, Callable[[], Server] | None]] = {
    "Redis (zset), Redis broker": ("redis+zset", _redis, _redis),
    "etcd, Redis broker": ("etcd", EtcdServer, _redis),
    "one Redis for both": ("redis+zset", _redis, None),
    "Consul, RabbitMQ": ("consul", ConsulServer, RabbitServer),
    "Redis (scan), RabbitMQ": ("redis+scan", _redis, RabbitServer),
    "SQLite, Redis broker": ("sqlite", None, _redis),
}


@contextmanager
def lane(name: str) -> Iterator[Lane]:
    """Have a lane with its servers inside."""
    scheme, new_store, new_broker = LANES[name]
    with ExitStack() as stack:
        servers: list[Server] = []
        if new_store is None:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-"))) / "store.sqlite3"
            store, store_outages = f"sqlite:///{path}", _by_name([locked(path)])
            lose = partial(_delete, path)
        else:
            server = stack.enter_context(new_store())
            servers.append(server)
            wire = stack.enter_context(Wire(server.port))
            store = server.url(scheme, port=wire.port)
            store_outages = _by_name(_ways("store", server, wire))
            lose = partial(_flush, server) if new_broker is not None else partial(_evict, server)
        if new_broker is None:
            # The one server is the broker too: what befalls the store befalls both.
            assert isinstance(server, RedisServer)
            queue: Queue = RedisQueue(server.url())
            yield Lane(
                name,
                store,
                queue,
                server.url(port=wire.port),
                store_outages,
                {},
                lose,
                clocks=True,
                # Who hooks into sending, to hang it, is not on the fast way.
                hangs=False,
                exactly_once=True,
                servers=servers,
            )
            return
        broker = stack.enter_context(new_broker())
        broker_wire = stack.enter_context(Wire(broker.port))
        queue = RabbitQueue(broker.url()) if isinstance(broker, RabbitServer) else RedisQueue(broker.url())
        yield Lane(
            name,
            store,
            queue,
            broker.url(port=broker_wire.port),
            store_outages,
            _by_name(_ways("broker", broker, broker_wire)),
            lose,
            clocks=scheme.startswith("redis"),
            servers=[*servers, broker],
        )


def _ways(what: str, server: Server, wire: Wire) -> list[Outage]:
    ways = [killed(what, server), frozen(what, server), cut(what, wire), silent(what, wire)]
    return [*ways, out_of_memory(server, what)] if isinstance(server, RedisServer) else ways


def _flush(server: Server, namespace: str) -> None:
    assert isinstance(server, (RedisServer, EtcdServer, ConsulServer))
    server.flush()


def _evict(server: Server, namespace: str) -> None:
    """The queue is in the same database."""
    assert isinstance(server, RedisServer)
    assert server.call("DEL", f"distsched:{{{namespace}}}:ledger") == b":1"


def _delete(path: Path, namespace: str) -> None:
    for file in path.parent.iterdir():
        file.unlink()


def _by_name(outages: list[Outage]) -> dict[str, Outage]:
    return {outage.kind: outage for outage in outages}
