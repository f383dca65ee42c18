"""From claimed to sent: what was sent waits for its confirm a tenth of a second, however much there is to send."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from celery_distsched.clock import Clock
from celery_distsched.holding import Holding, Phase
from celery_distsched.outbox import Outbox
from celery_distsched.outcome import Outcome
from celery_distsched.progress import Progress
from celery_distsched.settings import Settings
from celery_distsched.tally import Tally
from tests.one_by_one import OneByOne


class VirtualClock(Clock):
    now = 1000.0

    def elapsed(self) -> float:
        return self.now


class Records:
    """What a ledger knows of one entry with many instants; nothing is out, and nothing is lost."""

    def __init__(self, instants: int) -> None:
        self.holdings = {"report": Holding(phases=dict.fromkeys(range(instants), Phase.CLAIMED))}
        self.tally = Tally(at_most_once=False)

    def free(self, name: str) -> Holding:
        return self.holdings[name]


def sent_and_confirmed(instants: int, each_s: float, taken: tuple[int, ...] = ()) -> tuple[list[int], list[float]]:
    """Return the instants that were sent, and for how long each waited to be confirmed."""
    clock, records = VirtualClock(), Records(instants)
    holding = records.holdings["report"]
    sent: dict[int, float] = {}
    waited: list[float] = []

    def send(name: str, instant: int, attempt: int) -> Outcome:
        clock.now += each_s
        sent[instant] = clock.now
        return Outcome.ACCEPTED

    def flush() -> None:
        outbox.unconfirmed_since = None
        for instant, phase in list(holding.phases.items()):
            if phase is Phase.DONE:
                del holding.phases[instant]
                waited.append(clock.now - sent[instant])
            elif instant in taken:
                # The answer shows that somebody else has it by now.
                del holding.phases[instant]

    outbox = outbox_of(records, clock, send)
    outbox.send(["report"], flush)
    flush()
    return list(sent), waited


def outbox_of(records: Records, clock: Clock, send: Callable[[str, int, int], Outcome]) -> Outbox:
    return Outbox(
        cast(Any, records),
        Progress(),
        clock,
        Settings(cast(Any, None)),
        send=send,
        probe=lambda: True,
        may_send=lambda: True,
        fast_way=cast(Any, OneByOne()),
    )


def test_the_instants_of_one_entry_do_not_wait_for_each_other_to_be_confirmed() -> None:
    sent, waited = sent_and_confirmed(instants=32, each_s=0.03)
    assert sent == list(range(32))
    assert len(waited) == 32
    assert max(waited) <= 0.1 + 0.03


def test_what_a_confirm_shows_to_be_taken_over_is_not_sent() -> None:
    sent, _ = sent_and_confirmed(instants=32, each_s=0.03, taken=(20, 21))
    assert sent == [*range(20), *range(22, 32)]


def test_what_has_been_rejected_is_not_waited_for_once_its_entry_has_gone() -> None:
    tried: list[int] = []

    def send(name: str, instant: int, attempt: int) -> Outcome:
        tried.append(attempt)
        return Outcome.REJECTED

    outbox = outbox_of(Records(instants=1), VirtualClock(), send)

    def tick() -> list[int]:
        outbox.send(["report"], lambda: None)
        return tried

    assert tick() == [1]
    assert tick() == [1, 2]
    assert tick() == [1, 2], "it waits for a quarter of a second"
    outbox.keep({"report"})
    assert tick() == [1, 2]
    outbox.keep(set())
    assert tick() == [1, 2, 3]
