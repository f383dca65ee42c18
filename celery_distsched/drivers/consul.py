"""Consul: nodes and ledger in its key/value store, written by transactions of at most 64 operations.

Keyspace, every part percent-encoded, so that no name can reach into another's prefix:

=================================================  ==================================  ==============================
``<namespace>/distsched/nodes/<membership>``       JSON: the membership and its info   never; a node removes the dead
``<namespace>/distsched/ledger/<key>``             the record                          never
=================================================  ==================================  ==============================

The pulse of a member is its key's ModifyIndex. Consul keeps that index where a write changes nothing, so each renewal
also puts another random number into the key's Flags. There are no sessions: Consul takes at least 10 s, and then twice
what it was told, to delete the key of a dead one.

A part that is longer than 200 bytes is shortened, so that no key is longer than the 512 bytes that Consul allows.

Consul compares indexes, not texts. The driver therefore remembers at which ModifyIndex it saw which record, and reads
what it does not remember before it writes. A transaction is all or nothing and its refusal names every operation that
failed: these are read again, the rest is sent again. So a call writes once, in its last transaction, or not at all.

A Consul that has lost its data counts its indexes from 0 again, so that one of them may fit another record. Each write
therefore asks, in the same transaction, that the membership which was joined last is there, even where no fence is
asked for: if it is not, what was remembered is not used, but read anew.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from celery.utils.serialization import strtobool

from celery_distsched.drivers.base import Answer, Driver, Member, Swap
from celery_distsched.drivers.consul_client import Agents, Operation, Reply, Row, operation, token_of
from celery_distsched.drivers.parts import Strangers, part
from celery_distsched.drivers.url import StoreUrl
from celery_distsched.errors import LeaseLost

_LONGEST_PART = 200
#: Records whose ModifyIndex is remembered; one that is forgotten is read before its next swap.
_REMEMBERED = 200_000
_ABSENT = Row(0, None)


class ConsulDriver(Driver):
    """Nodes and ledger in one Consul datacenter, by py-consul or python-consul.

    Every method is one transaction or a few, all of them together within ``timeout_s``.
    """

    #: Of the 64 operations that Consul takes, one is the fence.
    max_batch: ClassVar[int] = 63
    options: ClassVar[Mapping[str, Any]] = {
        "token": token_of,
        "dc": str,
        "ca": str,
        "cert": str,
        "key": str,
        "verify": strtobool,
    }

    def __init__(
        self, url: StoreUrl, *, namespace: str, ttl_s: float, timeout_s: float, options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(url, namespace=namespace, ttl_s=ttl_s, timeout_s=timeout_s, options=options)
        prefix = f"{part(namespace, _LONGEST_PART)}/distsched/"
        self._nodes, self._ledger = f"{prefix}nodes/", f"{prefix}ledger/"
        self._agents = Agents(url, self.settings, prefix=prefix, timeout_s=timeout_s)
        self._renewed_at: dict[str, int] = {}
        #: The membership that was joined last, and what was seen while it has been there.
        self._era: tuple[str | None, _Seen] = (None, _Seen(_REMEMBERED))
        self._strangers = Strangers(url.masked)

    # Membership

    def join(self, membership: str, info: str) -> None:
        place = self._node(membership)
        joined = self._agents.transact([_beat("set", place, membership, info)], self._agents.deadline())
        self._renewed_at[place] = joined.rows[place].modified
        self._era = (membership, _Seen(_REMEMBERED))

    def renew(self, membership: str, info: str) -> None:
        """Write only over the last renewal: a membership that was removed has no index to write over."""
        place, deadline = self._node(membership), self._agents.deadline()
        index = self._renewed_at.get(place)
        while True:
            if index is None:
                index = self._index_of(membership, deadline)
            renewed = self._agents.transact([_beat("cas", place, membership, info, index)], deadline)
            if not renewed.refused:
                self._renewed_at[place] = renewed.rows[place].modified
                return
            # Removed; or a renewal whose answer was lost had arrived, and only its index is news.
            index = None

    def _index_of(self, membership: str, deadline: float) -> int:
        place = self._node(membership)
        found = self._agents.transact([operation("get", place)], deadline, reading=True)
        if found.refused:
            self._renewed_at.pop(place, None)
            raise LeaseLost(f"Consul has no membership {membership!r}: it was removed")
        return found.rows[place].modified

    def members(self) -> dict[str, Member]:
        # A token that may not read these keys is shown an empty tree, which would mean that every node is gone. The
        # check needs a right to the same prefix and is refused without; no node is called "!".
        asked = [operation("get-tree", self._nodes), operation("check-not-exists", f"{self._nodes}!")]
        rows = self._agents.transact(asked, self._agents.deadline(), reading=True).rows
        return dict(member for place, row in rows.items() if (member := self._member(place, row)) is not None)

    def _member(self, place: str, row: Row) -> tuple[str, Member] | None:
        try:
            shown = json.loads(row.value or "")
            membership, info = shown["membership"], shown["info"]
            if isinstance(membership, str) and isinstance(info, str) and self._node(membership) == place:
                return membership, Member(str(row.modified), info)
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        self._strangers.name(place, "is not a membership")
        return None

    def remove(self, membership: str, pulse: str | None = None) -> bool:
        place = self._node(membership)
        delete = operation("delete", place) if pulse is None else operation("delete-cas", place, index=int(pulse))
        if self._agents.transact([delete], self._agents.deadline()).refused:
            return False
        self._renewed_at.pop(place, None)
        return True

    # Ledger

    def read(self, keys: Sequence[str]) -> list[str | None]:
        _, seen = self._era
        rows = self._records(list(dict.fromkeys(keys)), self._agents.deadline(), None, seen)
        return [rows[key].value for key in keys]

    def swap(self, swaps: Sequence[Swap], fence: str | None = None) -> list[Answer]:
        deadline = self._agents.deadline()
        pending = {swap.key: swap for swap in swaps}
        joined, seen = self._era
        guard = joined if fence is None else fence
        known = seen if guard is not None and guard == joined else _Seen(0)
        indexes = {swap.key: known.index(swap.key, swap.expected) for swap in swaps}
        answers: dict[str, Answer] = {}
        # Each round settles a swap or finds that a record moved and came back; the deadline ends what would go on.
        while pending:
            if unknown := [key for key in pending if indexes[key] is None]:
                for key, row in self._records(unknown, deadline, fence, seen).items():
                    if row.value == pending[key].expected:
                        indexes[key] = row.modified
                    else:
                        answers[key] = Answer(False, row.value)
                        del pending[key]
                continue
            writes = [operation("cas", self._record(key), pending[key].new, index=indexes[key] or 0) for key in pending]
            try:
                rows, refused = self._fenced(writes, deadline, guard)
            except LeaseLost:
                if fence is not None:
                    raise
                # Removed, or this is another history, in which the indexes mean something else.
                guard, indexes = None, {key: _Seen(0).index(key, swap.expected) for key, swap in pending.items()}
                continue
            if not refused:
                for key, swap in pending.items():
                    seen.remember(key, Row(rows[self._record(key)].modified, swap.new))
                    answers[key] = Answer(True, swap.new)
                break
            for at, key in enumerate(pending):
                if at in refused:
                    indexes[key] = None
        return [answers[swap.key] for swap in swaps]

    def close(self) -> None:
        self._agents.close()

    # Transactions

    def _records(self, keys: Sequence[str], deadline: float, fence: str | None, seen: _Seen) -> dict[str, Row]:
        """Read and remember; a transaction that asks for an absent key answers only which are absent."""
        found, wanted = dict.fromkeys(keys, _ABSENT), list(keys)
        while wanted:
            asked = [operation("get", self._record(key)) for key in wanted]
            rows, absent = self._fenced(asked, deadline, fence, reading=True)
            if not absent:
                for key in wanted:
                    found[key] = rows[self._record(key)]
                    seen.remember(key, found[key])
                break
            wanted = [key for at, key in enumerate(wanted) if at not in absent]
        return found

    def _fenced(
        self, operations: list[Operation], deadline: float, fence: str | None, *, reading: bool = False
    ) -> Reply:
        if fence is None:
            return self._agents.transact(operations, deadline, reading=reading)
        guard = operation("get", self._node(fence))
        rows, refused = self._agents.transact([guard, *operations], deadline, reading=reading)
        if 0 in refused:
            raise LeaseLost(f"Consul has no membership {fence!r}: nothing was written")
        return Reply(rows, frozenset(at - 1 for at in refused))

    def _node(self, membership: str) -> str:
        return self._nodes + part(membership, _LONGEST_PART)

    def _record(self, key: str) -> str:
        return self._ledger + part(key, _LONGEST_PART)


class _Seen:
    """The newest record that was seen under each key, and its ModifyIndex; the oldest are forgotten. For any thread."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rows: dict[str, Row] = {}
        self._lock = threading.Lock()

    def index(self, key: str, expected: str | None) -> int | None:
        """Return the ModifyIndex at which the record was `expected`; None if that is not known."""
        if expected is None:
            return 0
        row = self._rows.get(key, _ABSENT)
        return row.modified if row.value == expected else None

    def remember(self, key: str, row: Row) -> None:
        with self._lock:
            self._rows.pop(key, None)
            self._rows[key] = row
            if len(self._rows) > self._limit:
                del self._rows[next(iter(self._rows))]


def _beat(verb: str, place: str, membership: str, info: str, index: int = 0) -> Operation:
    value = json.dumps({"membership": membership, "info": info})
    return operation(verb, place, value, index=index, flags=secrets.randbits(64))
