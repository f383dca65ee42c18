"""The clocks of one host.

Deadlines, leases and liveness are measured on `elapsed`; the wall clock is only ever
compared with the wall clocks of others (see `node_pool`), never used to decide what is due.
"""

from __future__ import annotations

import time

# `time.monotonic` stands still while a Linux host is suspended: a laptop or a frozen VM would wake up
# trusting a lease that ran out hours ago. CLOCK_BOOTTIME goes on.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", None)


class Clock:
    """Where time comes from; tests and simulations hand in their own."""

    def elapsed(self) -> float:
        """Seconds that never step back and go on while the host is suspended."""
        return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)

    def wall(self) -> float:
        """This host's idea of the time, in seconds since the epoch."""
        return time.time()


def microseconds(seconds: float) -> int:
    """Instants are integer microseconds since the epoch, in UTC."""
    return round(seconds * 1_000_000)
