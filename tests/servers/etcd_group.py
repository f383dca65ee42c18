"""Three etcd servers that make one cluster."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from tests.servers.etcd import EtcdServer
from tests.servers.process import START_S, ServerFailed, ask

if TYPE_CHECKING:
    from typing_extensions import Self


class _Member(EtcdServer):
    """One of three; it elects quickly, for a leader that is gone is what the tests are about."""

    def __init__(self, name: str, *arguments: str) -> None:
        super().__init__("--heartbeat-interval=50", "--election-timeout=500", *arguments)
        self.name = name
        self.cluster: list[_Member] = []

    @property
    def peers(self) -> str:
        return f"{self.name}=http://{self.host}:{self._peer_port}"

    def command(self) -> list[str]:
        """Return the program and its arguments."""
        everybody = ",".join(member.peers for member in self.cluster)
        return [
            *(a for a in super().command() if not a.startswith(("--name=", "--initial-cluster="))),
            *(f"--name={self.name}", f"--initial-cluster={everybody}"),
        ]

    def ready(self) -> bool:
        """Alone it cannot be healthy, so that none may wait for it as it starts."""
        return self.pid is not None

    @property
    def leads(self) -> bool:
        status = ask(self, "POST", "/v3/maintenance/status", {})
        return str(status["leader"]) == str(status["header"]["member_id"])


class EtcdCluster:
    """Three members on 127.0.0.1."""

    def __init__(self, *arguments: str) -> None:
        self.members = [_Member(name, *arguments) for name in ("one", "two", "three")]
        for member in self.members:
            member.cluster = self.members

    def url(self, ports: Sequence[int] = ()) -> str:
        """Name all of them, or wires that lead to them."""
        first, *others = zip(self.members, ports or [member.port for member in self.members], strict=True)
        return ",".join([first[0].url(port=first[1]), *(f"{member.host}:{port}" for member, port in others)])

    @property
    def leader(self) -> _Member:
        """The member that leads now."""
        return next(member for member in self.members if member.pid is not None and member.leads)

    def protect(self) -> None:
        """As `EtcdServer.protect`, for all of them."""
        self.members[0].protect()
        for member in self.members:
            member.username, member.password = self.members[0].username, self.members[0].password

    def flush(self) -> None:
        """As `EtcdServer.flush`."""
        self.members[0].flush()

    def wait_until_healthy(self) -> None:
        """Return when all of the running members can commit."""
        deadline = time.monotonic() + START_S
        while not all(_healthy(member) for member in self.members if member.pid is not None):
            if time.monotonic() > deadline:
                raise ServerFailed(f"etcd's members did not agree within {START_S:g} s")
            time.sleep(0.05)

    def __enter__(self) -> Self:
        try:
            for member in self.members:
                member.start()
            self.wait_until_healthy()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Killed, since without a quorum none ends by itself in good time.
        for member in self.members:
            member.kill()


def _healthy(member: EtcdServer) -> bool:
    try:
        return EtcdServer.ready(member)
    except OSError:
        return False
