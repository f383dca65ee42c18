"""What a node does with what it holds when it leaves. Runs on the heartbeat's thread, the scheduler's loop at rest."""

from __future__ import annotations

from collections.abc import Callable

from celery_distsched.drivers.base import Driver, Swap
from celery_distsched.ledger import batches
from celery_distsched.records import Records

#: The loop, or another node, may have written what stands in the way of the first attempt.
_ATTEMPTS = 3


def hand_back(records: Records, driver: Driver, heirless: Callable[[str], bool], *, at_most_once: bool) -> None:
    """Confirm what was sent and free what was not.

    Args:
        records: What this node holds.
        driver: The store.
        heirless: Whether no other live node has an entry: then what was not sent is given up, and counted.
        at_most_once: Whether what may have been sent is given up too.

    Raises:
        StoreUnavailable: What this node held is taken over when it is dead.
    """
    waiting = set(records.busy)
    for _ in range(_ATTEMPTS):
        for names in batches(waiting, driver.max_batch):
            waiting -= _handed_back(names, records, driver, heirless, at_most_once=at_most_once)
    records.tally.lines.sum_up()


def _handed_back(
    names: list[str], records: Records, driver: Driver, heirless: Callable[[str], bool], *, at_most_once: bool
) -> set[str]:
    """Try to hand these back; returns those with nothing left to do."""
    moves = {}
    for name, text in zip(names, driver.read(names), strict=True):
        record = None if text is None else records.parsed(name, text)
        if record is not None:
            holding = records.holdings[name]
            holding.learn(record, records.me)
            given_up = heirless(name)
            move = holding.give_up(records.me) if given_up else holding.hand_back(records.me, at_most_once=at_most_once)
            if move is not None:
                moves[name] = move
                why = "this node leaves, and no other live one has the entry" if given_up else ""
                records.tally.dropping({name: move}, records.me, why)
    answers = driver.swap([Swap(name, move.expected, move.new.text()) for name, move in moves.items()])
    lost = {name for name, answer in zip(moves, answers, strict=True) if not answer.won}
    for name in moves.keys() - lost:
        records.holdings[name].learn(moves[name].new, records.me)
    return set(names) - lost
