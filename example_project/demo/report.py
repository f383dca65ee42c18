"""What should have run, what did, and the difference: from the schedule and from what arrived, nothing else."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from celery.schedules import crontab, maybe_schedule

from celery_distsched import cron
from example_project.demo.runs import Run

SECOND_US = 1_000_000
#: An entry and the instant for which it was to run.
Occurrence = tuple[str, int]


@dataclass(frozen=True)
class Grid:
    """The instants of one entry: every ``step_us`` microseconds."""

    step_us: int
    #: On whole multiples of the step since the epoch, like a clock; otherwise counted from the first run.
    clock: bool

    def instants(self, first_us: int | None, since_us: int, until_us: int) -> range:
        """Return the instants up to ``until_us``, from the first run on or, where there was none, from ``since_us``."""
        start_us = first_us
        if start_us is None:
            start_us = -(-since_us // self.step_us) * self.step_us if self.clock else since_us + self.step_us
        return range(start_us, until_us + 1, self.step_us)

    def holds(self, first_us: int, instant_us: int) -> bool:
        """Whether an instant is one of these."""
        return (instant_us - (0 if self.clock else first_us)) % self.step_us == 0


def grids(beat_schedule: Mapping[str, Mapping[str, Any]]) -> dict[str, Grid]:
    """Return the grid of each entry; raises `ValueError` for a schedule whose instants this does not know."""
    return {name: _grid(name, entry["schedule"]) for name, entry in beat_schedule.items()}


def _grid(name: str, schedule: Any) -> Grid:
    if isinstance(schedule, cron):
        step = re.fullmatch(r"\*(?:/(\d+))?( \*){5}", schedule.expression)
        if step and 60 % int(step[1] or 1) == 0:
            return Grid(int(step[1] or 1) * SECOND_US, clock=True)
    elif isinstance(schedule, crontab):
        if schedule == crontab():
            return Grid(60 * SECOND_US, clock=True)
    else:
        return Grid(round(maybe_schedule(schedule).run_every.total_seconds() * SECOND_US), clock=False)
    raise ValueError(
        f"entry {name!r}: the demo can check cron('* * * * * *'), cron('*/5 * * * * *'), crontab() or seconds"
    )


@dataclass(frozen=True)
class Report:
    """The comparison of what was due with what arrived, up to one instant."""

    until_us: int
    expected: int
    lost: tuple[Occurrence, ...]
    #: Occurrences that arrived more than once, for no reason.
    doubled: tuple[Occurrence, ...]
    #: Those that arrived again under one task id, since the beat that had sent them was killed before it could note it.
    excused: tuple[Occurrence, ...]
    #: Messages that arrived with a task id that had arrived before.
    same_id: int
    #: Runs for instants that their entries do not have.
    strays: tuple[Occurrence, ...]

    @property
    def clean(self) -> bool:
        """Whether each occurrence was run once, but for what a killed beat could not note any more."""
        return not (self.lost or self.doubled or self.strays)


def compare(expected: Mapping[str, Grid], runs: Sequence[Run], until_us: int, killed_us: int | None = None) -> Report:
    """Compare what arrived with what should have.

    Args:
        expected: Entry → its instants.
        runs: What arrived.
        until_us: What was due later may still be on its way.
        killed_us: When a beat was killed.
    """
    arrived = Counter((run.entry, run.instant_us) for run in runs if run.entry in expected)
    ids = Counter(run.task_id for run in runs if run.entry in expected)
    first: dict[str, int] = {}
    for entry, instant in arrived:
        first[entry] = min(instant, first.get(entry, instant))
    # From then on every beat must have known of every entry.
    since_us = max(first.values(), default=until_us)
    due = {
        (entry, instant)
        for entry, grid in expected.items()
        for instant in grid.instants(first.get(entry), since_us, until_us)
    }
    again = {occurrence for occurrence, times in arrived.items() if times > 1}
    with_ids = {(run.entry, run.instant_us, run.task_id) for run in runs}
    one_id = {occurrence for occurrence, ids_ in Counter((entry, at) for entry, at, _ in with_ids).items() if ids_ == 1}
    # What is sent is noted within a tenth of a second, and sent within the second in which it falls due.
    at_the_kill = {(name, at) for name, at in again if killed_us is not None and 0 <= killed_us - at <= SECOND_US}
    excused = again & one_id & at_the_kill
    return Report(
        until_us=until_us,
        expected=len(due),
        lost=tuple(sorted(due - arrived.keys())),
        doubled=tuple(sorted(again - excused)),
        excused=tuple(sorted(excused)),
        same_id=sum(times - 1 for times in ids.values()),
        strays=tuple(sorted((name, at) for name, at in arrived if not expected[name].holds(first[name], at))),
    )


def longest_gap(runs: Iterable[Run], entries: Iterable[str], since: float, until: float) -> float:
    """Return the longest time, in seconds, between two arrivals of one entry, as far as it lies after ``since``.

    A gap that is still open at ``until`` counts up to there.
    """
    arrivals: dict[str, list[float]] = {entry: [] for entry in entries}
    for run in runs:
        if run.entry in arrivals and run.received <= until:
            arrivals[run.entry].append(run.received)
    longest = 0.0
    for times in arrivals.values():
        ordered = [*sorted(times), until]
        gaps = (later - earlier for earlier, later in pairwise(ordered) if later > since)
        longest = max(longest, max(gaps, default=0.0))
    return longest


def ran_again(runs: Iterable[Run], entries: Iterable[str], since: float, not_by: int) -> float | None:
    """Return after how many seconds the last of these entries was run by somebody else; None: not all were yet."""
    again: dict[str, float] = defaultdict(lambda: float("inf"))
    for run in runs:
        if run.received > since and run.pid != not_by:
            again[run.entry] = min(again[run.entry], run.received - since)
    slowest = max((again[entry] for entry in entries), default=0.0)
    return None if slowest == float("inf") else slowest
