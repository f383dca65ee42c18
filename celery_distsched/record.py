"""An entry's record in the ledger: pure values; every write is an exact swap of one for the next."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from json.encoder import encode_basestring_ascii
from types import MappingProxyType
from typing import NamedTuple

#: In place of a membership: handed back by a node that left; whoever owns the entry sends it.
HANDED_BACK = "-"
#: Open marks that one record may hold; more instants wait until these are confirmed.
MAX_OPEN = 32
# One for all: nearly every record has nothing open, nearly always.
_NOTHING: Mapping[int, str] = MappingProxyType({})


class Version(NamedTuple):
    """Of an entry: what it looks like, and the epoch of the schedule that carries it."""

    fingerprint: str
    epoch: int


def _version(fingerprint: str, epoch: int) -> Version:
    # The text is the same as its entry's, nearly always.
    return Version(sys.intern(fingerprint), epoch)


@dataclass(frozen=True, slots=True)
class Record:
    """What the cluster knows of one entry.

    The record is a few dozen bytes: it is read, compared and written whole at every run.
    """

    #: Last instant that was claimed or skipped, in microseconds; only ever grows.
    last: int
    #: Claimed and not yet confirmed: instant → mark, the membership that is to send it.
    open: Mapping[int, str] = field(default_factory=lambda: _NOTHING)
    #: The entry was switched off; switching it on again starts from that moment.
    paused: bool = False
    #: The version that was last claimed, or is to be claimed next; None: none has been yet.
    version: Version | None = None

    @classmethod
    def parse(cls, text: str) -> Record:
        """Read a stored record; raises `ValueError` saying what is wrong with it."""
        try:
            stored = json.loads(text)
            last, marks, paused = stored["last"], stored.get("open", {}), stored.get("paused", False)
            version = _version(*stored["version"]) if "version" in stored else None
            record = cls(last, {int(instant): mark for instant, mark in marks.items()} or _NOTHING, paused, version)
        except (KeyError, TypeError, AttributeError, ValueError) as exc:
            raise ValueError(f"not a record: {text[:80]!r} ({exc!r})") from exc
        right = type(last) is int and type(paused) is bool and all(type(mark) is str for mark in record.open.values())
        if not right or (version and not (str(version.fingerprint).isalnum() and type(version.epoch) is int)):
            raise ValueError(f"not a record: {text[:80]!r}")
        return record

    def text(self) -> str:
        """Return the record as it is stored. Equal records have equal texts."""
        # As `json` would write it, in a tenth of the time: this is done several times at each run.
        text = f'{{"last":{self.last}'
        if self.open:
            marks = (f'"{instant}":{encode_basestring_ascii(self.open[instant])}' for instant in sorted(self.open))
            text += f',"open":{{{",".join(marks)}}}'
        if self.paused:
            text += ',"paused":true'
        if self.version is not None:
            text += f',"version":["{self.version.fingerprint}",{self.version.epoch}]'
        return f"{text}}}"

    def marked(self, instants: tuple[int, ...], mark: str) -> Record:
        """The record with these instants open under this mark."""
        if not instants:
            return self
        return Record(self.last, {**self.open, **dict.fromkeys(instants, mark)}, self.paused, self.version)

    def without(self, instants: tuple[int, ...]) -> Record:
        """The record with these instants closed."""
        if not self.open or self.open.keys().isdisjoint(instants):
            return self
        open_ = {at: mark for at, mark in self.open.items() if at not in instants} or _NOTHING
        return Record(self.last, open_, self.paused, self.version)


def may_claim(version: Version | None, mine: Version, live: Collection[int]) -> bool:
    """Whether a node with this version of an entry may claim, given the record's and the epochs of the live nodes.

    Of the versions that live nodes carry the newest wins; an old one starts again only when nobody has a newer one.
    """
    return (
        version is None
        or version.fingerprint == mine.fingerprint
        # Another version under my own epoch was numbered before the register was lost, which counts from one again:
        # nobody else would ever claim it.
        or version.epoch <= mine.epoch
        or version.epoch not in live
    )


def node_of(mark: str) -> str:
    """Return the node id in a mark: a membership is ``node id#number of the join``."""
    return mark.rpartition("#")[0]
