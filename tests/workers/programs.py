"""Programs of this machine in the place of pytest-celery's containers, and a node that it has not got: a beat.

pytest-celery asks a container for little: a name, a state, its logs, to be killed and started again. A process can do
all of that, so its fixtures, nodes and clusters work on processes unchanged.
"""

from __future__ import annotations

import os
import shlex
import signal as signals
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytest_celery import CeleryTestContainer, CeleryTestNode, CeleryWorkerContainer, RedisContainer

from tests.servers import Server
from tests.servers.process import STOP_S


class CeleryProgram(Server):
    """One ``celery …`` in a folder of its own, which holds the files of the project."""

    scheme = "celery"

    def __init__(
        self, words: Sequence[str], files: Mapping[str, bytes], environment: Mapping[str, str], ready_words: str
    ) -> None:
        """Write the project's files.

        Args:
            words: The command line, from ``celery`` on.
            files: What is in each file, by its path in the project.
            environment: Added to the process's.
            ready_words: What it logs when it has come up.
        """
        super().__init__()
        self._words = words
        self._environment = environment
        self._ready_words = ready_words
        self._logged_before = 0
        for path, content in files.items():
            file = self.folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)

    def command(self) -> list[str]:
        """Return the program and its arguments."""
        # In a container %h is the beginning of the container's id, which pytest-celery takes a worker's name from.
        return [sys.executable, "-m", *(word.replace("%h", _id(self)) for word in self._words)]

    def environment(self) -> dict[str, str]:
        """Return what was given."""
        return dict(self._environment)

    def start(self) -> None:
        """Start it; what it logged in an earlier life does not make it ready."""
        self._logged_before = self.log.stat().st_size if self.log.exists() else 0
        super().start()

    def ready(self) -> bool:
        """It is ready when it says so."""
        return self._ready_words.encode() in self.log.read_bytes()[self._logged_before :]

    def stop(self) -> None:
        """Ask the first process to end, as an engine does with a container, and take away what it leaves behind."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_S)
        self.kill()

    def kill(self) -> None:
        """Kill it and its children, which may have outlived it; a group that is known to be gone is let be."""
        if self._process is not None and self._guard is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signals.SIGKILL)
        super().kill()

    @property
    def exit_code(self) -> int | None:
        """As `subprocess.Popen.returncode`."""
        return None if self._process is None else self._process.poll()


class ProcessContainer(CeleryTestContainer):  # type: ignore[misc]
    """What pytest-celery and its users ask of a container, answered by a process."""

    def __init__(self, server: Server) -> None:
        # Not super's, which wraps a container of an engine.
        self.server = server

    @property
    def id(self) -> str:
        return _id(self.server)

    @property
    def name(self) -> str:
        return self.server.folder.name

    @property
    def status(self) -> str:
        return "exited" if self.server.pid is None else "running"

    @property
    def attrs(self) -> dict[str, Any]:
        return {"Id": self.id, "Name": self.name, "State": {"Status": self.status, "Pid": self.server.pid or 0}}

    def ready(self) -> bool:
        return self.status == "running" and self.server.ready()

    def logs(self) -> str:
        return self.server.log.read_text(errors="replace")

    def kill(self, signal: str | int = "SIGKILL") -> None:
        number = signals.Signals[signal] if isinstance(signal, str) else signals.Signals(signal)
        if number is signals.SIGKILL:
            self.server.kill()
        elif self.server.pid is not None:
            os.kill(self.server.pid, number)

    def restart(self, timeout: float = 0) -> None:
        self.server.restart()

    def reload(self) -> None:
        """Nothing of the process is remembered, so there is nothing to bring up to date."""

    def exec_run(self, command: str) -> tuple[int, bytes]:
        """Run a command in the process's folder, with its ``python``."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        ran = subprocess.run(
            shlex.split(command), cwd=self.server.folder, env={**os.environ, "PATH": path}, capture_output=True
        )
        return ran.returncode, ran.stdout or ran.stderr

    def teardown(self) -> None:
        self.server.kill()


class RedisProcess(ProcessContainer, RedisContainer):  # type: ignore[misc]
    """A Redis."""

    @property
    def celeryconfig(self) -> dict[str, Any]:
        # It has one address: nothing stands between it and the tests.
        url = self.server.url()
        return {"url": url, "host_url": url, "hostname": self.server.host, "port": self.server.port, "vhost": "0"}


class WorkerProcess(ProcessContainer, CeleryWorkerContainer):  # type: ignore[misc]
    """A ``celery worker``."""

    def __init__(self, words: Sequence[str], files: Mapping[str, bytes], environment: Mapping[str, str]) -> None:
        super().__init__(CeleryProgram(words, files, environment, "ready."))


class BeatProcess(CeleryTestNode):  # type: ignore[misc]
    """A ``celery beat``, ready when it has joined the others."""

    def __init__(self, files: Mapping[str, bytes], environment: Mapping[str, str]) -> None:
        words = ["celery", "-A", "app", "beat", "--loglevel=INFO"]
        super().__init__(ProcessContainer(CeleryProgram(words, files, environment, "entries are mine")))

    def start(self) -> None:
        self.container.server.start()

    @property
    def pid(self) -> int:
        """Its process id; 0 when it has ended."""
        pid: int = self.container.attrs["State"]["Pid"]
        return pid


def _id(server: Server) -> str:
    """Return the random part of its folder's name."""
    return server.folder.name.rpartition("-")[2]
