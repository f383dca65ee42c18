"""Where a server's program is on this machine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
# Debian's rabbitmq-server on PATH is a wrapper that changes to the user of the system's own broker and writes to its
# folders; the program behind it does neither, so its folder comes first.
_FOLDERS = ("/usr/lib/rabbitmq/bin", os.environ.get("PATH", os.defpath), "/usr/sbin", str(_ROOT / ".servers" / "bin"))


class MissingServer(Exception):
    """A server's program is not on this machine. The test must fail: a skip would hide that nothing was tested."""


def find_binary(name: str) -> str:
    """Return the path of a server's program; raises `MissingServer`, which says how to get it."""
    found = shutil.which(name, path=os.pathsep.join(_FOLDERS))
    if found is None:
        raise MissingServer(f"the tests need the program {name!r}, which is not on this machine: run `make servers`")
    return found
