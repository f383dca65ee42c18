"""A server as a child process: started, asked whether it is ready, broken, and put back."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import weakref
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote

from tests.servers.fake_clock import FakeClock

if TYPE_CHECKING:
    from typing_extensions import Self

HOST = "127.0.0.1"
#: Seconds within which a server answers after its start (RabbitMQ on a busy machine is the slow one).
START_S = 60.0
#: Seconds that a server gets to stop by itself before it is killed.
STOP_S = 20.0


class ServerFailed(Exception):
    """A server ended, or did not answer in time; the message ends with the last lines of its log."""


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing uses.

    It lies below the ports that systems give to outgoing connections: a client that keeps knocking at a stopped
    server's port could otherwise be given that very port, and connect to itself.
    """
    while True:
        port = random.randint(15_000, 31_999)
        with socket.socket() as sock:
            try:
                sock.bind((HOST, port))
            except OSError:
                continue
            return port


class Server(ABC):
    """One server on 127.0.0.1, on a port and in a folder of its own, both kept over a restart.

    As a context manager it is started on entry and stopped on exit. The folder goes with the object.
    """

    scheme: ClassVar[str]
    #: What follows ``host:port`` in its URL.
    path: ClassVar[str] = ""
    host = HOST

    def __init__(self) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{type(self).__name__}-"))
        self.data = self.folder / "data"
        self.log = self.folder / "log"
        #: Of each question that `ask` puts to it.
        self.headers: dict[str, str] = {}
        self.username = ""
        self.password = ""
        #: Its own idea of the time; None: the machine's.
        self.clock: FakeClock | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    @abstractmethod
    def command(self) -> list[str]:
        """Return the program and its arguments."""

    @abstractmethod
    def ready(self) -> bool:
        """Ask the server itself whether it does its work now; an `OSError` counts as no."""

    def environment(self) -> dict[str, str]:
        """Return what is added to the environment."""
        return {}

    def url(self, scheme: str | None = None, *, port: int | None = None, path: str | None = None) -> str:
        """Return the server's URL; ``port`` is that of a wire that leads to it."""
        credentials = f"{quote(self.username)}:{quote(self.password, safe='')}@" if self.password else ""
        place = f"{credentials}{self.host}:{port or self.port}"
        return f"{scheme or self.scheme}://{place}{self.path if path is None else path}"

    @property
    def pid(self) -> int | None:
        """The process id, or None while it is not running."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start it and return when it answers; raises `ServerFailed`."""
        self.launch()
        try:
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise

    def launch(self) -> None:
        """Start it, and do not wait until it answers."""
        assert self.pid is None, f"{self!r} is running already"
        self.data.mkdir(exist_ok=True)
        with self.log.open("ab") as log:
            # A group of its own: Ctrl-C in the terminal must reach pytest only, which then stops the servers in order.
            self._process = subprocess.Popen(
                self.command(),
                env={**os.environ, **self.environment(), **(self.clock.environment() if self.clock else {})},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._guard = _guard(self._process.pid, self.folder)

    def stop(self) -> None:
        """Ask it to end, and kill it if it does not; twice is no error."""
        self._signal(signal.SIGTERM)
        # A stopped process keeps the signal for later.
        self._signal(signal.SIGCONT)
        if self._process is not None:
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._signal(signal.SIGKILL)
            self._gone(self._process)

    def kill(self) -> None:
        """End it at once, as ``kill -9`` does; returns when it is gone."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._gone(self._process)

    def freeze(self) -> None:
        """Stop it in mid-step: the system still takes connections for it, and nobody answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on after `freeze`."""
        self._signal(signal.SIGCONT)

    def restart(self, *, empty: bool = False) -> None:
        """Stop it if it runs and start it on the same port; ``empty``: it has lost all that it had on disk."""
        self.stop()
        if empty:
            shutil.rmtree(self.data, ignore_errors=True)
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.host}:{self.port} pid={self.pid}>"

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, number)

    def _gone(self, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
            self._guard = None

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while not self._answers():
            if self.pid is None:
                raise ServerFailed(f"{self!r} ended by itself:\n{self._last_words()}")
            if time.monotonic() > deadline:
                raise ServerFailed(f"{self!r} did not answer within {START_S:g} s:\n{self._last_words()}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            return self.ready()
        except OSError:
            return False

    def _last_words(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])


def _guard(group: int, folder: Path) -> subprocess.Popen[bytes]:
    """Start what kills this group and removes its folder if we end without having done so, even by ``kill -9``.

    Our end of its input is then closed by the system, and its ``read`` returns.
    """
    return subprocess.Popen(
        ["/bin/sh", "-c", 'read -r _; kill -9 "-$1"; rm -rf "$2"', "guard", str(group), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def ask(server: Server, method: str, path: str, body: Any = None) -> Any:
    """Make one HTTP request with JSON both ways; raises `OSError` where the server does not answer well."""
    data = None if body is None else json.dumps(body).encode()
    url = f"http://{server.host}:{server.port}{path}"
    request = urllib.request.Request(url, data, server.headers, method=method)
    # No proxy of the environment may stand between a test and its own server.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=5) as response:
        return json.loads(response.read() or b"null")
