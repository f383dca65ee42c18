"""The schedules that the beats are given, all of whose entries fall due at a moment that is known beforehand."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

from celery.schedules import crontab

from celery_distsched import cron

SECOND_US = 1_000_000
#: Every task of the benchmarks; nobody runs it.
TASK = "benchmarks.nobody_runs_it"
#: Where nothing else is due within a benchmark.
_DAY_S = 86_400


class Workload(NamedTuple):
    """So many entries of one kind.

    ======== ========================================================================================
    interval each once a day, one schedule for all
    crontab  the same minute of each hour, one schedule for all
    cron     the same second of each hour, one schedule for all
    mixed    a third of each, and no two of the crontabs and crons alike
    second   each second on the second
    spread   each once a second, their instants spread evenly over it
    ======== ========================================================================================
    """

    kind: str
    size: int
    #: When every entry falls due, in seconds since the epoch.
    due_s: int

    def names(self) -> list[str]:
        """Return the names of the entries."""
        return [f"entry-{number}" for number in range(self.size)]

    def schedule(self) -> dict[str, dict[str, Any]]:
        """Return a ``beat_schedule``."""
        when = self._schedules()
        last_run_at = self.last_run_at()
        return {
            name: {"task": TASK, "schedule": when[number % len(when)], "last_run_at": last_run_at}
            for number, name in enumerate(self.names())
        }

    def last_run_at(self) -> datetime:
        """Return when each entry ran last: no other run is due between that and the moment."""
        every_s = _DAY_S if self.kind == "interval" else 1800
        return datetime.fromtimestamp(self.due_s, timezone.utc) - timedelta(seconds=every_s)

    def last_us(self, number: int) -> int:
        """Return when an entry ran last, in microseconds since the epoch."""
        if self.kind == "second":
            return (self.due_s - 1) * SECOND_US
        if self.kind == "spread":
            return (self.due_s - 1) * SECOND_US + number * SECOND_US // self.size
        every_s = _DAY_S if self.kind == "interval" or (self.kind == "mixed" and number % 3 == 0) else 1800
        return (self.due_s - every_s) * SECOND_US

    def _schedules(self) -> list[Any]:
        due = datetime.fromtimestamp(self.due_s, timezone.utc)
        by_the_clock = f"{due.second} {due.minute} * * * *"
        if self.kind == "mixed":
            return [self._mixed(number, due) for number in range(self.size)]
        return {
            "interval": [_DAY_S],
            "crontab": [crontab(minute=str(due.minute))],
            "cron": [cron(by_the_clock)],
            "second": [cron("* * * * * *")],
            "spread": [1],
        }[self.kind]

    def _mixed(self, number: int, due: datetime) -> Any:
        if number % 3 == 0:
            return _DAY_S
        # The hour in which it is due, and others by the bits of the number: no two alike.
        hours = {due.hour, *(hour for hour in range(24) if number >> hour & 1)}
        listed = ",".join(map(str, sorted(hours)))
        if number % 3 == 1:
            return crontab(minute=str(due.minute), hour=listed)
        return cron(f"{due.second} {due.minute} {listed} * * *")
