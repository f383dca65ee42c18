"""Rules that count from the last instant: a drift-free grid, plain or rounded to the clock."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta, tzinfo
from typing import Any

from celery_distsched.errors import ConfigError
from celery_distsched.instants.rule import DAY_US, LATEST_US, SECOND_US, Rule
from celery_distsched.instants.zone import Zone

#: The shortest interval, in microseconds: 100 runs a second are a stream, not a schedule.
SHORTEST_US = 10_000
_MICROSECOND = timedelta(microseconds=1)


def interval_us(schedule: Any) -> int:
    """Return the interval of a `celery.schedules.schedule` in microseconds.

    Raises:
        ConfigError: It is below 10 ms; the message says how to mend it.
    """
    every = schedule.run_every // _MICROSECOND
    if every < SHORTEST_US:
        raise ConfigError(
            f"its interval ({every / SECOND_US:g} s) is below {SHORTEST_US / SECOND_US:g} s; "
            "set 'schedule' to 0.01 or more, and let the task repeat by itself what must run more often"
        )
    return int(every)


class Interval(Rule):
    """One interval after the last instant, without drift."""

    __slots__ = ("_every",)

    def __init__(self, every_us: int) -> None:
        self._every = every_us

    def after(self, last_us: int) -> int | None:
        """Return the next instant of the grid that the last one is on."""
        instant = last_us + self._every
        return instant if instant < LATEST_US else None

    def newest_first(self, last_us: int, upto_us: int) -> Iterator[int]:
        """Yield the grid's instants in (last, upto], newest first."""
        return reversed(range(last_us + self._every, upto_us + 1, self._every))

    def count(self, last_us: int, upto_us: int) -> int:
        """Return how many of the grid's instants there are in (last, upto]."""
        return max(0, (upto_us - last_us) // self._every)


class RelativeInterval(Rule):
    """One interval after the last instant, rounded down to the interval's resolution on the local clock.

    An interval of a day or more counts in calendar days and is rounded to midnight, one of an hour or more to the
    hour, of a minute or more to the minute, of a second or more to the second.
    """

    __slots__ = ("_every", "_unit", "_zone")

    def __init__(self, every_us: int, tz: tzinfo) -> None:
        self._every = every_us
        self._zone = Zone.of(tz)
        units = (DAY_US, 3600 * SECOND_US, 60 * SECOND_US, SECOND_US)
        self._unit = next((unit for unit in units if every_us >= unit), 1)

    def after(self, last_us: int) -> int | None:
        """Return the first rounded instant after the last one; it is always later."""
        end = last_us + self._every
        if end >= LATEST_US:
            return None
        if self._unit == DAY_US:
            wall = last_us + self._zone.span(last_us).offset + self._every
            return self._zone.reached(wall - wall % DAY_US, last_us)
        span = self._zone.span(end)
        wall = end + span.offset
        rounded = wall - wall % self._unit
        instant = rounded - span.offset
        if instant < span.start:
            # The rounding reaches back over a change: to before it, or into what it skipped.
            instant = min(rounded - self._zone.span(span.start - 1).offset, span.start)
        # A change by part of the unit can put the boundary before the last instant: then the next one is meant.
        return instant if instant > last_us else rounded + self._unit - span.offset

    def newest_first(self, last_us: int, upto_us: int) -> Iterator[int]:
        """Yield the instants in (last, upto], newest first."""
        for run in reversed(list(self._runs(last_us, upto_us))):
            yield from reversed(run)

    def count(self, last_us: int, upto_us: int) -> int:
        """Return how many instants there are in (last, upto]."""
        return sum(len(run) for run in self._runs(last_us, upto_us))

    def _runs(self, last_us: int, upto_us: int) -> Iterator[range]:
        """Yield the instants in (last, upto] as a range for each stretch without a change of the clocks."""
        step = self._every - self._every % self._unit
        instant = self.after(last_us)
        while instant is not None and instant <= upto_us:
            span = self._zone.span(instant)
            steps = 0
            if (instant + span.offset) % self._unit == 0:
                # As long as the unrounded end is in the span too, each step is the same.
                steps = max(0, (min(span.end, upto_us + 1) - 1 - instant - self._every) // step + 1)
            yield range(instant, instant + steps * step + 1, step)
            instant = self.after(instant + steps * step)
