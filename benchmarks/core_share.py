"""A part of a processor core for each process, as the kernel's control groups give it out: machines with few cores."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
#: Microseconds in which a process has its part. The kernel's own 100 ms would be seen in what is measured.
_PERIOD_US = 5_000


#: Version 1 has a folder for each controller.
_OLD = (_ROOT / "cpu" / "cgroup.procs").exists()
_PARENT = _ROOT / "cpu" if _OLD else _ROOT


def permitted() -> bool:
    """Whether this user may give out parts of cores on this machine: nearly always root alone."""
    controllers = _ROOT / "cgroup.subtree_control"
    known = _OLD or (controllers.exists() and "cpu" in controllers.read_text().split())
    return known and os.access(_PARENT / "cgroup.procs", os.W_OK)


@contextmanager
def limited(pids: Iterable[int], share: float) -> Iterator[None]:
    """Have each of these processes run for at most this part of the time inside.

    Raises:
        OSError: It is not permitted.
    """
    quota_us = round(share * _PERIOD_US)
    groups: list[Path] = []
    try:
        for pid in pids:
            group = _PARENT / f"benchmark-{os.getpid()}-{pid}"
            group.mkdir()
            groups.append(group)
            if _OLD:
                (group / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
                (group / "cpu.cfs_quota_us").write_text(str(quota_us))
            else:
                (group / "cpu.max").write_text(f"{quota_us} {_PERIOD_US}")
            (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        for group in groups:
            # A group goes only when nobody is in it.
            for pid_inside in (group / "cgroup.procs").read_text().split():
                (_PARENT / "cgroup.procs").write_text(pid_inside)
            group.rmdir()
