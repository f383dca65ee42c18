"""Ways in which a server can be away, and come back with all that it had."""

from __future__ import annotations

import resource
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil  # type: ignore[import-untyped]

from tests.acceptance.beat import Beat
from tests.servers import RedisServer, Server
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


def cut(what: str, wire: Wire) -> Outage:
    """Every connection is reset and new ones are refused."""
    return Outage(f"{what} cut off", wire.cut, wire.mend)


def silent(what: str, wire: Wire, only: Beat | None = None) -> Outage:
    """The network swallows every byte, or every one to and from one beat; what was under way is lost."""

    def begin() -> None:
        if only is None:
            wire.freeze()
        else:
            wire.freeze(only=lambda port: port in ports_of(only))

    def end() -> None:
        wire.cut()
        wire.mend()

    return Outage(f"{what} silent", begin, end)


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
