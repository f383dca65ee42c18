"""Processes that never outlive the demo, and the signals that end it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

#: Seconds that processes get to end by themselves before they are killed. Beats need less; a worker that is waiting for
#: messages needs more, for nothing.
_PATIENCE_S = 1.5


class Interrupted(Exception):
    """Somebody wants the demo to end."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(signal.Signals(signum).name)


class Signals:
    """Turns Ctrl-C, SIGTERM and a closed terminal into a note: nothing is interrupted between two steps."""

    _NOTED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self._asked: int | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def check(self) -> None:
        """Raise `Interrupted` if the demo has been asked to end."""
        if self._asked is not None:
            raise Interrupted(self._asked)

    def __enter__(self) -> Self:
        self._handlers = {signum: signal.signal(signum, self._note) for signum in self._NOTED}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._asked = signum


class Process:
    """One started program."""

    def __init__(self, popen: subprocess.Popen[bytes], log: Path) -> None:
        self.log = log
        self._popen = popen
        self.pid = popen.pid

    @property
    def alive(self) -> bool:
        """Whether it is still running."""
        return self._popen.poll() is None

    @property
    def status(self) -> int | None:
        """How it ended; None while it runs."""
        return self._popen.poll()

    def send(self, signum: signal.Signals) -> None:
        """Send it a signal, if it is still there."""
        self._popen.send_signal(signum)

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; False if that took longer."""
        try:
            self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def last_words(self, lines: int = 12) -> str:
        """Return the end of what it wrote."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class ProcessGroup:
    """Started programs, in one process group of their own: a Ctrl-C in the terminal reaches the demo only.

    The first member is a guard. It reads from a pipe that only the demo can write to. However the demo ends, even by
    ``kill -9``, the pipe is then closed, the guard wakes up and kills the group.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = dict(environment)
        self._started: list[Process] = []
        self._guard: subprocess.Popen[bytes] | None = None

    def start(self, name: str, command: Sequence[str]) -> Process:
        """Start a program whose output goes to ``NAME.log`` in the folder of the demo."""
        guard = self._guard
        assert guard is not None, "outside of the with statement"
        log = self._folder / f"{name}.log"
        with log.open("ab") as output:
            popen = subprocess.Popen(
                command,
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=lambda: os.setpgid(0, guard.pid),
            )
        self._started.append(Process(popen, log))
        return self._started[-1]

    def __enter__(self) -> Self:
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", "trap '' HUP INT TERM; read -r _; kill -9 0"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: os.setpgid(0, 0),
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End whatever is left."""
        guard = self._guard
        assert guard is not None
        deadline = time.monotonic() + _PATIENCE_S
        for process in self._started:
            process.send(signal.SIGTERM)
        for process in self._started:
            process.wait(max(0.0, deadline - time.monotonic()))
        os.killpg(guard.pid, signal.SIGKILL)
        for process in self._started:
            process.wait(5.0)
        guard.communicate()


def wait_until(condition: Callable[[], bool], limit_s: float, meanwhile: Callable[[], None]) -> bool:
    """Wait for a condition; False if it did not come true in time."""
    deadline = time.monotonic() + limit_s
    while True:
        meanwhile()
        if condition():
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
