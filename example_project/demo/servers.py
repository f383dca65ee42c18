"""The store of the demo: a file, or a real server that is started for it."""

from __future__ import annotations

import http.client
import json
import os
import random
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HOST = "127.0.0.1"
STORES = ("sqlite", "redis", "redis+zset", "redis+scan", "etcd", "consul")
_ROOT = Path(__file__).resolve().parents[2]


class MissingProgram(Exception):
    """A server's program is not on this machine."""


@dataclass(frozen=True)
class Server:
    """A server on a free port of this host."""

    name: str
    url: str
    command: list[str]
    #: Asks the server itself whether it does its work by now; an `OSError` means no.
    answers: Callable[[], bool]

    def ready(self) -> bool:
        """Whether it does its work by now."""
        try:
            return self.answers()
        except (OSError, http.client.HTTPException, ValueError):
            return False


def server_for(store: str, folder: Path) -> Server | None:
    """Return the server of a store, not started yet; None: it needs none. Raises `MissingProgram`."""
    kind = store.partition("+")[0]
    return None if kind == "sqlite" else {"redis": _redis, "etcd": _etcd, "consul": _consul}[kind](store, folder)


def _redis(store: str, folder: Path) -> Server:
    port = _free_port()
    options = {"bind": HOST, "port": str(port), "dir": str(folder), "save": "", "appendonly": "no"}

    def answers() -> bool:
        with socket.create_connection((HOST, port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")

    command = [_program("redis-server"), *(part for name, value in options.items() for part in (f"--{name}", value))]
    return Server("redis-server", f"{store}://{HOST}:{port}/0", command, answers)


def _etcd(store: str, folder: Path) -> Server:
    port, peer_port = _free_port(), _free_port()
    clients, peers = f"http://{HOST}:{port}", f"http://{HOST}:{peer_port}"
    options = {
        "name": "demo",
        "data-dir": str(folder / "etcd"),
        "listen-client-urls": clients,
        "advertise-client-urls": clients,
        "listen-peer-urls": peers,
        "initial-advertise-peer-urls": peers,
        "initial-cluster": f"demo={peers}",
    }
    command = [_program("etcd"), *(f"--{name}={value}" for name, value in options.items())]
    return Server("etcd", f"{store}://{HOST}:{port}", command, lambda: b"true" in _get(port, "/health"))


def _consul(store: str, folder: Path) -> Server:
    port, rpc_port, serf_port = _free_port(), _free_port(), _free_port()
    ports = (
        f"ports {{ http = {port} server = {rpc_port} serf_lan = {serf_port} serf_wan = -1 dns = -1 grpc = -1 }}"
        # The default waits five times as long for an election.
        " performance { raft_multiplier = 1 } disable_update_check = true"
    )
    command = [
        *(_program("consul"), "agent", "-server", "-bootstrap-expect=1", "-node=demo", f"-hcl={ports}"),
        *(f"-bind={HOST}", f"-client={HOST}", f"-data-dir={folder / 'consul'}"),
    ]

    def answers() -> bool:
        # With a leader it can write; when that one is in its own catalogue it can keep sessions.
        return all(json.loads(_get(port, path)) for path in ("/v1/status/leader", "/v1/catalog/nodes"))

    return Server("consul", f"{store}://{HOST}:{port}", command, answers)


def _get(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection(HOST, port, timeout=1)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


def _free_port() -> int:
    # Below the ports of outgoing connections: a client that knocks too early could else be given this very port.
    while True:
        port = random.randint(15_000, 31_999)
        with socket.socket() as sock:
            try:
                sock.bind((HOST, port))
            except OSError:
                continue
            return port


def _program(name: str) -> str:
    folders = (os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin", str(_ROOT / ".servers" / "bin"))
    found = shutil.which(name, path=os.pathsep.join(folders))
    if found is None:
        server = name.removesuffix("-server")
        raise MissingProgram(f"there is no {name} on this machine; `make demo STORE={server}` gets it")
    return found
