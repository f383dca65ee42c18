"""Consul."""

from __future__ import annotations

import uuid
from typing import Any

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


class GuardedConsul(ConsulServer):
    """Refuses everything without a token."""

    def __init__(self) -> None:
        super().__init__('-hcl=acl { enabled = true default_policy = "deny" }')
        self.root = ""

    def ready(self) -> bool:
        """It is ready when it has made the first token, which it does once and as its leader, and takes it."""
        if not self.root:
            self.root = str(ask(self, "PUT", "/v1/acl/bootstrap")["SecretID"])
            self.headers["X-Consul-Token"] = self.root
        return super().ready()

    def token(self, rules: str, secret: str | None = None) -> str:
        """Return a new token that may do this; `secret`: this one."""
        policy = ask(self, "PUT", "/v1/acl/policy", {"Name": uuid.uuid4().hex, "Rules": rules})
        token = {"Policies": [{"ID": policy["ID"]}], **({"SecretID": secret} if secret else {})}
        return str(ask(self, "PUT", "/v1/acl/token", token)["SecretID"])

    def revoke(self, token: str) -> None:
        """Make a token one that nobody knows."""
        (known,) = (known for known in ask(self, "GET", "/v1/acl/tokens") if self._secret(known) == token)
        ask(self, "DELETE", f"/v1/acl/token/{known['AccessorID']}")

    def _secret(self, known: dict[str, Any]) -> str:
        return str(ask(self, "GET", f"/v1/acl/token/{known['AccessorID']}")["SecretID"])
