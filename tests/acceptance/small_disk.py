"""A disk that can be full: a file system of its own where one may be mounted."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.acceptance.outages import Outage


@contextmanager
def mounted(folder: Path, size: str = "4m") -> Iterator[bool]:
    """Mount a small disk on a folder; False where that is not permitted, and the folder is as it was."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "celery-distsched-tests", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        yield False
        return
    try:
        yield True
    finally:
        # Also while a beat that could not be ended has a file open there.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def filled(folder: Path) -> Outage:
    """Something else has taken all the room."""
    filling = folder / "filling"

    def begin() -> None:
        file = os.open(filling, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            while os.write(file, b"x" * 4096):
                pass
        except OSError:
            pass
        finally:
            os.close(file)

    return Outage("store's disk full", begin, filling.unlink)
