"""The judge is judged: what is wrong with a run must be seen, and nothing else."""

from __future__ import annotations

from uuid import NAMESPACE_OID, uuid5

from tests.acceptance.occurrences import Hurt, Occurrence, Sent
from tests.acceptance.queue import Message
from tests.acceptance.rhythms import SECOND_US, rhythms

BEGAN = 1_800_000_030
ENDED = BEGAN + 60
PID = 11
RHYTHMS = rhythms(6)


def message(entry: str, at: float, *, pid: int = PID, seen_at: float | None = None, attempt: int = 1) -> Message:
    task_id = str(uuid5(NAMESPACE_OID, f"{entry} {at}"))
    return Message(entry, round(at * SECOND_US), task_id, f"a-host-{pid}-f00d", attempt, seen_at or at + 0.01)


def clean() -> list[Message]:
    """A minute in which everything came when it was due."""
    intervals = {"interval-0": (0.25, 1), "interval-1": (0.25, 2)}
    by_the_second = [message(f"second-{n}", BEGAN + after) for n in range(3) for after in range(1, 61)]
    by_interval = [
        message(name, BEGAN + first + nth * every)
        for name, (first, every) in intervals.items()
        for nth in range(60 // every)
    ]
    return sorted([*by_the_second, *by_interval, message("minute", BEGAN + 30)], key=lambda one: one.seen_at)


def judged(messages: list[Message]) -> Sent:
    return Sent.of(messages, RHYTHMS)


def test_a_clean_run_is_clean() -> None:
    sent = judged(clean())
    assert len(sent.messages) == 3 * 60 + 60 + 30 + 1
    assert (sent.lost(BEGAN, ENDED), sent.strays(), sent.confused(), sent.doubled()) == ([], [], [], {})
    assert max(sent.delays(BEGAN, ENDED).values()) < 0.02
    assert 0 < sent.lateness()[0] <= sent.lateness()[-1] < 0.02


def test_each_missing_message_is_a_loss() -> None:
    messages = clean()
    for missing in messages:
        sent = judged([one for one in messages if one is not missing])
        assert sent.lost(BEGAN, ENDED) == [Occurrence(missing.entry, missing.instant_us)]


def test_an_entry_that_never_ran_is_all_lost() -> None:
    for name, runs in {"second-0": 60, "interval-1": 30, "minute": 1}.items():
        assert len(judged([one for one in clean() if one.entry != name]).lost(BEGAN, ENDED)) == runs


def test_a_message_off_its_grid_is_a_stray() -> None:
    for name, after in {"second-0": 7.5, "interval-1": 5.25, "minute": 31.0}.items():
        sent = judged([*clean(), message(name, BEGAN + after)])
        assert sent.strays() == [Occurrence(name, round((BEGAN + after) * SECOND_US))]


def test_two_ids_of_an_occurrence_and_one_id_of_two_are_seen() -> None:
    messages = clean()
    sent = judged([*messages, messages[5]._replace(task_id="another")])
    assert sent.confused() == [Occurrence(messages[5].entry, messages[5].instant_us)]
    assert len(judged([messages[0], messages[5]._replace(task_id=messages[0].task_id)]).confused()) == 2


def doubled(first: Message, second: Message, *hurts: Hurt) -> bool:
    """Whether the second message of an occurrence has no excuse."""
    return bool(judged([first, second]).doubled_without_cause(hurts))


def test_a_second_message_needs_a_sender_that_could_not_confirm_the_first() -> None:
    first = message("second-0", BEGAN)
    second = message("second-0", BEGAN, pid=12, seen_at=BEGAN + 2, attempt=2)
    assert doubled(first, second)
    assert not doubled(first, second, Hurt("kill -9", PID, BEGAN + 0.02))
    assert not doubled(first, second, Hurt("SIGSTOP", PID, BEGAN + 0.02, BEGAN + 4))
    assert doubled(first, second, Hurt("SIGTERM", PID, BEGAN + 0.02, BEGAN + 0.3)), "it was free to confirm"
    assert doubled(first, second, Hurt("kill -9", 12, BEGAN + 0.02)), "somebody else was killed"
    assert doubled(first, second, Hurt("kill -9", PID, BEGAN + 1)), "it had had the time to confirm"
    known = Hurt("kill -9", PID, BEGAN + 1, confirmed=frozenset())
    assert not doubled(first, second, known), "the broker's answer, or the store's, took its time"
    confirmed = frozenset({Occurrence(first.entry, first.instant_us)})
    assert doubled(first, second, known._replace(at=BEGAN + 0.02, confirmed=confirmed)), "it had confirmed"
    assert doubled(first, second, known._replace(at=BEGAN + 9)), "it would never have confirmed"
    cut_off = Hurt("SIGTERM", PID, BEGAN + 1, BEGAN + 1.2, cut_off_at=BEGAN + 0.02)
    assert not doubled(first, second, cut_off), "it ended while the store was away"
    assert doubled(first, second, cut_off._replace(cut_off_at=BEGAN + 0.9)), "it had had the time to confirm"
    broker = Hurt("broker frozen", 0, BEGAN + 0.02, BEGAN + 1)
    assert not doubled(first, second, broker)
    assert doubled(first, second, broker._replace(kind="store frozen")), "it can confirm when the store is back"
    assert doubled(first, second, broker._replace(at=BEGAN + 0.7)), "it had had its answer"
    slow = first._replace(seen_at=BEGAN + 4)
    again = second._replace(seen_at=BEGAN + 6)
    assert not doubled(slow, again, broker), "it is back, and has not caught up yet"
    assert doubled(slow, again, broker._replace(until=BEGAN + 0.5)), "it had been well again for long enough"
    assert doubled(first, second._replace(attempt=1), Hurt("kill -9", PID, BEGAN + 0.02)), "it is not said"


def test_a_thawed_beat_may_have_been_in_the_middle_of_one_write() -> None:
    frozen = Hurt("SIGSTOP", PID, BEGAN + 0.02, BEGAN + 4)
    messages = [
        one
        for name in ("second-0", "second-1")
        for one in (
            message(name, BEGAN, pid=12, seen_at=BEGAN + 2, attempt=2),
            message(name, BEGAN, seen_at=BEGAN + 4.01),
        )
    ]
    assert not judged(messages[:2]).doubled_without_cause([frozen])
    assert len(judged(messages).doubled_without_cause([frozen])) == 1


def test_a_delay_counts_from_the_event_or_the_instant_whichever_is_later() -> None:
    event_at = BEGAN + 0.5
    early, waited, due_later, too_late = (
        message("second-0", BEGAN),
        message("second-1", BEGAN, seen_at=BEGAN + 2.5),
        message("second-1", BEGAN + 1, seen_at=BEGAN + 2.5),
        message("second-1", BEGAN + 4, seen_at=BEGAN + 9),
    )
    delays = judged([early, waited, due_later, too_late]).delays(event_at, upto=BEGAN + 3)
    assert sorted(delays.values()) == [1.5, 2.0]
