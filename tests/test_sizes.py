"""What is read from a store has a size: a text that no beat can have written is not taken apart."""

from __future__ import annotations

import json
import os

import pytest

from celery_distsched.info import Info
from celery_distsched.record import MAX_OPEN, Record, Version

MOST = 16_384
LAST_US = 1_800_000_000_000_000


def membership(host: str) -> str:
    """The longest that a node of this host can have."""
    return f"{host}-{2**22}-{'f' * 8}#{10**6}"


def fullest(mark: str) -> Record:
    """All that a record can hold, of the longest there is."""
    marks = {LAST_US - number: mark for number in range(MAX_OPEN)}
    return Record(LAST_US, marks, paused=True, version=Version("f" * 64, 10**17))


# The most that POSIX allows for, and Linux. What is no UTF-8 takes six characters of JSON for each byte.
@pytest.mark.parametrize("host", ["h" * 255, os.fsdecode(b"\xff" * 64)], ids=["long", "no text"])
def test_the_fullest_record_of_the_longest_names_is_read_back(host: str) -> None:
    record = fullest(membership(host))
    assert Record.parse(record.text()) == record


@pytest.mark.parametrize("host", ["h" * 255, os.fsdecode(b"\xff" * 64)], ids=["long", "no text"])
def test_what_a_node_with_the_longest_names_says_of_itself_is_read_back(host: str) -> None:
    said = Info(host, 10**6, "f" * 32, "c" * 1000, active=True, wall_us=LAST_US, cluster_us=LAST_US, epoch=10**17)
    assert Info.parse(said.text()) == said


@pytest.mark.parametrize(
    "text",
    [
        fullest("m" * 500).text(),
        Record(LAST_US, dict.fromkeys(range(LAST_US - 1_000, LAST_US), membership("host"))).text(),
        Record(LAST_US).text() + " " * MOST,
        json.dumps({"last": LAST_US, "later": "x" * MOST}),
    ],
    ids=["long marks", "many marks", "space", "another field"],
)
def test_a_record_that_is_too_long_is_refused_and_says_so(text: str) -> None:
    json.loads(text)
    with pytest.raises(ValueError, match=f"of {len(text)} characters; a record has at most {MOST}"):
        Record.parse(text)


def test_a_record_of_as_many_characters_as_it_may_have_is_read() -> None:
    short = Record(LAST_US, {LAST_US: ""})
    longest = Record(LAST_US, {LAST_US: "m" * (MOST - len(short.text()))})
    assert Record.parse(longest.text()) == longest
    with pytest.raises(ValueError, match=str(MOST)):
        Record.parse(f"{longest.text()} ")


def test_what_a_refused_record_is_said_to_hold_is_short() -> None:
    with pytest.raises(ValueError, match="not a record") as refused:
        Record.parse(" " * 10_000_000)
    assert len(str(refused.value)) < 200


def test_what_a_node_says_of_itself_is_not_read_if_it_is_too_long() -> None:
    said = Info("h" * 20_000, 0, "digest", "cluster", active=True, wall_us=LAST_US)
    json.loads(said.text())
    assert Info.parse(said.text()) is None
    fitting = Info("h" * (MOST - len(said.text()) + 20_000), 0, "digest", "cluster", active=True, wall_us=LAST_US)
    assert Info.parse(fitting.text()) == fitting
    assert Info.parse(f"{fitting.text()} ") is None
