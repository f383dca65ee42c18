"""The schedule of the acceptance runs, and when its entries ought to run, said without the package under test."""

from __future__ import annotations

from typing import Any, NamedTuple

from celery.schedules import crontab

from celery_distsched import cron

SECOND_US = 1_000_000


class Rhythm(NamedTuple):
    """An entry's schedule, and the grid that its instants lie on."""

    schedule: Any
    every_us: int
    #: The grid goes through the epoch, as a clock's does; otherwise through whatever instant the cluster chose.
    by_the_clock: bool

    def instants(self, on_grid_us: int, after_us: int, upto_us: int) -> range:
        """Return the instants in (after, upto] of the grid through one instant that is known to be on it."""
        phase_us = 0 if self.by_the_clock else on_grid_us % self.every_us
        first = after_us - (after_us - phase_us) % self.every_us + self.every_us
        return range(first, upto_us + 1, self.every_us)


def rhythms(count: int, fastest_s: float = 1.0) -> dict[str, Rhythm]:
    """Return that many entries: half every second, one every minute, the rest every 1 to 5 times `fastest_s`."""
    half = count // 2
    entries = {f"second-{number}": Rhythm(cron("* * * * * *"), SECOND_US, by_the_clock=True) for number in range(half)}
    for number in range(count - half - 1):
        every_s = (1 + number % 5) * fastest_s
        entries[f"interval-{number}"] = Rhythm(every_s, round(every_s * SECOND_US), by_the_clock=False)
    entries["minute"] = Rhythm(crontab(), 60 * SECOND_US, by_the_clock=True)
    return entries
