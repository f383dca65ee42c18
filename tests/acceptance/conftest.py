"""The stores, and the broker whose queue is read back."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.acceptance.queue import Queue, RedisQueue
from tests.servers import RedisServer, Server

#: Each store's server is the fixture of this name; SQLite has none.
SERVERS = {
    "sqlite": None,
    "redis+scan": "redis_server",
    "redis+zset": "redis_server",
    "etcd": "etcd_server",
    "consul": "consul_server",
}


@pytest.fixture(scope="session")
def queue(redis_server: RedisServer) -> Queue:
    """A database of its own: a store in the same Redis is in another one."""
    return RedisQueue(redis_server.url(path="/9"))


@pytest.fixture(scope="session")
def server_of(request: pytest.FixtureRequest) -> Callable[[str], Server | None]:
    """Return the server of a store, started, by the store's scheme."""

    def server(scheme: str) -> Server | None:
        fixture = SERVERS[scheme]
        found: Server | None = None if fixture is None else request.getfixturevalue(fixture)
        return found

    return server


@pytest.fixture(scope="session")
def store_url(
    server_of: Callable[[str], Server | None], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], str]:
    """Return the URL of a store by its scheme; each time another file for SQLite."""

    def url(scheme: str) -> str:
        server = server_of(scheme)
        return server.url(scheme) if server else f"sqlite:///{tmp_path_factory.mktemp('store')}/store.sqlite3"

    return url
