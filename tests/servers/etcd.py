"""etcd."""

from __future__ import annotations

from contextlib import suppress
from urllib.error import HTTPError

from tests.servers.binaries import find_binary
from tests.servers.process import Server, ask, free_port

# "\0" in base64. As both ends of a range it means every key.
_ALL = "AA=="


class EtcdServer(Server):
    """A cluster of one etcd."""

    scheme = "etcd"

    def __init__(self, *arguments: str) -> None:
        super().__init__()
        self._peer_port = free_port()
        self._arguments = arguments

    def command(self) -> list[str]:
        """Return the program and its arguments."""
        clients = f"http://{self.host}:{self.port}"
        peers = f"http://{self.host}:{self._peer_port}"
        options = {
            "name": "only",
            "data-dir": str(self.data),
            "listen-client-urls": clients,
            "advertise-client-urls": clients,
            "listen-peer-urls": peers,
            "initial-advertise-peer-urls": peers,
            "initial-cluster": f"only={peers}",
        }
        return [find_binary("etcd"), *(f"--{name}={value}" for name, value in options.items()), *self._arguments]

    def ready(self) -> bool:
        """It is healthy when it has a leader and can commit."""
        return str(ask(self, "GET", "/health")["health"]) == "true"

    def protect(self) -> None:
        """Take nothing any more from who does not give the name and the password that are now in `url`."""
        self.username, self.password = "root", "s3cret"
        for path, body in {
            "user/add": self._credentials(),
            "user/grant": {"user": self.username, "role": "root"},
            "enable": {},
        }.items():
            ask(self, "POST", f"/v3/auth/{path}", body)

    def flush(self) -> None:
        """Delete every key and revoke every lease; the revision goes on."""
        if self.password:
            self.headers["Authorization"] = ask(self, "POST", "/v3/auth/authenticate", self._credentials())["token"]
        ask(self, "POST", "/v3/kv/deleterange", {"key": _ALL, "range_end": _ALL})
        for lease in ask(self, "POST", "/v3/lease/leases", {}).get("leases", []):
            # One that has ended by itself in between is not found.
            with suppress(HTTPError):
                ask(self, "POST", "/v3/lease/revoke", {"ID": lease["ID"]})

    def _credentials(self) -> dict[str, str]:
        return {"name": self.username, "password": self.password}
