"""The real servers that the tests talk to, each a child process that can be killed, frozen and put back."""

from __future__ import annotations

from tests.servers.binaries import MissingServer, find_binary
from tests.servers.certificates import Certificates
from tests.servers.consul import ConsulServer, GuardedConsul
from tests.servers.etcd import EtcdServer
from tests.servers.etcd_group import EtcdCluster
from tests.servers.process import Server, ServerFailed, free_port
from tests.servers.rabbit import RabbitServer
from tests.servers.redis import RedisServer, ValkeyServer
from tests.servers.redis_groups import RedisCluster, WatchedRedis, replica_of

__all__ = [
    "Certificates",
    "ConsulServer",
    "EtcdCluster",
    "EtcdServer",
    "GuardedConsul",
    "MissingServer",
    "RabbitServer",
    "RedisCluster",
    "RedisServer",
    "Server",
    "ServerFailed",
    "ValkeyServer",
    "WatchedRedis",
    "find_binary",
    "free_port",
    "replica_of",
]
