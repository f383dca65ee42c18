"""What the scheduler loop tells the heartbeat of itself: a node that cannot do its job must not look alive."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from celery_distsched.clock import Clock

_Item = TypeVar("_Item")
#: Items between two signs of life: some milliseconds.
_STAMP_EVERY = 1000


@dataclass
class Progress:
    """Each field is one attribute, written by one thread and read by the other: no lock is needed.

    Both write `ready`, one of them at a time: the heartbeat clears it when it joins, and then the loop has no work.
    """

    #: `Clock.elapsed` at the loop's last sign of life.
    at: float = 0.0
    #: Whole ticks so far.
    ticks: int = 0
    #: Whether the records of this node's share are loaded.
    ready: bool = False
    #: The generation of the ledger for which this node has put back what it remembers; empty before it knows one.
    generation: str = ""
    #: The membership that is to be left for a new one; empty: none.
    outlived: str = ""
    #: Whether the broker takes messages, as far as is known.
    able: bool = True

    def along(self, items: Iterable[_Item], clock: Clock) -> Iterator[_Item]:
        """Yield these, with a sign of life now and then: with many entries one walk through them may take seconds."""
        for number, item in enumerate(items):
            if not number % _STAMP_EVERY:
                self.at = clock.elapsed()
            yield item
        self.at = clock.elapsed()
