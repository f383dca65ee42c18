"""Every driver keeps the same promises, on a real store. A new one is a class here: its scheme and its server."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from celery_distsched.drivers import Driver, StoreUrl, open_driver
from celery_distsched.testing import DriverContract, WireContract
from tests.servers import Server
from tests.wire import Wire


class OnServer(WireContract):
    """The driver of `scheme`, on the server that the fixture `server` starts."""

    scheme: ClassVar[str]
    server: ClassVar[str]

    @pytest.fixture(autouse=True)
    def _reach(self, request: pytest.FixtureRequest, wire_to: Callable[[Server], Wire]) -> None:
        server: Server = request.getfixturevalue(self.server)
        self.wire = wire = wire_to(server)
        self._url = server.url(self.scheme)
        self._url_through_wire = server.url(self.scheme, port=wire.port)

    def make_driver(self, *, namespace: str, ttl_s: float, timeout_s: float) -> Driver:
        return _open(self._url, namespace, ttl_s, timeout_s)

    def make_driver_through_wire(self, *, namespace: str, ttl_s: float, timeout_s: float) -> Driver:
        return _open(self._url_through_wire, namespace, ttl_s, timeout_s)


class OnServers(DriverContract):
    """The driver of `scheme`, on what the fixture `servers` starts: servers that no one wire leads to."""

    scheme: ClassVar[str]
    servers: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}

    @pytest.fixture(autouse=True)
    def _reach(self, request: pytest.FixtureRequest) -> None:
        self._url = str(request.getfixturevalue(self.servers).url(self.scheme))

    def make_driver(self, *, namespace: str, ttl_s: float, timeout_s: float) -> Driver:
        return _open(self._url, namespace, ttl_s, timeout_s, self.options)


def _open(url: str, namespace: str, ttl_s: float, timeout_s: float, options: Mapping[str, Any] | None = None) -> Driver:
    return open_driver(
        StoreUrl.parse(url), namespace=namespace, ttl_s=ttl_s, timeout_s=timeout_s, options=options or {}
    )


class TestRedisScan(OnServer):
    scheme, server = "redis+scan", "redis_server"


class TestRedisZset(OnServer):
    scheme, server = "redis+zset", "redis_server"


class TestValkey(OnServers):
    scheme, servers = "redis+zset", "valkey_server"


class TestRedisBehindSentinels(OnServers):
    scheme, servers = "sentinel", "watched_redis"
    options: ClassVar[Mapping[str, Any]] = {
        "master_name": "mymaster",
        "sentinel_kwargs": {"password": "of-sentinels"},
    }


class TestRedisCluster(OnServers):
    scheme, servers = "redis+cluster", "redis_cluster"


class TestEtcd(OnServer):
    scheme, server = "etcd", "etcd_server"


class TestConsul(OnServer):
    scheme, server = "consul", "consul_server"


class TestSQLite(DriverContract):
    @pytest.fixture(autouse=True)
    def _file(self, tmp_path: Path) -> None:
        self._url = f"sqlite:///{tmp_path}/store.sqlite3"

    def make_driver(self, *, namespace: str, ttl_s: float, timeout_s: float) -> Driver:
        return _open(self._url, namespace, ttl_s, timeout_s)


class TestMemory(DriverContract):
    @pytest.fixture(autouse=True)
    def _name(self) -> None:
        self._url = f"memory://{uuid.uuid4().hex}"

    def make_driver(self, *, namespace: str, ttl_s: float, timeout_s: float) -> Driver:
        return _open(self._url, namespace, ttl_s, timeout_s)
