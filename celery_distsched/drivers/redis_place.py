"""Where the Redis is: at one address, at a socket, wherever the Sentinels say, or at one shard of a Cluster.

The places that move are found anew by each new connection, so that the rest of the driver knows one server only. A
connection that breaks, or that turns out to lead to the wrong server, costs its call; the next one looks again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry

from celery_distsched.drivers.redis_errors import FAILURES

Address = tuple[str, int]
Find = Callable[[], Address]


class FoundConnection(redis.Connection):
    """Asks where its server is whenever it connects."""

    def __init__(self, *, find: Find, **settings: Any) -> None:
        self._find = find
        super().__init__(**settings)  # type: ignore[no-untyped-call]

    def connect(self) -> None:
        # Called before each use as well.
        if self._sock is None:
            self.host, self.port = self._find()
        super().connect()  # type: ignore[no-untyped-call]


class FoundTlsConnection(FoundConnection, redis.SSLConnection):
    """The same, with TLS."""


class _Guides:
    """Servers that know where another server is: the first that does is asked first until it leads astray."""

    #: What they are called in an error.
    name: ClassVar[str]

    def __init__(self, addresses: Sequence[Address], timeout_s: float, settings: Mapping[str, Any]) -> None:
        # All of them and the server together should not take longer than one call may.
        patience_s = timeout_s / (len(addresses) + 1)
        bounds = {"socket_timeout": patience_s, "socket_connect_timeout": patience_s, "retry": Retry(NoBackoff(), 0)}
        self._settings = {**settings, **bounds, "protocol": 2, "decode_responses": True}
        self._addresses = list(addresses)

    def __call__(self) -> Address:
        """Return the address; raises `redis.ConnectionError` naming what each of them said."""
        said = []
        for address in list(self._addresses):
            try:
                with self._client(address) as guide:
                    found = self._ask(guide, address)
            except FAILURES as exc:
                said.append(f"{address[0]}:{address[1]}: {exc}")
            else:
                # A new list: another thread may be going through the old one.
                self._addresses = sorted(self._addresses, key=lambda known: known != address)
                return found
        raise redis.ConnectionError(f"no {self.name} could say where it is ({'; '.join(said)})")

    @property
    def first(self) -> Address:
        """Which is asked first."""
        return self._addresses[0]

    def misled(self, address: Address) -> None:
        """Ask this one last, if it is still asked first: another thread may have moved on from it already."""
        if self.first == address:
            self._addresses = [*self._addresses[1:], address]

    def _client(self, address: Address) -> Any:
        return redis.Redis(*address, **self._settings)

    def _ask(self, guide: Any, address: Address) -> Address:
        raise NotImplementedError


class Sentinels(_Guides):
    """Know which server of a name is the primary now."""

    name = "Sentinel"

    def __init__(
        self, addresses: Sequence[Address], timeout_s: float, settings: Mapping[str, Any], master: str, others: int
    ) -> None:
        super().__init__(addresses, timeout_s, settings)
        self._master = master
        self._others = others

    def _ask(self, guide: Any, address: Address) -> Address:
        state = guide.sentinel_master(self._master)
        if state["is_sdown"] or state["is_odown"] or not state["is_master"]:
            raise redis.ConnectionError(f"{self._master!r} is down")
        if state["num-other-sentinels"] < self._others:
            raise redis.ConnectionError(f"it sees {state['num-other-sentinels']} other Sentinels")
        return state["ip"], state["port"]


class Shards(_Guides):
    """Know which of them holds the keys with our hash tag."""

    name = "node of the Cluster"

    def __init__(self, addresses: Sequence[Address], timeout_s: float, settings: Mapping[str, Any], key: str) -> None:
        super().__init__(addresses, timeout_s, settings)
        self._slot = key_slot(key.encode())

    def _ask(self, guide: Any, address: Address) -> Address:
        for first, last, primary, *_ in guide.execute_command("CLUSTER", "SLOTS"):
            if first <= self._slot <= last:
                # A node that was never told its own address answers none: it is where it was asked.
                return primary[0] or address[0], primary[1]
        raise redis.ConnectionError(f"no node holds slot {self._slot}")
