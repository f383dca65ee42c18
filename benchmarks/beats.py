"""A beat as a whole process, on a project that the environment describes."""

from __future__ import annotations

import json
import sys

import psutil  # type: ignore[import-untyped]

from benchmarks.contenders import ROOT, Contender, Site
from benchmarks.workload import Workload
from tests.servers import Server, ServerFailed


def environment(contender: Contender, site: Site, workload: Workload) -> dict[str, str]:
    """Return what `benchmarks.project` reads, and what the contender needs."""
    given = {
        "settings": {"broker_url": site.broker, **contender.settings(site)},
        "workload": list(workload) if contender.reads_config else None,
    }
    return {"BENCHMARK": json.dumps(given), "PYTHONPATH": str(ROOT), **contender.environment}


class Beat(Server):
    """One ``celery beat``, at the log level that Celery's command has without ``-l``."""

    scheme = "beat"

    def __init__(self, contender: Contender, site: Site, workload: Workload) -> None:
        super().__init__()
        self._contender = contender
        self._environment = environment(contender, site, workload)
        # Stock beat and Django find their files in the working directory.
        self.folder, self._own_folder = site.folder, self.folder
        self.log = self._own_folder / "log"

    def command(self) -> list[str]:
        """Return the program and its arguments."""
        return [sys.executable, "-m", "celery", "-A", "benchmarks.project", "beat", "-S", self._contender.scheduler]

    def environment(self) -> dict[str, str]:
        """Return what is added to the environment."""
        return self._environment

    def ready(self) -> bool:
        """It is left alone while it loads."""
        return True

    def check(self) -> None:
        """Raise `ServerFailed` if it has ended."""
        if self.pid is None:
            raise ServerFailed(f"{self._contender.name} ended by itself:\n{self._last_words()}")

    def leave(self) -> None:
        """Send SIGTERM, and do not wait: whoever watches the queue meanwhile must not look away."""
        self.check()
        psutil.Process(self.pid).terminate()

    def cpu_s(self) -> float:
        """Return the processor time that it has used, in seconds."""
        self.check()
        used = psutil.Process(self.pid).cpu_times()
        return float(used.user + used.system)
