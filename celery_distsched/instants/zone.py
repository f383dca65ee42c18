"""A timezone as spans of constant offset, whoever wrote its `tzinfo`.

Only the way from UTC to local time is asked of a `tzinfo`: it is the one that every implementation gets right
(`zoneinfo`, `dateutil`, `pytz`, fixed offsets), while `fold` and the way back differ or are missing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import tzinfo
from typing import NamedTuple

from celery.utils.time import LocalTimezone

from celery_distsched.clock import as_datetime
from celery_distsched.instants.rule import DAY_US, LATEST_US, SECOND_US

# About 407 days: what is found out, and kept, in one go.
_BLOCK_BITS = 45
# No zone has changed its offset and changed it back within 6.9 days since 1970.
_SAMPLE_S = 3 * 86_400
# A clock that was set back reads again what it read up to this long ago (the date line moves it by 24 hours).
_LOOK_BACK_US = 2 * DAY_US
_MOST_ZONES = 1_000


class Span(NamedTuple):
    """From `start` until just before `end` local time is UTC plus `offset`; all in microseconds."""

    start: int
    end: int
    offset: int


class Zone:
    """The local time of one `tzinfo`; wall times are microseconds since 1970-01-01 00:00 on the local clock.

    Equal from every thread: what is kept is only ever added to, and found the same again.
    """

    __slots__ = ("_blocks", "tz")

    _zones: dict[int, Zone] = {}  # noqa: RUF012 - shared by all on purpose

    def __init__(self, tz: tzinfo) -> None:
        self.tz = tz
        self._blocks: dict[int, tuple[Span, ...]] = {}

    @classmethod
    def of(cls, tz: tzinfo) -> Zone:
        """Return the zone of this very object, made once."""
        # By identity: the zones of dateutil cannot be hashed. The zone keeps its tzinfo, and so its id, alive.
        zone = cls._zones.get(id(tz))
        if zone is None:
            if len(cls._zones) >= _MOST_ZONES:
                cls._zones.clear()
            zone = cls._zones[id(tz)] = cls(tz)
        return zone

    def __repr__(self) -> str:
        return f"<Zone {self.tz}>"

    def span(self, instant_us: int) -> Span:
        """Return the span that an instant is in; a long one may come in pieces."""
        block = instant_us >> _BLOCK_BITS
        spans = self._blocks.get(block)
        if spans is None:
            spans = self._blocks[block] = tuple(self._survey(block))
        for span in spans:
            if instant_us < span.end:
                break
        return span

    def high_water(self, instant_us: int) -> int:
        """Return the latest wall time that the local clock has read up to and at this instant."""
        span = self.span(instant_us)
        highest = instant_us + span.offset
        while span.start > instant_us - _LOOK_BACK_US:
            start = span.start
            span = self.span(start - 1)
            highest = max(highest, start - 1 + span.offset)
        return highest

    def reached(self, wall_us: int, after_us: int) -> int:
        """Return the first instant from `after_us` on at which the local clock reads `wall_us` or later.

        For a wall time that is skipped, that is the moment of the change; for one that comes twice, the first time.
        """
        span = self.span(after_us)
        while wall_us - span.offset >= span.end:
            span = self.span(span.end)
        return max(wall_us - span.offset, span.start, after_us)

    def _survey(self, block: int) -> Iterator[Span]:
        start_s = (block << _BLOCK_BITS) // SECOND_US
        end_us = (block + 1) << _BLOCK_BITS
        end_s = min(end_us, LATEST_US + 50 * 366 * DAY_US) // SECOND_US
        start_us, offset_s, known_s = block << _BLOCK_BITS, self._offset_s(start_s), start_s
        while known_s < end_s:
            sample_s = min(known_s + _SAMPLE_S, end_s)
            if self._offset_s(sample_s) != offset_s:
                sample_s = self._change(known_s, sample_s)
                yield Span(start_us, sample_s * SECOND_US, offset_s * SECOND_US)
                start_us, offset_s = sample_s * SECOND_US, self._offset_s(sample_s)
            known_s = sample_s
        yield Span(start_us, end_us, offset_s * SECOND_US)

    def _change(self, before_s: int, after_s: int) -> int:
        """Return the first second of the new offset, known to begin in (before, after]."""
        old = self._offset_s(before_s)
        while after_s - before_s > 1:
            middle = (before_s + after_s) // 2
            if self._offset_s(middle) == old:
                before_s = middle
            else:
                after_s = middle
        return after_s

    def _offset_s(self, instant_s: int) -> int:
        if isinstance(self.tz, LocalTimezone):
            # Celery's stand-in for the system's zone takes UTC for local time near a change; the system knows better.
            return time.localtime(instant_s).tm_gmtoff
        moment = as_datetime(instant_s * SECOND_US)
        offset = moment.astimezone(self.tz).utcoffset()
        if offset is None:
            raise ValueError(f"the timezone {self.tz!r} does not say how far it is from UTC")
        return round(offset.total_seconds())
