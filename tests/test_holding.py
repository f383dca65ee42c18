from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_distsched.holding import Holding, Phase
from celery_distsched.record import HANDED_BACK, Record, Version

ME, BEFORE, OTHER = "me#2", "me#1", "other#1"

# Records

#: The beginning of the year 10000.
instants = st.integers(0, 253_402_300_800_000_000 - 1)
marks = st.dictionaries(instants, st.text(min_size=1), max_size=4)
versions = st.builds(Version, st.from_regex(r"\A[0-9a-f]{1,16}\Z"), st.integers(0))
records = st.builds(Record, instants, marks, st.booleans(), st.none() | versions)


@given(records)
def test_a_record_reads_back_as_it_was_written(record: Record) -> None:
    assert Record.parse(record.text()) == record
    shuffled = record._replace(open=dict(reversed(list(record.open.items()))))
    assert shuffled.text() == record.text()


@given(records, st.integers(0))
def test_a_record_of_another_release_reads_back_too(record: Record, at: int) -> None:
    stored = {**json.loads(record.text()), "later": at}
    written = json.dumps(stored)
    read = Record.parse(written)
    assert read == record
    # That is what a swap has to expect; and what comes of it is ours.
    assert read.text() == written
    assert read._replace(last=at).text() == record._replace(last=at).text()


@pytest.mark.parametrize(
    "text",
    [
        *("", "null", "7", "[]", "{}", '"last"', "{", '{"last": "7"}', '{"last": 7.0}', '{"last": true}'),
        *('{"last": 7, "open": []}', '{"last": 7, "open": {"x": "m"}}', '{"last": 7, "open": {"8": 1}}'),
        *('{"last": 7, "open": null}', '{"last": 7, "paused": 1}'),
    ],
)
def test_what_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a record"):
        Record.parse(text)


# One holding


def holding(record: Record, **phases: Phase) -> Holding:
    """Return what I know of an entry; ``at_10=DONE``: how far I am with an instant."""
    return Holding(record, {int(name.removeprefix("at_")): phase for name, phase in phases.items()})


def dead(*gone: str) -> Callable[[str], bool]:
    return lambda mark: mark in gone


def test_a_claim_confirms_what_was_sent_in_the_same_swap() -> None:
    held = holding(Record(10, {9: ME, 10: ME}), at_9=Phase.DONE, at_10=Phase.CLAIMED)
    move = held.advance(ME, claim=(11, 12))
    assert move is not None
    assert move.expected == Record(10, {9: ME, 10: ME}).text()
    assert move.new == Record(12, {10: ME, 11: ME, 12: ME})
    assert move.fenced


def test_a_confirm_needs_no_membership_and_drops_the_mark_of_whoever_holds_it() -> None:
    held = holding(Record(12, {10: OTHER, 11: OTHER}), at_10=Phase.DONE)
    for move in (held.confirm(), held.advance(ME)):
        assert move is not None
        assert move.new == Record(12, {11: OTHER})
        assert not move.fenced


def test_what_is_passed_over_is_settled() -> None:
    move = holding(Record(10)).advance(ME, claim=(11,), upto=15, skipped=4)
    assert move is not None
    assert (move.new, move.skipped) == (Record(15, {11: ME}), 4)


def test_nothing_is_written_where_nothing_changes() -> None:
    assert Holding().advance(ME, claim=(1,)) is None
    assert Holding().confirm() is None
    held = holding(Record(10, {9: OTHER, 10: ME}, paused=True), at_10=Phase.CLAIMED)
    assert held.advance(ME, gone=dead()) is held.advance(ME, upto=3) is held.confirm() is None


def test_only_the_owner_takes_over_from_the_dead() -> None:
    held = holding(Record(10, {8: OTHER, 9: HANDED_BACK, 10: "third#1"}))
    assert held.advance(ME) is None
    move = held.advance(ME, gone=dead(OTHER))
    assert move is not None
    assert move.new == Record(10, {8: ME, 9: ME, 10: "third#1"})
    assert (move.taken, move.dropped, move.fenced) == ({8: OTHER, 9: HANDED_BACK}, {}, True)


def test_at_most_once_drops_the_marks_of_the_dead_and_takes_what_was_handed_back() -> None:
    held = holding(Record(10, {8: OTHER, 9: HANDED_BACK}))
    move = held.advance(ME, gone=dead(OTHER), at_most_once=True)
    assert move is not None
    assert move.new == Record(10, {9: ME})
    assert (move.taken, move.dropped) == ({9: HANDED_BACK}, {8: OTHER})


def test_after_joining_anew_my_older_mark_is_mine_by_a_takeover_only() -> None:
    held = holding(Record(10, {9: BEFORE, 10: BEFORE}), at_9=Phase.DONE, at_10=Phase.SENDING)
    held.rejoined()
    assert held.phases == {9: Phase.DONE, 10: Phase.FORMER}
    move = held.advance(ME)
    assert move is not None
    assert (move.new, move.taken, move.fenced) == (Record(10, {10: ME}), {10: BEFORE}, True)
    assert held.learn(move.new, ME) == []
    assert held.phases == {10: Phase.CLAIMED}


def test_what_another_took_over_from_me_is_not_mine_any_more() -> None:
    for phase in (Phase.CLAIMED, Phase.SENDING, Phase.FORMER):
        held = holding(Record(10, {10: ME}), at_10=phase)
        assert held.learn(Record(10, {10: OTHER}), ME) == [10]
        assert held.idle


def test_what_i_sent_is_mine_to_confirm_until_nobody_holds_it() -> None:
    held = holding(Record(10, {10: ME}), at_10=Phase.DONE)
    assert held.learn(Record(11, {10: OTHER, 11: OTHER}), ME) == []
    move = held.confirm()
    assert move is not None
    assert move.new == Record(11, {11: OTHER})
    assert held.learn(move.new, ME) == []
    assert held.idle


def test_a_mark_of_mine_means_that_i_have_won() -> None:
    held = Holding(Record(9))
    assert held.learn(Record(12, {10: ME, 12: OTHER}), ME) == []
    assert held.phases == {10: Phase.CLAIMED}


def test_leaving_frees_what_was_not_sent_closes_what_was_and_keeps_what_is_on_its_way() -> None:
    stored = Record(12, {8: ME, 9: ME, 10: ME, 11: OTHER})
    held = holding(stored, at_8=Phase.DONE, at_9=Phase.CLAIMED, at_10=Phase.SENDING)
    move = held.hand_back(ME)
    assert move is not None
    assert move.new == Record(12, {9: HANDED_BACK, 10: ME, 11: OTHER})
    move = held.hand_back(ME, at_most_once=True)
    assert move is not None
    assert (move.new, move.dropped) == (Record(12, {9: HANDED_BACK, 11: OTHER}), {10: ME})
    assert not move.fenced
    assert Holding(Record(12, {11: OTHER})).hand_back(ME) is Holding().hand_back(ME) is None


def test_what_was_tried_and_not_answered_is_left_to_a_takeover_and_so_sent_again_as_a_further_attempt() -> None:
    record = Record(12, {11: ME, 12: ME})
    held = Holding(record, phases={11: Phase.CLAIMED, 12: Phase.CLAIMED}, attempts={11: 1, 12: 0})
    move = held.hand_back(ME)
    assert move is not None
    assert move.new.open == {11: ME, 12: HANDED_BACK}
    move = held.hand_back(ME, at_most_once=True)
    assert move is not None
    assert move.new.open == {11: HANDED_BACK, 12: HANDED_BACK}, "there it was given up, unless the broker said no"


def test_what_was_closed_when_i_last_looked_is_dropped_if_somebody_who_knew_less_has_put_it_back() -> None:
    mine = Holding(Record(20, {15: OTHER}))
    stored = Record(12, {12: OTHER, 15: OTHER, 21: OTHER})
    move = mine.restoring(ME, stored.text(), stored)
    assert move is not None
    assert move.new == Record(20, {15: OTHER, 21: OTHER})
    assert not move.dropped, "nothing is lost: it was sent, or counted"


def test_the_marks_of_others_are_put_back_whether_these_live_or_not() -> None:
    """Who was away does not put in its own: that it finds it there shows that nobody had taken it over."""
    knows = Holding(Record(20, {20: OTHER}))
    move = knows.restoring(ME, None, None)
    assert move is not None
    assert move.new == Record(20, {20: OTHER})
    away = Holding(Record(20, {20: BEFORE}), phases={20: Phase.FORMER})
    assert away.restoring(ME, Record(20).text(), Record(20), doubtful=True) is None
    move = away.restoring(ME, Record(20, {20: BEFORE}).text(), Record(20, {20: BEFORE}), doubtful=True)
    assert move is not None
    assert move.new == Record(20, {20: ME})


def test_what_i_have_put_back_after_one_loss_i_do_not_doubt_after_another() -> None:
    mine = Holding(Record(20, {20: ME}), phases={20: Phase.CLAIMED})
    move = mine.restoring(ME, Record(20).text(), Record(20), doubtful=True)
    assert move is not None
    assert move.new == Record(20, {20: ME})


def test_a_mark_of_mine_for_what_i_do_not_know_to_be_claimed_is_of_a_claim_whose_answer_i_never_got() -> None:
    mine = Holding(Record(20))
    stored = Record(30, {15: BEFORE, 25: BEFORE, 30: OTHER})
    move = mine.restoring(ME, stored.text(), stored)
    assert move is not None
    assert move.new == Record(30, {25: ME, 30: OTHER})
    mine.learn(move.new, ME)
    assert mine.instants(Phase.CLAIMED) == (25,), "it is to be sent"
