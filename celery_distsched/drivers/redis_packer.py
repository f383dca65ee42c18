"""Writes long commands quickly."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any


class Packer:
    """Writes commands in Redis' protocol; what redis-py takes as ``command_packer``.

    Its own takes five times as long for a command of thousands of words, which is what a slice of claims is.
    """

    def pack(self, *words: Any) -> list[bytes]:
        """Return a command as what is to be written."""
        command, *rest = words
        encoded = command.split() if isinstance(command, bytes) else str(command).encode().split()
        encoded += [word if isinstance(word, bytes) else str(word).encode("utf-8", "backslashreplace") for word in rest]
        return [b"*%d\r\n" % len(encoded) + b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded])]


def packer() -> Packer | None:
    """Return ours; None where hiredis is installed, with which redis-py is quicker still."""
    return Packer() if find_spec("hiredis") is None else None
