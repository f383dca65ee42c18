"""Consistent hashing: which node an entry belongs to, the same on every node that sees the same nodes."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from heapq import merge

#: Points of one node on the ring. With 512 the busiest of ten nodes has about 1.1 times its share; one point a node
#: would give it three times as much.
REPLICAS = 512
_BYTES = 8
#: A million nodes, of which each reads all others four times a second, are more than anybody has.
_RANK_BITS = 20
_RANK_MASK = (1 << _RANK_BITS) - 1


def point(key: str) -> int:
    """Return the place of an entry on the ring."""
    return int.from_bytes(blake2b(key.encode(), digest_size=_BYTES).digest(), "big")


@lru_cache(maxsize=4096)
def _points(node: str) -> tuple[int, ...]:
    """Every point of one node, in order. One 64-byte digest makes eight of them."""
    points = []
    for block in range(REPLICAS * _BYTES // 64):
        digest = blake2b(f"{block}:{node}".encode(), digest_size=64).digest()
        points += [int.from_bytes(digest[at : at + _BYTES], "big") for at in range(0, 64, _BYTES)]
    return tuple(sorted(points))


@dataclass(frozen=True)
class HashRing:
    """An immutable ring: equal for equal sets of nodes, whatever order they were listed in."""

    nodes: frozenset[str]
    _at: Sequence[int] = field(init=False, repr=False, compare=False)
    _owners: Sequence[str] = field(init=False, repr=False, compare=False)

    def __init__(self, nodes: Iterable[str] = ()) -> None:
        object.__setattr__(self, "nodes", frozenset(nodes))
        # Equal points are settled the same way everywhere, by the nodes' names. A point and the rank of its node in one
        # number are sorted in a third of the time of pairs.
        names = sorted(self.nodes)
        placed = sorted(at << _RANK_BITS | rank for rank, node in enumerate(names) for at in _points(node))
        object.__setattr__(self, "_at", [one >> _RANK_BITS for one in placed])
        object.__setattr__(self, "_owners", [names[one & _RANK_MASK] for one in placed])

    def owner(self, key: str) -> str | None:
        """Return the node that this entry belongs to; None on an empty ring.

        The plain form of `Places.share`, for one entry; the tests hold the two against each other.
        """
        if not self._at:
            return None
        # The owner is the first point at or after the entry's, round the corner if there is none.
        return self._owners[bisect_left(self._at, point(key)) % len(self._at)]

    def arcs(self, node: str) -> list[tuple[int, int]]:
        """Return what belongs to a node: arcs (after, upto], the one round the corner split in two."""
        if node not in self.nodes:
            return []
        arcs = []
        for at in _points(node):
            index = bisect_left(self._at, at)
            if self._owners[index] != node:
                # Another node has the same point, and comes first.
                continue
            if index:
                arcs.append((self._at[index - 1], at))
            else:
                arcs += [(-1, at), (self._at[-1], 1 << 8 * _BYTES)]
        return arcs


@dataclass(frozen=True)
class Places:
    """Names sorted by their place on the ring: a share is a handful of slices, and not a search for each name."""

    _at: Sequence[int]
    _names: Sequence[str]

    @classmethod
    def of(cls, names: Iterable[str]) -> Places:
        """Place these names."""
        placed = sorted((point(name), name) for name in names)
        return cls(array("Q", [at for at, _ in placed]), [name for _, name in placed])

    def changed(self, removed: Set[str], added: Iterable[str]) -> Places:
        """Return these names without some and with others: only what is added is placed anew."""
        if not self._names:
            return Places.of(added)
        kept = (pair for pair in zip(self._at, self._names, strict=True) if pair[1] not in removed)
        placed = list(merge(kept, sorted((point(name), name) for name in added)))
        return Places(array("Q", [at for at, _ in placed]), [name for _, name in placed])

    def share(self, ring: HashRing, node: str | None) -> set[str]:
        """Return the names that the ring gives to a node; None: to nobody."""
        return self._within(ring.arcs(node) if node is not None else [])

    def moved(
        self, before: HashRing, node_before: str | None, after: HashRing, node: str | None
    ) -> tuple[set[str], set[str]]:
        """Return the names that a node gains and loses when the ring, or its place there, changes."""
        old = set(before.arcs(node_before) if node_before is not None else [])
        new = set(after.arcs(node) if node is not None else [])
        # Nearly all arcs are the same in both; of one that was cut short, both parts are looked at.
        held, given = self._within(old - new), self._within(new - old)
        return given - held, held - given

    def _within(self, arcs: Iterable[tuple[int, int]]) -> set[str]:
        names: set[str] = set()
        for after, upto in arcs:
            names.update(self._names[bisect_right(self._at, after) : bisect_right(self._at, upto)])
        return names
