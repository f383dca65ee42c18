"""What the worker has received, read as it comes."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class Run:
    """One message, as it arrived in the worker."""

    entry: str
    #: The instant for which it was sent, in microseconds since the epoch.
    instant_us: int
    task_id: str
    #: Process id of the beat that sent it.
    pid: int
    #: When it arrived, in seconds since the epoch.
    received: float

    @classmethod
    def parse(cls, line: dict[str, Any]) -> Run:
        """Read what the recorder wrote."""
        instant = datetime.fromisoformat(line["scheduled_at"])
        return cls(
            entry=line["entry"],
            instant_us=(instant - _EPOCH) // timedelta(microseconds=1),
            task_id=line["task_id"],
            # A node is named after its host, its process id and a random part.
            pid=int(line["node"].rsplit("-", 2)[1]),
            received=line["received"],
        )


class Runs:
    """Every run so far, in the order of arrival."""

    def __init__(self, path: Path) -> None:
        self.all: list[Run] = []
        self.by_pid: dict[int, list[Run]] = defaultdict(list)
        #: Entry → the run that arrived last.
        self.last: dict[str, Run] = {}
        #: The worker takes messages.
        self.worker_ready = False
        #: Ids of tasks that no beat sent.
        self.by_hand: set[str] = set()
        self._path = path
        self._offset = 0

    def read(self) -> None:
        """Take in what has arrived since the last call."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        # The end may still be on its way.
        new = new[: new.rfind(b"\n") + 1]
        self._offset += len(new)
        for text in new.splitlines():
            line = json.loads(text)
            if "ready" in line:
                self.worker_ready = True
            elif line["entry"] is None:
                self.by_hand.add(line["task_id"])
            else:
                self._add(Run.parse(line))

    def entries_of(self, pid: int) -> list[str]:
        """Return the entries whose last run this beat sent."""
        return [entry for entry, run in self.last.items() if run.pid == pid]

    def since(self, moment: float, entries: Iterable[str]) -> list[Run]:
        """Return the runs of these entries that arrived after a moment."""
        chosen = set(entries)
        return [run for run in self.all if run.received > moment and run.entry in chosen]

    def _add(self, run: Run) -> None:
        self.all.append(run)
        self.by_pid[run.pid].append(run)
        self.last[run.entry] = run
