"""A cluster on each store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.scheduler.cluster import Cluster
from tests.servers import Server
from tests.wire import Wire

SERVERS = {
    "redis+scan": "redis_server",
    "redis+zset": "redis_server",
    "etcd": "etcd_server",
    "consul": "consul_server",
}


@pytest.fixture
def scheme() -> str:
    """The store's scheme; tests name theirs by parameters."""
    return "redis+zset"


@pytest.fixture
def store_server(scheme: str, request: pytest.FixtureRequest) -> Server:
    server: Server = request.getfixturevalue(SERVERS[scheme])
    return server


@pytest.fixture
def new_cluster(scheme: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Cluster]]:
    """Make clusters on this store; their beats are closed with the test."""
    with ExitStack() as ends:

        def new(**how: Any) -> Cluster:
            if scheme == "sqlite":
                url = f"sqlite:///{tmp_path}/store.sqlite3"
            else:
                url = request.getfixturevalue(SERVERS[scheme]).url(scheme)
            cluster = Cluster(url, **how)
            ends.callback(cluster.close)
            return cluster

        yield new


@pytest.fixture
def ttl_s() -> float:
    """The TTL of `cluster`: long enough for a busy machine, where nobody waits for its end."""
    return 5.0


@pytest.fixture
def cluster(new_cluster: Callable[..., Cluster], ttl_s: float) -> Cluster:
    return new_cluster(ttl_s=ttl_s)


@pytest.fixture
def wired_store(scheme: str, store_server: Server, wire_to: Callable[[Server], Wire]) -> Callable[[], tuple[Wire, str]]:
    """Make wires to the store: each, and the store's URL at its end."""

    def wired() -> tuple[Wire, str]:
        wire = wire_to(store_server)
        return wire, store_server.url(scheme, port=wire.port)

    return wired
