"""An entry's record in the ledger: pure values; every write is an exact swap of one for the next."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

#: In place of a membership: handed back by a node that left; whoever owns the entry sends it.
HANDED_BACK = "-"
#: Open marks that one record may hold; more instants wait until these are confirmed.
MAX_OPEN = 32
# One for all: nearly every record has nothing open, nearly always.
_NOTHING: Mapping[int, str] = MappingProxyType({})


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

    @classmethod
    def parse(cls, text: str) -> Record:
        """Read a stored record; raises `ValueError` saying what is wrong with it."""
        try:
            stored = json.loads(text)
            last, marks, paused = stored["last"], stored.get("open", {}), stored.get("paused", False)
            record = cls(last, {int(instant): mark for instant, mark in marks.items()} or _NOTHING, paused)
        except (KeyError, TypeError, AttributeError, ValueError) as exc:
            raise ValueError(f"not a record: {text[:80]!r} ({exc!r})") from exc
        if type(last) is not int or type(paused) is not bool or not all(type(m) is str for m in record.open.values()):
            raise ValueError(f"not a record: {text[:80]!r}")
        return record

    def text(self) -> str:
        """Return the record as it is stored. Equal records have equal texts."""
        if not self.open and not self.paused:
            # Nearly every record, nearly always; `json` would take ten times as long.
            return f'{{"last":{self.last}}}'
        stored: dict[str, object] = {"last": self.last}
        if self.open:
            stored["open"] = {str(instant): self.open[instant] for instant in sorted(self.open)}
        if self.paused:
            stored["paused"] = True
        return json.dumps(stored, separators=(",", ":"))

    def marked(self, instants: tuple[int, ...], mark: str) -> Record:
        """The record with these instants open under this mark."""
        return replace(self, open={**self.open, **dict.fromkeys(instants, mark)}) if instants else self

    def without(self, instants: tuple[int, ...]) -> Record:
        """The record with these instants closed."""
        if self.open.keys().isdisjoint(instants):
            return self
        return replace(self, open={at: mark for at, mark in self.open.items() if at not in instants} or _NOTHING)


def node_of(mark: str) -> str:
    """Return the node id in a mark: a membership is ``node id#number of the join``."""
    return mark.rpartition("#")[0]
