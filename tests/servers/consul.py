"""Consul."""

from __future__ import annotations

from tests.servers.binaries import find_binary
from tests.servers.process import Server, ask, free_port


class ConsulServer(Server):
    """A cluster of one Consul server agent."""

    scheme = "consul"

    def __init__(self, *arguments: str) -> None:
        super().__init__()
        self._rpc_port, self._serf_port = free_port(), free_port()
        self._arguments = arguments

    def command(self) -> list[str]:
        """Return the program and its arguments."""
        ports = (
            f"ports {{ http = {self.port} server = {self._rpc_port} serf_lan = {self._serf_port}"
            " serf_wan = -1 dns = -1 grpc = -1 }"
        )
        # The default is made for slow machines and waits five times as long for an election.
        quick = "performance { raft_multiplier = 1 }"
        return [
            *(find_binary("consul"), "agent", "-server", "-bootstrap-expect=1", "-node=only"),
            *(f"-bind={self.host}", f"-client={self.host}", f"-data-dir={self.data}"),
            *(f"-hcl={ports}", f"-hcl={quick}", "-hcl=disable_update_check = true", *self._arguments),
        ]

    def ready(self) -> bool:
        """It is ready when it has a leader, which sessions need, and the leader knows this node."""
        return bool(ask(self, "GET", "/v1/status/leader")) and bool(ask(self, "GET", "/v1/catalog/nodes"))

    def flush(self) -> None:
        """Delete every key and destroy every session."""
        for session in ask(self, "GET", "/v1/session/list"):
            ask(self, "PUT", f"/v1/session/destroy/{session['ID']}")
        ask(self, "DELETE", "/v1/kv/?recurse=true")
