"""A store inside one process, for tests: several nodes share it, and nothing outlives the process."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from celery_distsched.drivers.base import Answer, Driver, Member, Swap
from celery_distsched.errors import LeaseLost


@dataclass
class _Store:
    nodes: dict[str, Member] = field(default_factory=dict)
    ledger: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


_STORES: dict[tuple[str, str], _Store] = {}


class MemoryDriver(Driver):
    """``memory://name``: drivers with the same name and namespace share one store.

    Keyspace: two dicts, membership → pulse and info, entry → record; both stay until the process ends.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._store = _STORES.setdefault((self.url.masked, self.namespace), _Store())

    def join(self, membership: str, info: str) -> int:
        with self._store.lock:
            self._store.nodes[membership] = Member(self._next_pulse(membership), info)
        return time.time_ns() // 1000

    def renew(self, membership: str, info: str) -> int:
        with self._store.lock:
            self._check(membership)
            self._store.nodes[membership] = Member(self._next_pulse(membership), info)
        return time.time_ns() // 1000

    def members(self) -> dict[str, Member]:
        with self._store.lock:
            return dict(self._store.nodes)

    def remove(self, membership: str, pulse: str | None = None) -> bool:
        with self._store.lock:
            member = self._store.nodes.get(membership)
            if member is not None and pulse not in (None, member.pulse):
                return False
            self._store.nodes.pop(membership, None)
            return True

    def read(self, keys: Sequence[str]) -> list[str | None]:
        with self._store.lock:
            return [self._store.ledger.get(key) for key in keys]

    def swap(self, swaps: Sequence[Swap], fence: str | None = None) -> list[Answer]:
        with self._store.lock:
            if fence is not None:
                self._check(fence)
            return [self._swap(swap) for swap in swaps]

    def _swap(self, swap: Swap) -> Answer:
        found = self._store.ledger.get(swap.key)
        if found != swap.expected:
            return Answer(False, found)
        self._store.ledger[swap.key] = swap.new
        return Answer(True, swap.new)

    def _check(self, membership: str) -> None:
        if membership not in self._store.nodes:
            raise LeaseLost(f"{membership} is not a member any more")

    def _next_pulse(self, membership: str) -> str:
        member = self._store.nodes.get(membership)
        return str(int(member.pulse) + 1 if member else 1)

    def close(self) -> None:
        """Nothing is held open."""
