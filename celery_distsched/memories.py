"""The records of entries that have gone to other nodes: should the store lose data, somebody has to know them."""

from __future__ import annotations

from celery_distsched.clock import Clock
from celery_distsched.record import Record

#: Seconds for which they are kept.
_REMEMBER_S = 600.0


class Memories:
    """Of each entry the record as this node knew it last."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._swept_at = clock.elapsed()
        self._records: dict[str, tuple[Record, float]] = {}

    def keep(self, name: str, record: Record) -> None:
        """Remember this for some time."""
        now = self._clock.elapsed()
        self._records[name] = (record, now)
        if now - self._swept_at >= _REMEMBER_S:
            self._sweep()

    def recall(self, name: str) -> Record | None:
        """Return what is remembered of an entry."""
        if name not in self._records:
            return None
        record, at = self._records[name]
        return record if self._clock.elapsed() - at < _REMEMBER_S else None

    def names(self) -> set[str]:
        """Return the names of all entries of which anything is remembered."""
        self._sweep()
        return set(self._records)

    def _sweep(self) -> None:
        self._swept_at = self._clock.elapsed()
        self._records = {name: memory for name, memory in self._records.items() if self.recall(name) is not None}
