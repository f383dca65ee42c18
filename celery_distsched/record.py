"""An entry's record in the ledger: pure values; every write is an exact swap of one for the next."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Mapping
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from types import MappingProxyType
from typing import NamedTuple

#: In place of a membership: handed back by a node that left; whoever owns the entry sends it.
HANDED_BACK = "-"
#: Open marks that one record may hold; more instants wait until these are confirmed.
MAX_OPEN = 32
#: Characters of a stored text that anybody looks at: more than the fullest record of nodes with the longest names.
MAX_CHARACTERS = 16_384
#: The first instant, in microseconds, that Python has no date for: the year 10000.
NO_DATE_US = 253_402_300_800_000_000
#: No marks: one for all, since nearly every record has nothing open, nearly always.
NOTHING: Mapping[int, str] = MappingProxyType({})


class Version(NamedTuple):
    """Of an entry: what it looks like, and the epoch of the schedule that carries it."""

    fingerprint: str
    epoch: int


@lru_cache(maxsize=4096)
def version_of(fingerprint: str, epoch: int) -> Version:
    """Return the one object for this version: many entries are alike, and each has it in its record."""
    # The text is the same as its entry's, nearly always.
    return Version(sys.intern(fingerprint), epoch)


def _parsed(fingerprint: object, epoch: object) -> Version:
    # Before the cache is asked, to which 1, 1.0 and True are the same.
    if type(fingerprint) is not str or not fingerprint.isalnum() or type(epoch) is not int:
        raise ValueError(f"not a version: {fingerprint!r}, {epoch!r}")
    return version_of(fingerprint, epoch)


#: Nearly every record, nearly always; `json` takes three times as long to read it. A number has no needless zeros.
_USUAL = re.compile(r'\{"last":(0|[1-9][0-9]{0,16})(?:,"version":\["([0-9a-f]{1,64})",(0|[1-9][0-9]{0,17})\])?\}')


class Record(NamedTuple):
    """What the cluster knows of one entry.

    The record is a few dozen bytes: it is read, compared and written whole at every run.
    """

    #: Last instant that was claimed or skipped, in microseconds; only ever grows.
    last: int
    #: Claimed and not yet confirmed: instant → mark, the membership that is to send it.
    open: Mapping[int, str] = NOTHING
    #: The entry was switched off; switching it on again starts from that moment.
    paused: bool = False
    #: The version that was last claimed, or is to be claimed next; None: none has been yet.
    version: Version | None = None

    @classmethod
    def parse(cls, text: str) -> Record:
        """Read a stored record; raises `ValueError` saying what is wrong with it."""
        if usual := _USUAL.fullmatch(text):
            stored_last, fingerprint, epoch = usual.groups()
            return cls(int(stored_last), version=None if epoch is None else version_of(fingerprint, int(epoch)))
        if len(text) > MAX_CHARACTERS:
            raise ValueError(
                f"not a record: {text[:80]!r}… of {len(text)} characters; a record has at most {MAX_CHARACTERS}"
            )
        try:
            stored = json.loads(text)
            last, marks, paused = stored["last"], stored.get("open", {}), stored.get("paused", False)
            version = _parsed(*stored["version"]) if "version" in stored else None
            record = cls(last, {int(instant): mark for instant, mark in marks.items()} or NOTHING, paused, version)
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as exc:
            raise ValueError(f"not a record: {text[:80]!r} ({exc!r})") from exc
        if type(last) is not int or type(paused) is not bool or any(type(m) is not str for m in record.open.values()):
            raise ValueError(f"not a record: {text[:80]!r}")
        if not all(0 <= instant < NO_DATE_US for instant in (last, *record.open)):
            raise ValueError(f"not a record: {text[:80]!r} (an instant is a number of microseconds since 1970)")
        return record if record.text() == text else _Spelled.of(record, text)

    def text(self) -> str:
        """Return the record as it is stored. Equal records have equal texts."""
        # As `json` would write it, in a tenth of the time: this is done several times at each run.
        text = f'{{"last":{self.last}'
        if self.open:
            marks = [f'"{instant}":{encode_basestring_ascii(mark)}' for instant, mark in sorted(self.open.items())]
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
        if self.open.keys().isdisjoint(instants):
            return self
        open_ = {at: mark for at, mark in self.open.items() if at not in instants} or NOTHING
        return Record(self.last, open_, self.paused, self.version)


class _Spelled(Record):
    """A record as another release has written it, or a person: a swap must expect that, to the letter."""

    stored: str | None = None

    @classmethod
    def of(cls, record: Record, stored: str) -> Record:
        spelled = cls(*record)
        spelled.stored = stored
        return spelled

    def text(self) -> str:
        return self.stored or super().text()


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
