"""What happens to thousands of entries at once is logged whole of the first few, and summed up of the others."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from celery_distsched.many_lines import MOST, ManyLines
from celery_distsched.record import HANDED_BACK, Record
from tests.scheduler.cluster import HOUR_US, HOURLY, Cluster, now_us

NAMES = [f"entry-{number}" for number in range(1000 + MOST)]


@pytest.fixture
def scheme() -> str:
    return "sqlite"


#: What happens to all → what the records are, and the level and the end of the line that sums it up.
CASES: dict[str, tuple[Callable[[], Record], int, str]] = {
    "future": (
        lambda: Record(now_us() + 10 * HOUR_US),
        logging.ERROR,
        "entries with a record that is still to come: they do not run before then",
    ),
    "skipped": (
        lambda: Record(now_us() - 10 * HOUR_US),
        logging.WARNING,
        "entries of which missed runs were skipped, as their catch-up policies say",
    ),
    "dead": (
        lambda: Record(last := now_us(), {last: "gone#1"}),
        logging.WARNING,
        "runs taken over from dead nodes, to be sent again",
    ),
    "left": (
        lambda: Record(last := now_us(), {last: HANDED_BACK}),
        logging.INFO,
        "runs handed over by nodes that left; sending them",
    ),
}


def those(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


@pytest.mark.parametrize("case", CASES)
def test_of_a_thousand_entries_ten_have_a_line_and_the_others_one(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    record, level, others = CASES[case]
    caplog.set_level(logging.INFO)
    cluster.seed(*NAMES, record=record())
    beat, said = cluster.beat({name: {**HOURLY, "catch_up": "none"} for name in NAMES}), 0

    def all_said() -> bool:
        nonlocal said
        # Claims may take several ticks, and each begins anew.
        lines = those(caplog, level)
        of_entries = [line for line in lines if line.startswith("entry ")]
        summed_up = [int(line.split()[2].replace(",", "")) for line in lines if line.endswith(others)]
        assert len(of_entries) == MOST if summed_up else len(of_entries) <= MOST
        assert len(summed_up) <= 1
        said += len(of_entries) + sum(summed_up)
        caplog.clear()
        return said >= len(NAMES)

    beat.tick_until(all_said, within_s=30)
    assert said == len(NAMES)


def test_each_run_that_may_be_lost_is_named(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    now = now_us()
    cluster.seed(*NAMES, record=Record(now, {now: "gone#1"}))
    beat = cluster.beat(dict.fromkeys(NAMES, HOURLY), distsched_delivery="at_most_once")
    beat.tick_until(lambda: len(those(caplog, logging.ERROR)) >= len(NAMES), within_s=30)
    lost = [line.split("'")[1] for line in those(caplog, logging.ERROR) if "possibly lost" in line]
    assert sorted(lost) == sorted(NAMES)


def test_each_kind_and_each_tick_counts_for_itself(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "tests.many")
    lines = ManyLines(logging.getLogger("tests.many"))
    for _ in range(2):
        for number in range(MOST + 2):
            lines.say(logging.ERROR, "of one kind", "one %d", number)
        lines.say(logging.WARNING, "of another", "another")
        lines.sum_up()
    lines.sum_up()
    assert those(caplog, logging.ERROR) == 2 * [
        *(f"one {number}" for number in range(MOST)),
        "… and 2 more of one kind",
    ]
    assert those(caplog, logging.WARNING) == 2 * ["another"]
    assert those(caplog, logging.DEBUG) == 2 * [f"one {MOST}", f"one {MOST + 1}"]
