"""The project on a machine that can be suspended: while a beat is stopped, its CLOCK_MONOTONIC can stand still.

That is all that tells a suspended machine from a stopped process: its other clocks go on in both.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.acceptance.project import app

__all__ = ["app"]

_offset, _machines = Path(os.environ["ACCEPTANCE_SUSPENDED"]), time.clock_gettime


def _clock_gettime(clock: int, /) -> float:
    now = _machines(clock)
    return now + float(_offset.read_text()) if clock == time.CLOCK_MONOTONIC else now


time.clock_gettime = _clock_gettime
time.monotonic = lambda: _clock_gettime(time.CLOCK_MONOTONIC)
