"""Ways in which a server can be away, and come back with all that it had."""

from __future__ import annotations

import resource
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil  # type: ignore[import-untyped]

from tests.acceptance.beat import Beat
from tests.servers import EtcdCluster, GuardedConsul, RedisServer, Server
from tests.wire import Wire


class Outage(NamedTuple):
    """One server out of reach, in one way."""

    kind: str
    begin: Callable[[], None]
    end: Callable[[], None]


def killed(what: str, server: Server) -> Outage:
    """``kill -9``, and a start."""
    return Outage(f"{what} killed", server.kill, server.start)


def frozen(what: str, server: Server) -> Outage:
    """SIGSTOP and SIGCONT: connections are taken, and nobody answers."""
    return Outage(f"{what} frozen", server.freeze, server.thaw)


def leader_killed(servers: EtcdCluster) -> Outage:
    """The others elect another."""
    return _some(servers, "store's leader killed", lambda: [servers.leader], Server.kill, Server.start)


def leader_frozen(servers: EtcdCluster) -> Outage:
    """The others elect another, and it learns of that when it goes on."""
    return _some(servers, "store's leader frozen", lambda: [servers.leader], Server.freeze, Server.thaw)


def quorum_lost(servers: EtcdCluster) -> Outage:
    """The one that is left may decide nothing."""

    def two() -> Sequence[Server]:
        leader = servers.leader
        return [leader, next(member for member in servers.members if member is not leader)]

    return _some(servers, "store's quorum lost", two, Server.kill, Server.start)


def all_killed(servers: EtcdCluster) -> Outage:
    """As `killed`."""
    return _some(servers, "store killed", lambda: servers.members, Server.kill, Server.start)


def _some(
    servers: EtcdCluster,
    kind: str,
    choose: Callable[[], Sequence[Server]],
    do: Callable[[Server], None],
    undo: Callable[[Server], None],
) -> Outage:
    chosen: list[Server] = []

    def begin() -> None:
        chosen.extend(choose())
        for server in chosen:
            do(server)

    def end() -> None:
        while chosen:
            undo(chosen.pop())
        servers.wait_until_healthy()

    return Outage(kind, begin, end)


def revoked(server: GuardedConsul, token: str, rules: str) -> Outage:
    """Nobody knows the beats' token any more, until it is made again."""
    return Outage("store's token revoked", lambda: server.revoke(token), lambda: _make(server, rules, token))


def _make(server: GuardedConsul, rules: str, token: str) -> None:
    server.token(rules, secret=token)


def cut(what: str, *wires: Wire) -> Outage:
    """Every connection is reset and new ones are refused."""
    return Outage(f"{what} cut off", lambda: _each(Wire.cut, wires), lambda: _each(Wire.mend, wires))


def silent(what: str, *wires: Wire, only: Beat | None = None) -> Outage:
    """The network swallows every byte, or every one to and from one beat; what was under way is lost."""

    def begin() -> None:
        for wire in wires:
            if only is None:
                wire.freeze()
            else:
                wire.freeze(only=lambda port: port in ports_of(only))

    def end() -> None:
        _each(Wire.cut, wires)
        _each(Wire.mend, wires)

    return Outage(f"{what} silent", begin, end)


def _each(act: Callable[[Wire], None], wires: Sequence[Wire]) -> None:
    for wire in wires:
        act(wire)


def ports_of(beat: Beat) -> set[int]:
    """Return the local ports of a beat's connections."""
    return {connection.laddr.port for connection in psutil.Process(beat.pid).net_connections("tcp")}


def locked(path: Path) -> Outage:
    """Another process keeps the write lock of an SQLite file: a copy, a check, a vacuum."""
    held: list[sqlite3.Connection] = []

    def begin() -> None:
        held.append(sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False))
        held[0].execute("BEGIN IMMEDIATE")

    def end() -> None:
        held.pop().close()

    return Outage("store locked", begin, end)


def out_of_memory(server: RedisServer, what: str = "store") -> Outage:
    """A Redis that evicts nothing and has no memory left: it answers reads and refuses writes."""

    def limit(size: str) -> None:
        assert server.call("CONFIG", "SET", "maxmemory", size) == b"+OK"

    return Outage(f"{what} out of memory", lambda: limit("1"), lambda: limit("0"))


def full(beats: Sequence[Beat]) -> Outage:
    """No file can grow any more: the system's limit on file sizes stands in for a full disk, whose errors it gives.

    The beats' own logs, which are short, still have some room.
    """
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)

    def begin() -> None:
        room = max(beat.log.stat().st_size for beat in beats) + 32 * 1024
        for beat in beats:
            assert beat.pid is not None
            resource.prlimit(beat.pid, resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))

    def end() -> None:
        for beat in beats:
            if beat.pid is not None:
                resource.prlimit(beat.pid, resource.RLIMIT_FSIZE, unlimited)

    return Outage("store full", begin, end)
