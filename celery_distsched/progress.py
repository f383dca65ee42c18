"""What the scheduler loop tells the heartbeat of itself: a node that cannot do its job must not look alive."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Progress:
    """Each field is one attribute, written by one thread and read by the other: no lock is needed."""

    #: `Clock.elapsed` at the loop's last sign of life.
    at: float = 0.0
    #: Whole ticks so far.
    ticks: int = 0
    #: Whether the records of this node's share are loaded.
    ready: bool = False
    #: The generation of the ledger for which this node has put back what it remembers; empty before it knows one.
    generation: str = ""
    #: Whether the broker takes messages, as far as is known.
    able: bool = True
