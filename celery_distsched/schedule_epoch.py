"""Which schedule is the newest: in a deploy the beats carry different ones, and of an entry the newest version wins.

The store numbers the schedules. Whoever joins with one that no live node has registers it under the next number, its
*epoch*; whoever has the same one as a live node takes that one's. The register holds which entries the newest schedule
has and which the one before had. So an entry that comes back after having been away is told from one that was there all
the time: it starts from now, and nothing of the past is run.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from celery_distsched.drivers.base import Driver, Swap
from celery_distsched.record import NO_DATE_US
from celery_distsched.ring import point

#: Where the register is kept, in the ledger; no entry may have a name that begins like this.
RESERVED = "\0"
_KEY = f"{RESERVED}schedule"
#: With ten bits an entry, about one absent name in a hundred looks present.
_BITS_PER_NAME = 10
_PROBES = 7
#: Two of them, as text, must fit into one value of Consul, which refuses a transaction with more than about 380 KB.
#: Beyond 104,000 entries more of the absent look present.
_MOST_BYTES = 130_000
_EMPTY = b"\0"
#: Microseconds within which nothing has been away: the shortest hand-over.
_AWAY_US = 10_000_000


class Schedule(NamedTuple):
    """What a node has to run, as far as others must know."""

    #: Of names and fingerprints.
    digest: str = ""
    names: Collection[str] = ()


@dataclass(frozen=True)
class NameFilter:
    """A set of names in ten bits each (a Bloom filter): it knows every name in it, and takes a few others for known."""

    bits: bytes = field(default=_EMPTY, repr=False)

    @classmethod
    def of(cls, names: Collection[str]) -> NameFilter:
        """Put these names in."""
        bits = bytearray(min(max(len(names) * _BITS_PER_NAME // 8, 8), _MOST_BYTES))
        size = len(bits) * 8
        for name in names:
            # As `_places`, in half the time.
            place, step = divmod(point(name), 1 << 32)
            step |= 1
            for _ in range(_PROBES):
                at = place % size
                bits[at >> 3] |= 1 << (at & 7)
                place += step
        return cls(bytes(bits))

    def __contains__(self, name: str) -> bool:
        return all(self.bits[at >> 3] >> (at & 7) & 1 for at in _places(name, len(self.bits) * 8))


def _places(name: str, size: int) -> Iterator[int]:
    first, second = divmod(point(name), 1 << 32)
    return ((first + probe * (second | 1)) % size for probe in range(_PROBES))


@dataclass(frozen=True)
class ScheduleEpoch:
    """The register's newest schedule."""

    epoch: int
    digest: str
    #: When it was registered, in microseconds of cluster time.
    since_us: int = 0
    names: NameFilter = field(default_factory=NameFilter, repr=False)
    #: What the schedule before had; None: not known, so nothing is said to be back.
    before: NameFilter | None = field(default=None, repr=False)

    def carries(self, name: str) -> bool:
        """Whether an entry is in this schedule, as far as that is known: of an older one it is not."""
        return self.names.bits == _EMPTY or name in self.names

    def is_back(self, name: str) -> bool:
        """Whether an entry of this schedule was missing from the one before, though it may have run long ago."""
        return self.before is not None and name not in self.before

    def text(self) -> str:
        """Return the register as it is stored."""
        stored = {"epoch": self.epoch, "digest": self.digest, "since": self.since_us, "names": _text(self.names)}
        if self.before is not None:
            stored["before"] = _text(self.before)
        return json.dumps(stored, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> ScheduleEpoch | None:
        """Read the register; None where it is not one."""
        try:
            stored = json.loads(text)
            before = stored.get("before")
            found = cls(
                int(stored["epoch"]),
                str(stored["digest"]),
                int(stored["since"]),
                _filter(stored["names"]),
                None if before is None else _filter(before),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError):
            return None
        return found if 0 <= found.since_us < NO_DATE_US and 0 <= found.epoch < NO_DATE_US else None


def heirless(driver: Driver, digest: str, others: Collection[str]) -> Callable[[str], bool]:
    """Return what tells of an entry whether none of the other live nodes has it, as far as that can be known.

    Args:
        driver: The store.
        digest: That of the leaving node's schedule; empty: it is no member.
        others: Those of the other live nodes' schedules.

    Raises:
        StoreUnavailable: Not known.
    """
    # Nodes with the same schedule have the same entries, and where nobody else lives the next to come may have it.
    if others and digest and digest not in others:
        (text,) = driver.read([_KEY])
        newest = None if text is None else ScheduleEpoch.parse(text)
        # Of other schedules than the newest nobody can say what is in them.
        if newest is not None and set(others) == {newest.digest}:
            return lambda name: name not in newest.names
    return lambda name: False


def _text(names: NameFilter) -> str:
    return b64encode(names.bits).decode()


def _filter(text: str) -> NameFilter:
    return NameFilter(b64decode(text, validate=True) or _EMPTY)


def register(driver: Driver, schedule: Schedule, live: Mapping[str, int], now_us: int) -> ScheduleEpoch | None:
    """Return the epoch of a schedule, after registering it where no live node has it; None: ask again.

    Args:
        driver: The store.
        schedule: The schedule.
        live: Digest → epoch of the schedules that live nodes have.
        now_us: Cluster time.

    Raises:
        StoreUnavailable: Whether it was registered is unknown; ask again.
    """
    digest, names = schedule
    (text,) = driver.read([_KEY])
    newest = None if text is None else ScheduleEpoch.parse(text)
    if newest is not None and newest.digest == digest:
        if digest in live or not live or now_us - newest.since_us < _AWAY_US:
            return newest
        # It was away while another schedule was alive, and is back.
        before = newest.before
    elif live.get(digest):
        # An older one, of which a node still lives.
        return ScheduleEpoch(live[digest], digest)
    else:
        # What other live nodes carry beside the newest schedule has not been away.
        alone = newest is not None and live.keys() <= {newest.digest}
        before = newest.names if newest and alone else None
    epoch = 1 + max(newest.epoch if newest else 0, *live.values(), 0)
    mine = ScheduleEpoch(epoch, digest, now_us, NameFilter.of(names), before)
    (answer,) = driver.swap([Swap(_KEY, text, mine.text())])
    return mine if answer.won else None
