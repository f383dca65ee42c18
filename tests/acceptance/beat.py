"""One beat as a whole process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.acceptance.occurrences import Occurrence
from tests.acceptance.queue import Queue
from tests.servers import Server
from tests.servers.fake_clock import FakeClock

_ROOT = Path(__file__).resolve().parents[2]


class Beat(Server):
    """One ``celery beat``, or one ``celery worker`` with a beat inside: ready when its beat has sent something."""

    scheme = "beat"

    def __init__(
        self,
        name: str,
        words: Sequence[str],
        environment: Mapping[str, str],
        queue: Queue,
        clock: FakeClock | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.clock = clock
        self._prefix = prefix
        self.name = name
        self._words = words
        self._environment = environment
        self._queue = queue
        #: The process id of the beat itself, which in a worker is a child's.
        self.beat_pid = 0

    def command(self) -> list[str]:
        """Return the program and its arguments."""
        return [*self._prefix, *command_line(*(word.format(name=self.name) for word in self._words))]

    def environment(self) -> dict[str, str]:
        """Return what the project reads; the working directory is a folder of the beat's own."""
        files = {"ACCEPTANCE_HANG": str(self._hung), "ACCEPTANCE_CONFIRMED": str(self._confirmed)}
        return {**self._environment, "PYTHONPATH": str(_ROOT), **files}

    def launch(self) -> None:
        """Start it; what is a beat and nothing else is known by its process id from the beginning."""
        super().launch()
        if self._words[0] == "beat":
            self.beat_pid = self.pid or 0

    def ready(self) -> bool:
        """It is ready when one of its processes has sent a message."""
        pids = {message.pid for message in self._queue.messages}
        self.beat_pid = next((pid for pid in pids if _group(pid) == self.pid), 0)
        return self.beat_pid > 0

    def hang(self) -> None:
        """Keep its scheduler loop in the middle of the next message, from now until `release`."""
        self._hung.touch()

    def release(self) -> None:
        """Let the loop go on."""
        self._hung.unlink()

    def confirmed(self) -> frozenset[Occurrence]:
        """Return of which runs the store has told it that they are confirmed."""
        # Killed at its start, it has not come to making the file.
        text = self._confirmed.read_text() if self._confirmed.exists() else ""
        return frozenset(Occurrence(name, int(at)) for at, name in (line.split(" ", 1) for line in text.splitlines()))

    @property
    def _hung(self) -> Path:
        return self.folder / "hung"

    @property
    def _confirmed(self) -> Path:
        return self.folder / "confirmed"

    def terminate(self, within_s: float) -> None:
        """Send SIGTERM to this one process, as a supervisor does; raises `subprocess.TimeoutExpired` if it goes on."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(within_s)

    def stop(self) -> None:
        """End it, and the beat that a worker may have left behind."""
        super().stop()
        if self._process is not None and self.beat_pid and _group(self.beat_pid) == self._process.pid:
            os.kill(self.beat_pid, signal.SIGKILL)

    @property
    def exit_code(self) -> int | None:
        """As `subprocess.Popen.returncode`."""
        return None if self._process is None else self._process.poll()

    def said(self) -> str:
        """What it has said."""
        return self.log.read_text(errors="replace")

    def lines(self, words: str) -> list[str]:
        """Return the lines in which it has said these words."""
        return [line for line in self.said().splitlines() if words in line]


def command_line(*words: str) -> list[str]:
    """Return the command line of a Celery program on the project."""
    return [sys.executable, "-m", "celery", "-A", "tests.acceptance.project", *words]


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None
