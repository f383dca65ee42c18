"""A wall clock that is wrong, for one process, and can be stepped while it runs."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path

from tests.servers.binaries import MissingServer

_LIBRARIES = Path("/usr/lib")
_LIBRARY = "faketime/libfaketimeMT.so.1"


class FakeClock:
    """What a process with this `environment` takes for the time of day; clocks that never step are left alone."""

    def __init__(self, ahead_s: float = 0.0) -> None:
        folder = tempfile.mkdtemp(prefix="clock-")
        self._file = Path(folder) / "offset"
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.step_to(ahead_s)

    def step_to(self, ahead_s: float) -> None:
        """Show, from now on, a time that is so many seconds ahead of the machine's."""
        # Replaced as a whole: a process may be reading it.
        new = self._file.with_suffix(".new")
        new.write_text(f"{ahead_s:+.3f}\n")
        new.replace(self._file)

    def environment(self) -> dict[str, str]:
        """Return what makes a process see it; raises `MissingServer` where the library is not on this machine."""
        found = sorted(_LIBRARIES.glob(_LIBRARY)) + sorted(_LIBRARIES.glob(f"*/{_LIBRARY}"))
        if not found:
            raise MissingServer(f"the tests need {_LIBRARY}, which is not on this machine: run `make servers`")
        return {
            # jemalloc, which Redis is built with, asks for the time while libfaketime begins, which needs memory for
            # it, and so on for ever. The C library's own allocator does not.
            "LD_PRELOAD": f"{found[0]} libc.so.6",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
        }


class PythonClock(FakeClock):
    """The same for a Python process that looks at this variable, and for nothing that it does in C.

    Under libfaketime Python cannot sleep, and on a busy machine a process with threads stands still for seconds.
    """

    def environment(self) -> dict[str, str]:
        """Return where the offset is to be read."""
        return {"ACCEPTANCE_CLOCK": str(self._file)}


class SuspendedClock(FakeClock):
    """How much CLOCK_MONOTONIC is behind for a Python process that looks at this variable: it has been suspended.

    A machine's other clocks go on meanwhile.
    """

    def environment(self) -> dict[str, str]:
        """Return where the offset is to be read."""
        return {"ACCEPTANCE_SUSPENDED": str(self._file)}
