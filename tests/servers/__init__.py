"""The real servers that the tests talk to, each a child process that can be killed, frozen and put back."""

from __future__ import annotations

from tests.servers.binaries import MissingServer, find_binary
from tests.servers.consul import ConsulServer
from tests.servers.etcd import EtcdServer
from tests.servers.process import Server, ServerFailed, free_port
from tests.servers.rabbit import RabbitServer
from tests.servers.redis import RedisServer

__all__ = [
    "ConsulServer",
    "EtcdServer",
    "MissingServer",
    "RabbitServer",
    "RedisServer",
    "Server",
    "ServerFailed",
    "find_binary",
    "free_port",
]
