"""``make demo``: what it computes, and that it leaves nothing behind, whatever way it ends."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
from celery.schedules import crontab

from celery_distsched import cron
from example_project.demo.report import SECOND_US, Grid, compare, grids, longest_gap, ran_again
from example_project.demo.runs import Run, Runs
from example_project.demo.text import Style, rendered
from example_project.schedule import beat_schedule

ROOT = Path(__file__).resolve().parents[1]
COMMAND = (sys.executable, "-m", "example_project.demo", "--store", "sqlite")
#: A whole minute.
T0 = 1_800_000_000
EXPECTED = {"second": Grid(SECOND_US, clock=True), "interval": Grid(2 * SECOND_US, clock=False)}


# What is computed


def run(entry: str, at: float, *, received: float | None = None, pid: int = 1) -> Run:
    """Return a run for an instant `at` seconds after T0."""
    arrived = T0 + (at + 0.01 if received is None else received)
    return Run(entry, round((T0 + at) * SECOND_US), f"{entry} at {at}", pid, arrived)


def ten_seconds() -> list[Run]:
    return [*(run("second", at) for at in range(10)), *(run("interval", at + 0.25) for at in range(0, 10, 2))]


UNTIL = (T0 + 9) * SECOND_US


def test_each_occurrence_once_is_clean() -> None:
    report = compare(EXPECTED, ten_seconds(), UNTIL)
    assert report.clean
    assert (report.expected, report.same_id) == (10 + 5, 0)


@pytest.mark.parametrize(("entry", "at"), [("second", 4), ("second", 9), ("interval", 2.25), ("interval", 8.25)])
def test_a_run_that_did_not_arrive_is_lost(entry: str, at: float) -> None:
    runs = [each for each in ten_seconds() if each != run(entry, at)]
    report = compare(EXPECTED, runs, UNTIL)
    assert report.lost == ((entry, round((T0 + at) * SECOND_US)),)
    assert not report.clean


def test_a_run_that_arrived_twice_is_doubled_whatever_its_task_id() -> None:
    again = run("second", 4, received=6.0, pid=2)
    report = compare(EXPECTED, [*ten_seconds(), again], UNTIL)
    assert (report.doubled, report.same_id, report.clean) == ((("second", again.instant_us),), 1, False)
    for killed_s, excused in ((4.1, True), (3.9, False), (5.5, False)):
        report = compare(EXPECTED, [*ten_seconds(), again], UNTIL, round((T0 + killed_s) * SECOND_US))
        assert (report.clean, bool(report.excused)) == (excused, excused), "sent again when a beat was killed"
    report = compare(EXPECTED, [*ten_seconds(), replace(again, task_id="another")], UNTIL, (T0 + 4) * SECOND_US)
    assert (report.doubled, report.same_id, report.clean) == ((("second", again.instant_us),), 0, False)


def test_a_run_for_an_instant_that_the_entry_does_not_have_is_no_run_of_the_schedule() -> None:
    stray = run("interval", 5)
    report = compare(EXPECTED, [*ten_seconds(), stray], UNTIL)
    assert (report.strays, report.clean) == ((("interval", stray.instant_us),), False)


def test_an_entry_that_never_ran_is_missed_from_when_all_others_had_run() -> None:
    expected = {**EXPECTED, "minute": Grid(60 * SECOND_US, clock=True), "hour": Grid(3600 * SECOND_US, clock=True)}
    runs = [run("second", at) for at in range(50, 70)] + [run("interval", at + 0.5) for at in range(50, 70, 2)]
    assert compare(expected, runs, (T0 + 69) * SECOND_US).lost == (("minute", (T0 + 60) * SECOND_US),)


def test_what_was_due_after_the_end_may_still_be_on_its_way() -> None:
    assert compare(EXPECTED, [each for each in ten_seconds() if each != run("second", 9)], UNTIL - 1).clean


def test_a_double_counts_even_after_the_end() -> None:
    assert not compare(EXPECTED, [*ten_seconds(), run("second", 9)], UNTIL - 1).clean


def test_the_longest_gap_spans_the_event_and_counts_what_is_still_open() -> None:
    runs = [run("second", at) for at in (0, 1, 2, 8, 9)]
    assert longest_gap(runs, ["second"], T0 + 2.5, T0 + 9.5) == pytest.approx(6.0)
    assert longest_gap(runs, ["second"], T0 + 8.5, T0 + 9.5) == pytest.approx(1.0)
    assert longest_gap(runs, ["second"], T0 + 8.5, T0 + 13.0) == pytest.approx(13 - 9.01)


def test_entries_run_again_when_somebody_else_has_run_the_last_of_them() -> None:
    runs = [run("a", 3, received=7.0, pid=2), run("b", 3, received=3.1, pid=1)]
    assert ran_again(runs, ["a"], T0 + 2, not_by=1) == pytest.approx(5.0)
    assert ran_again(runs, ["a", "b"], T0 + 2, not_by=1) is None


def test_the_instants_of_the_example_are_known_and_a_schedule_that_is_not_is_refused() -> None:
    known = grids(beat_schedule)
    assert known["sensor-01"] == Grid(SECOND_US, clock=True)
    assert known["prices"] == Grid(SECOND_US * 3 // 2, clock=False)
    assert known["backlog"] == Grid(5 * SECOND_US, clock=True)
    assert known["report"] == Grid(60 * SECOND_US, clock=True)
    for schedule in (cron("0 12 * * *"), cron("*/7 * * * * *"), crontab(hour=3)):
        with pytest.raises(ValueError, match="'odd'"):
            grids({"odd": {"schedule": schedule}})


def test_half_a_line_is_read_when_it_is_whole(tmp_path: Path) -> None:
    line = (
        '{"entry": "a", "scheduled_at": "2027-01-15T08:00:00.250000+00:00", "task_id": "x", "node": "h-o-42-f",'
        ' "received": 5.0}\n'
    )
    path = tmp_path / "runs"
    path.write_text(line[:50])
    runs = Runs(path)
    runs.read()
    assert runs.all == []
    path.write_text(line)
    runs.read()
    runs.read()
    assert runs.all == [Run("a", T0 * SECOND_US + 250_000, "x", 42, 5.0)]


def test_a_line_is_cut_where_the_terminal_ends_and_no_colour_runs_on() -> None:
    line = [("ab", Style.PLAIN), ("cdef", Style.RED), ("gh", Style.GREEN)]
    assert rendered(line, 4, colour=True) == "ab\x1b[31mcd\x1b[0m"
    assert rendered(line, 100, colour=False) == "abcdefgh"


# The real thing


@contextmanager
def demo(tmp_path: Path, output: int = subprocess.PIPE) -> Iterator[subprocess.Popen[str]]:
    """Start the demo; its own folder is made in `tmp_path`."""
    # A session of its own, as in a terminal: no signal of ours reaches its children by way of the group.
    process = subprocess.Popen(
        [*COMMAND, "--pause", "0.5"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path), "TERM": "xterm", "COLUMNS": "110", "LINES": "40"},
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    found: list[psutil.Process] = psutil.Process(process.pid).children(recursive=True)
    return found


def eventually(condition: Callable[[], bool], within_s: float, what: str) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_the_demo_is_clean_and_says_so_within_a_minute(tmp_path: Path) -> None:
    started = time.monotonic()
    with demo(tmp_path) as process:
        text, _ = process.communicate(timeout=75)
    assert process.returncode == 0, text
    assert time.monotonic() - started < 60
    due = re.search(r"(\d+) due   (\d+) arrived   0 lost   0 doubled", text)
    assert due, text
    assert due[1] == due[2]
    runs = [int(count) for count in re.findall(r"beat \d +(\d+) runs", text)]
    assert len(runs) == 4
    assert min(runs) > 0
    assert sum(runs) == int(due[1])
    gap = re.search(r"([\d.]+) s +after kill -9", text)
    assert gap, text
    assert float(gap[1]) > 2
    assert "Nothing lost, nothing doubled" in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_whatever_ends_the_demo_nothing_is_left_running(tmp_path: Path, signum: signal.Signals) -> None:
    with demo(tmp_path) as process:
        eventually(lambda: len(children(process)) >= 5, 30, "a guard, a worker and three beats were expected")
        family = children(process)
        process.send_signal(signum)
        text, _ = process.communicate(timeout=10)
    try:
        eventually(lambda: not any(each.is_running() for each in family), 5, f"still there: {family}\n{text}")
    finally:
        for each in family:
            if each.is_running():
                each.kill()
    if signum == signal.SIGINT:
        assert process.returncode == 128 + signum, text
        assert list(tmp_path.iterdir()) == []


def test_a_terminal_is_given_back_as_it_was(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    try:
        with demo(tmp_path, theirs) as process:
            seen = ""

            def shown(text: str) -> bool:
                nonlocal seen
                while select.select([ours], [], [], 0)[0]:
                    seen += os.read(ours, 65536).decode()
                return text in seen

            eventually(lambda: shown("alive"), 30, "the table was expected to show a beat")
            process.send_signal(signal.SIGTERM)
            eventually(lambda: shown("Interrupted") and process.poll() is not None, 10, "the demo was expected to end")
        shown("")
    finally:
        os.close(ours)
        os.close(theirs)
    assert process.returncode == 128 + signal.SIGTERM
    assert seen.index("\x1b[?1049h") < seen.index("\x1b[?25l") < seen.rindex("\x1b[?25h") < seen.rindex("\x1b[?1049l")
    assert list(tmp_path.iterdir()) == []
