"""Redis."""

from __future__ import annotations

import socket
from typing import ClassVar

from tests.servers.binaries import find_binary
from tests.servers.process import Server


class RedisServer(Server):
    """A Redis that keeps nothing on disk, unless ``arguments`` (as on its command line) say otherwise."""

    scheme = "redis"
    path = "/0"
    program: ClassVar[str] = "redis-server"

    def __init__(self, *arguments: str, password: str = "") -> None:
        super().__init__()
        self.password = password
        self._arguments = arguments

    def command(self) -> list[str]:
        """Return the program and its arguments."""
        secret = ["--requirepass", self.password] if self.password else []
        memory_only = ["--save", "", "--appendonly", "no"]
        return [
            *(find_binary(self.program), "--bind", self.host, "--port", str(self.port), "--dir", str(self.data)),
            *(*memory_only, *secret, *self._arguments),
        ]

    def ready(self) -> bool:
        """While it loads its data it answers ``-LOADING``."""
        return self.call("PING") == b"+PONG"

    def flush(self) -> None:
        """Delete every key of every database."""
        assert self.call("FLUSHALL") == b"+OK"

    def call(self, *words: str) -> bytes:
        """Send one command over a connection of its own and return the first line of the answer."""
        commands = [("AUTH", self.password), words] if self.password else [words]
        with (
            socket.create_connection((self.host, self.port), timeout=5) as connection,
            connection.makefile("rb") as answers,
        ):
            for command in commands:
                parts = [word.encode() for word in command]
                body = b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
                connection.sendall(b"*%d\r\n%s" % (len(parts), body))
                line: bytes = answers.readline().rstrip(b"\r\n")
        return line


class ValkeyServer(RedisServer):
    """A Valkey: Redis under another name, and with a history of its own since Redis 7.2."""

    program = "valkey-server"
