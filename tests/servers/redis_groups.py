"""Redis servers that make one store together: watched by Sentinels, or as the shards of a Cluster."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any

import redis
from redis.crc import key_slot

from tests.servers.binaries import find_binary
from tests.servers.process import START_S, ServerFailed, free_port
from tests.servers.redis import RedisServer

if TYPE_CHECKING:
    from typing_extensions import Self

#: Without these a replica's first copy waits for 5 s in case others want one as well.
_QUICK_COPY = ("--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0")


def replica_of(primary: RedisServer, *arguments: str, port: int | None = None) -> RedisServer:
    """Return a server, not started, that copies another; ``port`` is that of a wire between them."""
    follow = ("--replicaof", primary.host, str(port or primary.port), "--masterauth", primary.password)
    return RedisServer(*_QUICK_COPY, *follow, *arguments, password=primary.password)


class SentinelServer(RedisServer):
    """A Sentinel that watches one primary under the name ``mymaster``; of three, two must agree."""

    scheme = "sentinel"

    def __init__(self, primary: RedisServer, password: str) -> None:
        super().__init__(password=password)
        self._config = self.folder / "sentinel.conf"
        lines = [
            *(f"port {self.port}", f"bind {self.host}", f"requirepass {password}"),
            *(f"sentinel sentinel-pass {password}", f"sentinel monitor mymaster {primary.host} {primary.port} 2"),
            *("sentinel down-after-milliseconds mymaster 500", "sentinel failover-timeout mymaster 3000"),
            f"sentinel auth-pass mymaster {primary.password}",
        ]
        self._config.write_text("\n".join(lines))

    def command(self) -> list[str]:
        """Return the program and its arguments; it rewrites its own configuration."""
        return [find_binary("redis-server"), str(self._config), "--sentinel", "--dir", str(self.data)]


class _Group:
    """Servers that start and stop together."""

    def __init__(self) -> None:
        self._running = ExitStack()

    def _start(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        with ExitStack() as running:
            self._running = running
            self._start()
            self._running = running.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._running.close()


class WatchedRedis(_Group):
    """A primary, a replica and three Sentinels, all with passwords."""

    def __init__(self) -> None:
        super().__init__()
        self.primary = RedisServer(*_QUICK_COPY, "--masterauth", "in-the-url", password="in-the-url")
        self.replica = replica_of(self.primary)
        self.sentinels = [SentinelServer(self.primary, "of-sentinels") for _ in range(3)]

    def url(self, scheme: str = "sentinel") -> str:
        """As kombu spells it."""
        places = [f"{scheme}://{server.host}:{server.port}" for server in self.sentinels]
        return ";".join([places[0].replace("://", f"://:{self.primary.password}@"), *places[1:]])

    def _start(self) -> None:
        for server in (self.primary, self.replica, *self.sentinels):
            self._running.enter_context(server)
        _wait_until(self._watched, "the Sentinels to know the replica and one another")

    def _watched(self) -> bool:
        for server in self.sentinels:
            with redis.Redis(port=server.port, password=server.password, decode_responses=True) as sentinel:
                state: Any = sentinel.sentinel_master("mymaster")
            if state["num-slaves"] < 1 or state["num-other-sentinels"] < 2:
                return False
        return True


class RedisCluster(_Group):
    """Three shards, and a replica of the one that holds `key`."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self._key = key
        self.shards = [_Member() for _ in range(3)]
        self.replica = _Member()

    @staticmethod
    def slot_of(key: str) -> int:
        """Return the slot in which a key lies."""
        return int(key_slot(key.encode()))

    def holder_and_another(self, key: str) -> tuple[_Member, _Member]:
        """Return the shard that holds a key at the start, and one that does not."""
        number = self.slot_of(key) * 3 // 16384
        return self.shards[number], self.shards[number - 1]

    @property
    def holder(self) -> _Member:
        """The shard of the key, which has a replica."""
        return self.holder_and_another(self._key)[0]

    def move(self, slot: int, old: _Member, new: _Member) -> None:
        """Move a slot with all that is in it to another shard, and tell all of them."""
        with self.client(old) as source, self.client(new) as target:
            ids = {
                name: client.execute_command("CLUSTER", "MYID") for name, client in (("old", source), ("new", target))
            }
            target.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids["old"])
            source.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids["new"])
            keys = source.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100)
            source.execute_command("MIGRATE", new.host, new.port, "", 0, 5000, "KEYS", *keys)
        for server in (new, old, *self.shards):
            with self.client(server) as client:
                client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids["new"])

    def url(self, scheme: str = "redis+cluster") -> str:
        """Name two of the shards."""
        return f"{scheme}://" + ",".join(f"{server.host}:{server.port}" for server in self.shards[:2])

    def client(self, server: RedisServer) -> Any:
        """Reach one of the servers."""
        return redis.Redis(port=server.port, decode_responses=True)

    def _start(self) -> None:
        for number, server in enumerate(self.shards):
            self._running.enter_context(server)
            with self.client(server) as client:
                first, last = -(-number * 16384 // 3), -(-(number + 1) * 16384 // 3) - 1
                # Distinct epochs from the start: a clash of two would be settled by renaming, in its own time. And
                # before the slots, with which a server may begin to count by itself.
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
        self._running.enter_context(self.replica)
        everybody = [*self.shards, self.replica]
        with self.client(self.shards[0]) as client:
            for server in everybody[1:]:
                client.execute_command("CLUSTER", "MEET", server.host, server.port, server.bus_port)
        _wait_until(lambda: all(self._sees(server, 4) for server in everybody), "the shards to know one another")
        with self.client(self.holder) as holder, self.client(self.replica) as replica:
            replica.execute_command("CLUSTER", "REPLICATE", holder.execute_command("CLUSTER", "MYID"))
            _wait_until(lambda: replica.info("replication").get("master_link_status") == "up", "the replica's copy")

    def _sees(self, server: RedisServer, nodes: int) -> bool:
        with self.client(server) as client:
            state = str(client.execute_command("CLUSTER", "INFO"))
        return "cluster_state:ok" in state and f"cluster_known_nodes:{nodes}" in state


class _Member(RedisServer):
    """A server of a Cluster."""

    def __init__(self) -> None:
        #: On which the servers of the Cluster talk to one another.
        self.bus_port = free_port()
        cluster = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-port", str(self.bus_port))
        super().__init__(*_QUICK_COPY, *cluster)


def _wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + START_S
    while not condition():
        if time.monotonic() > deadline:
            raise ServerFailed(f"waited {START_S:g} s for {what}")
        time.sleep(0.05)
