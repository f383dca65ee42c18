"""The clocks of one host.

Deadlines, leases and liveness are measured on `elapsed`. What is due follows cluster time (see `cluster_time`): the
store's where it tells the time, and else the lower median of the nodes' wall clocks.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone

# `time.monotonic` stands still while a Linux host is suspended: a laptop or a frozen VM would wake up
# trusting a lease that ran out hours ago. CLOCK_BOOTTIME goes on.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", None)


class Clock:
    """Where time comes from; tests and simulations hand in their own."""

    def elapsed(self) -> float:
        """Seconds that never step back and go on while the host is suspended."""
        return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)

    def wall(self) -> float:
        """Return this host's idea of the time, in seconds since the epoch."""
        return time.time()


def microseconds(seconds: float) -> int:
    """Instants are integer microseconds since the epoch, in UTC."""
    return round(seconds * 1_000_000)


_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def as_datetime(instant_us: int) -> datetime:
    """Return an instant as an aware datetime in UTC, exact to the microsecond."""
    return _EPOCH + timedelta(microseconds=instant_us)


def instant_of(moment: datetime) -> int:
    """Return a datetime as an instant; a naive one is UTC, as in Celery's schedules."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return (moment - _EPOCH) // timedelta(microseconds=1)


def iso(instant_us: int) -> str:
    """Return an instant as ISO 8601 in UTC, as it goes into headers and logs."""
    return as_datetime(instant_us).isoformat()
