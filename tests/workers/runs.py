"""What a worker says that it has run, and what is wrong with that."""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

ENTRIES = tuple(f"entry-{number}" for number in range(20))
EVERY_S = 1.0

_RAN = re.compile(r"ran (\{.*\})$", re.MULTILINE)
_EVERY_US = round(EVERY_S * 1_000_000)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class Run(NamedTuple):
    """One execution of a task, by what the task itself has seen."""

    entry: str
    scheduled_at: str
    node: str
    task_id: str

    @property
    def instant_us(self) -> int:
        """The instant, in microseconds since the epoch."""
        return (datetime.fromisoformat(self.scheduled_at) - _EPOCH) // timedelta(microseconds=1)

    @property
    def pid(self) -> int:
        """The process id of the beat that sent it."""
        return int(self.node.rsplit("-", 2)[1])


def runs(worker: Any) -> list[Run]:
    """Return every execution that a worker has logged, oldest first."""
    return [Run(**json.loads(found)) for found in _RAN.findall(worker.logs())]


def missing(seen: Iterable[Run]) -> list[tuple[str, int]]:
    """Return (entry, instant) of every gap between an entry's first run and its last."""
    instants = {entry: {run.instant_us for run in seen if run.entry == entry} for entry in ENTRIES}
    return [
        (entry, instant)
        for entry, had in instants.items()
        for instant in range(min(had), max(had), _EVERY_US)
        if instant not in had
    ]


def off_the_grid(seen: Iterable[Run]) -> list[Run]:
    """Return the runs that are no whole number of intervals from the first of their entry."""
    first: dict[str, int] = {}
    return [run for run in seen if (run.instant_us - first.setdefault(run.entry, run.instant_us)) % _EVERY_US]


def task_ids(seen: Iterable[Run]) -> dict[tuple[str, int], list[str]]:
    """Return the task ids under which each (entry, instant) was run, once for each time."""
    ids = defaultdict(list)
    for run in seen:
        ids[run.entry, run.instant_us].append(run.task_id)
    return ids


def all_ran_after(worker: Any, moment: float) -> Callable[[], bool]:
    """Ask whether every entry has run for an instant after this moment of the wall clock."""
    return lambda: {run.entry for run in runs(worker) if run.instant_us > moment * 1_000_000} == set(ENTRIES)


def eventually(so: Callable[[], bool], within_s: float, what: str) -> None:
    """Return when it is so; raises `AssertionError` if that takes too long."""
    deadline = time.monotonic() + within_s
    while not so():
        assert time.monotonic() < deadline, f"after {within_s:g} s: not {what}"
        time.sleep(0.05)
