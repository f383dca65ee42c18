"""etcd 3: leases for the members, nested transactions for the ledger.

Keyspace, every part percent-encoded, so that no name can reach into another's prefix:

=================================================  =============================  ===========================
``/<namespace>/distsched/nodes/<membership>``      what the node wrote            with its lease, twice ``ttl_s``
``/<namespace>/distsched/ledger/<key>``            the record                     never
=================================================  =============================  ===========================

The pulse of a member is its key's modification revision: every put changes it.

etcd keeps what was overwritten until it is told not to: at 0.5 KB a renewal and one a second, ten nodes fill its 2 GiB
in five days. Start it with ``--auto-compaction-retention=1h``, which is off by default.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from celery_distsched.drivers.base import Answer, Driver, Member, Swap
from celery_distsched.drivers.etcd_client import Attempt, Line, import_messages
from celery_distsched.drivers.parts import Strangers, part, whole
from celery_distsched.drivers.url import StoreUrl
from celery_distsched.errors import LeaseLost

#: Swaps in one transaction: a server's --max-txn-ops, 128 by default, counts the outer one and the depth.
_PER_TRANSACTION = 126
#: Bytes of an entry's name in its key: a transaction, which names each key three times, must fit into the 1.5 MiB that
#: a server takes in one request.
_LONGEST_PART = 1000


class EtcdDriver(Driver):
    """Nodes and ledger in one etcd cluster, over two connections: a renewal does not wait for a batch."""

    #: etcd makes every shorter lease one of 2 s.
    min_ttl_s: ClassVar[float] = 2.0
    max_batch: ClassVar[int] = 8 * _PER_TRANSACTION
    options: ClassVar[Mapping[str, Any]] = {"ca": str, "cert": str, "key": str, "username": str, "password": str}

    def __init__(
        self, url: StoreUrl, *, namespace: str, ttl_s: float, timeout_s: float, options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(url, namespace=namespace, ttl_s=ttl_s, timeout_s=timeout_s, options=options)
        self._etcd = import_messages()
        self._nodes, self._ledger = (f"/{part(namespace)}/distsched/{kind}/".encode() for kind in ("nodes", "ledger"))
        self._strangers = Strangers(url.masked)
        self._membership_line, self._ledger_line = (
            Line(self._etcd, url, self.settings, timeout_s) for _ in ("membership", "ledger")
        )

    # Membership

    def join(self, membership: str, info: str) -> None:
        etcd = self._membership_line.attempt()
        # Twice the time after which observers call a node dead: the lease only cleans up.
        lease = etcd.grant_lease(math.ceil(2 * self.ttl_s))
        etcd.put(self._etcd.PutRequest(key=self._node(membership), value=info.encode(), lease=lease))

    def renew(self, membership: str, info: str) -> None:
        """Put, then keep alive: the put changes the pulse but not the lease's time, the keep-alive only that time.

        The put comes first because it says which lease the member has; a lease found alive after it proves that the
        member was there with its full time ahead.
        """
        key = self._node(membership)
        put = self._etcd.PutRequest(key=key, value=info.encode(), ignore_lease=True)
        txn = self._etcd.TxnRequest(
            compare=[self._is_there(key)], success=[self._etcd.RequestOp(request_put=put), self._get(key)]
        )
        etcd = self._membership_line.attempt()
        renewed = etcd.txn(txn)
        if not renewed.succeeded or not etcd.keep_lease(_first(renewed.responses[1]).lease):
            raise LeaseLost(f"etcd has no membership {membership!r}: removed, or its lease ran out")

    def members(self) -> dict[str, Member]:
        # The end of a prefix is the prefix with its last byte, "/", raised by one.
        everyone = self._etcd.RangeRequest(key=self._nodes, range_end=self._nodes[:-1] + b"0")
        members = {}
        for node in self._membership_line.attempt().get(everyone).kvs:
            membership = whole(_decoded(node.key[len(self._nodes) :]))
            if membership is None:
                self._strangers.name(_decoded(node.key), "is not a membership")
            else:
                members[membership] = Member(str(node.mod_revision), _decoded(node.value))
        return members

    def remove(self, membership: str, pulse: str | None = None) -> bool:
        key = self._node(membership)
        etcd = self._membership_line.attempt()
        if pulse is None:
            etcd.delete(key)
            return True
        compare = self._etcd.Compare
        same = compare(key=key, target=compare.MOD, result=compare.EQUAL, mod_revision=int(pulse))
        delete = self._etcd.RequestOp(request_delete_range=self._etcd.DeleteRangeRequest(key=key))
        outcome = etcd.txn(self._etcd.TxnRequest(compare=[same], success=[delete], failure=[self._get(key)]))
        return bool(outcome.succeeded) or not outcome.responses[0].response_range.kvs

    # Ledger

    def read(self, keys: Sequence[str]) -> list[str | None]:
        # Linearizable: etcd treats a transaction of plain gets as it treats a get.
        txns = (self._etcd.TxnRequest(success=[self._get(self._record(key)) for key in some]) for some in _parts(keys))
        outcomes = self._ledger_line.attempt().txns(txns)()
        return [_text(answer) for outcome in outcomes for answer in outcome.responses]

    def swap(self, swaps: Sequence[Swap], fence: str | None = None) -> list[Answer]:
        return self.swapping(swaps, fence)()

    def swapping(self, swaps: Sequence[Swap], fence: str | None = None) -> Callable[[], list[Answer]]:
        """Transactions that check the fence, each of them at first for all its swaps or for none.

        Where one of them loses, each gets a transaction within it of its own: nothing had been written for any of them.
        """
        parts = list(_parts(swaps))
        etcd = self._ledger_line.attempt()
        asked = etcd.txns(self._together(some, fence) for some in parts)
        return lambda: self._answers(etcd, parts, asked(), fence)

    def _answers(
        self, etcd: Attempt, parts: Sequence[Sequence[Swap]], at_once: Sequence[Any], fence: str | None
    ) -> list[Answer]:
        contested = [some for some, outcome in zip(parts, at_once, strict=True) if not outcome.succeeded]
        one_by_one = etcd.txns(self._each(some, fence) for some in contested)()
        if not all(outcome.succeeded for outcome in one_by_one):
            raise LeaseLost(f"etcd has no membership {fence!r}: nothing is written any more")
        answers, each = list[Answer](), iter(one_by_one)
        for some, outcome in zip(parts, at_once, strict=True):
            if outcome.succeeded:
                answers += [Answer(True, swap.new) for swap in some]
            else:
                answers += map(_answer, some, next(each).responses)
        return answers

    def close(self) -> None:
        self._membership_line.close()
        self._ledger_line.close()

    # Requests

    def _node(self, membership: str) -> bytes:
        return self._nodes + part(membership).encode()

    def _record(self, key: str) -> bytes:
        return self._ledger + part(key, _LONGEST_PART).encode()

    def _get(self, key: bytes) -> Any:
        return self._etcd.RequestOp(request_range=self._etcd.RangeRequest(key=key))

    def _is_there(self, key: bytes) -> Any:
        compare = self._etcd.Compare
        return compare(key=key, target=compare.VERSION, result=compare.GREATER, version=0)

    # Filled in place: putting a request together from finished messages, each of which is copied, takes thrice as long.

    def _together(self, swaps: Sequence[Swap], fence: str | None) -> Any:
        txn = self._fenced(fence)
        for swap in swaps:
            self._fill(txn, self._record(swap.key), swap)
        return txn

    def _each(self, swaps: Sequence[Swap], fence: str | None) -> Any:
        whole_txn = self._fenced(fence)
        for swap in swaps:
            key = self._record(swap.key)
            txn = whole_txn.success.add().request_txn
            self._fill(txn, key, swap)
            txn.failure.add().request_range.key = key
        return whole_txn

    def _fenced(self, fence: str | None) -> Any:
        return self._etcd.TxnRequest(compare=[] if fence is None else [self._is_there(self._node(fence))])

    def _fill(self, txn: Any, key: bytes, swap: Swap) -> None:
        compare = self._etcd.Compare
        untouched = txn.compare.add(key=key, result=compare.EQUAL)
        if swap.expected is None:
            untouched.target, untouched.version = compare.VERSION, 0
        else:
            untouched.target, untouched.value = compare.VALUE, swap.expected.encode()
        put = txn.success.add().request_put
        put.key, put.value = key, swap.new.encode()


_T = TypeVar("_T")


def _parts(batch: Sequence[_T]) -> Iterator[Sequence[_T]]:
    return (batch[at : at + _PER_TRANSACTION] for at in range(0, len(batch), _PER_TRANSACTION))


def _first(answer: Any) -> Any:
    return answer.response_range.kvs[0]


def _answer(swap: Swap, answer: Any) -> Answer:
    txn = answer.response_txn
    return Answer(True, swap.new) if txn.succeeded else Answer(False, _text(txn.responses[0]))


def _text(answer: Any) -> str | None:
    """Return the value of a get's answer, None where there was no key."""
    found = answer.response_range.kvs
    return _decoded(found[0].value) if found else None


def _decoded(value: bytes) -> str:
    # What is no text was written by somebody else: it must lose a swap, not break the reading of all others.
    return value.decode(errors="backslashreplace")
