"""Beats as whole processes on one store: started, killed, frozen, asked to end."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING
from uuid import uuid4

from tests.acceptance.occurrences import Hurt, Sent
from tests.acceptance.queue import Queue
from tests.acceptance.rhythms import SECOND_US, rhythms
from tests.servers import Server
from tests.servers.process import STOP_S

if TYPE_CHECKING:
    from typing_extensions import Self

_ROOT = Path(__file__).resolve().parents[2]
_STAMP = re.compile(r"\[\d{4}-\d\d-\d\d [\d:,]+: ")


class Beat(Server):
    """One ``celery beat``, or one ``celery worker`` with a beat inside: ready when its beat has sent something."""

    scheme = "beat"

    def __init__(self, name: str, words: Sequence[str], environment: dict[str, str], queue: Queue) -> None:
        super().__init__()
        self.name = name
        self._words = words
        self._environment = environment
        self._queue = queue
        #: The process id of the beat itself, which in a worker is a child's.
        self.beat_pid = 0

    def command(self) -> list[str]:
        """Return the program and its arguments."""
        return command_line(*(word.format(name=self.name) for word in self._words))

    def environment(self) -> dict[str, str]:
        """Return what the project reads; the working directory is a folder of the beat's own."""
        return {**self._environment, "PYTHONPATH": str(_ROOT)}

    def ready(self) -> bool:
        """It is ready when one of its processes has sent a message."""
        pids = {message.pid for message in self._queue.messages}
        self.beat_pid = next((pid for pid in pids if _group(pid) == self.pid), 0)
        return self.beat_pid > 0

    def terminate(self, within_s: float) -> None:
        """Send SIGTERM to this one process, as a supervisor does; raises `subprocess.TimeoutExpired` if it goes on."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(within_s)

    def stop(self) -> None:
        """End it, and the beat that a worker may have left behind."""
        super().stop()
        if self._process is not None and self.beat_pid and _group(self.beat_pid) == self._process.pid:
            os.kill(self.beat_pid, signal.SIGKILL)

    @property
    def exit_code(self) -> int | None:
        """As `subprocess.Popen.returncode`."""
        return None if self._process is None else self._process.poll()

    def said(self) -> str:
        """What it has said."""
        return self.log.read_text(errors="replace")


class Cluster:
    """The beats of one run, what was done to them, and what they have sent.

    As a context manager it watches the queue and stops in the end what still runs.
    """

    def __init__(
        self,
        store: str,
        queue: Queue,
        *,
        entries: int,
        ttl_s: float | None = None,
        delivery: str | None = None,
        broker: str | None = None,
    ) -> None:
        """Prepare a run.

        Args:
            store: The URL of the store.
            queue: Where the beats' messages arrive.
            entries: Number of entries in the schedule.
            ttl_s: ``distsched_node_ttl``; None: the default.
            delivery: ``distsched_delivery``; None: the default.
            broker: Another URL that leads to the queue's server.
        """
        settings = {
            "distsched_url": store,
            "broker_url": broker or queue.url,
            "distsched_namespace": uuid4().hex,
            "distsched_node_ttl": ttl_s,
            "distsched_delivery": delivery,
        }
        chosen = {name: value for name, value in settings.items() if value is not None}
        self.environment = {"ACCEPTANCE": json.dumps({"settings": chosen, "entries": entries})}
        self.queue = queue
        self.rhythms = rhythms(entries)
        self.beats: list[Beat] = []
        #: In the order in which it was done.
        self.hurts: list[Hurt] = []
        self._watch = queue.watched()

    def start(self, number: int = 1, words: Sequence[str] = ("beat", "-l", "INFO")) -> list[Beat]:
        """Start beats all at once; return when each has sent something.

        Args:
            number: How many.
            words: What follows ``celery``; ``{name}`` is the beat's.
        """
        names = [f"beat-{len(self.beats) + nth + 1}" for nth in range(number)]
        new = [Beat(name, words, self.environment, self.queue) for name in names]
        self.beats += new
        with ThreadPoolExecutor(number) as starters:
            list(starters.map(Beat.start, new))
        return new

    def wait_until_sending(self, beat: Beat) -> None:
        """Return when a beat has sent the first of what falls due at the next full second, and not yet the rest."""
        second_us = (time.time() // 1 + 1) * SECOND_US
        self.queue.wait_for(
            lambda messages: any(m.pid == beat.beat_pid and m.instant_us >= second_us for m in messages[-100:]),
            within_s=5,
            what=f"anything new sent by {beat.name}",
        )

    def kill(self, beat: Beat) -> Hurt:
        """``kill -9``."""
        hurt = self._note("kill -9", beat)
        beat.kill()
        return hurt

    def freeze(self, beat: Beat, seconds: float) -> Hurt:
        """SIGSTOP, and SIGCONT after that time; return when the beat is at work again."""
        hurt = self._note("SIGSTOP", beat)
        beat.freeze()
        time.sleep(seconds)
        hurt = self._over(hurt)
        beat.thaw()
        # What it sends at once may be what it had in hand; what falls due a second later shows that it is a member.
        again_us = (hurt.until + 1) * SECOND_US
        self.queue.wait_for(
            lambda messages: any(m.pid == hurt.pid and m.instant_us > again_us for m in messages),
            within_s=15,
            what=f"sent by {beat.name} again after SIGCONT",
        )
        return hurt

    def terminate(self, beat: Beat, within_s: float = STOP_S) -> Hurt:
        """SIGTERM; return when it has ended."""
        hurt = self._note("SIGTERM", beat)
        beat.terminate(within_s)
        return self._over(hurt)

    def judge(self, began: float, ended: float) -> None:
        """Say of a run between two moments that nothing was lost and nothing came twice without a cause."""
        sent = self.sent
        assert not (lost := sent.lost(began, ended)), f"lost: {', '.join(map(str, lost))}{self.story()}"
        assert not (strays := sent.strays()), f"for no instant: {', '.join(map(str, strays))}{self.story()}"
        assert not (confused := sent.confused()), f"task ids: {', '.join(map(str, confused))}{self.story()}"
        assert not (doubled := sent.doubled_without_cause(self.hurts)), f"doubled: {doubled}{self.story()}"

    def settle(self, after: float, upto: float, within_s: float) -> None:
        """Wait until all that was due between two moments has been sent; whether it has is for the test to say."""
        deadline = time.monotonic() + within_s
        while self.sent.lost(after, upto) and time.monotonic() < deadline:
            time.sleep(0.1)

    @property
    def sent(self) -> Sent:
        """What has arrived so far."""
        return Sent.of(list(self.queue.messages), self.rhythms)

    def story(self) -> str:
        """What was done to the beats and what they have said, in order of time, without a line for each message."""
        hurts = [f"{hurt.kind} of process {hurt.pid} at {hurt.at % 60:.3f} s of the minute" for hurt in self.hurts]
        lines: list[tuple[str, str]] = []
        for beat in self.beats:
            stamp = ""
            for line in beat.said().splitlines():
                found = _STAMP.match(line)
                stamp = found.group() if found else stamp
                if "Sending due task" not in line:
                    lines.append((stamp, f"{beat.name} ({beat.beat_pid}): {line}"))
        return "\n".join(["", *hurts, *(line for _, line in sorted(lines, key=lambda pair: pair[0]))])

    def __enter__(self) -> Self:
        self._watch.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with ThreadPoolExecutor() as stoppers:
            list(stoppers.map(Beat.stop, self.beats))
        self._watch.__exit__(kind, error, traceback)
        if error is not None:
            print(self.story())

    def _note(self, kind: str, beat: Beat) -> Hurt:
        self.hurts.append(Hurt(kind, beat.beat_pid, time.time()))
        return self.hurts[-1]

    def _over(self, hurt: Hurt) -> Hurt:
        over = hurt._replace(until=time.time())
        self.hurts[self.hurts.index(hurt)] = over
        return over


def command_line(*words: str) -> list[str]:
    """Return the command line of a Celery program on the project."""
    return [sys.executable, "-m", "celery", "-A", "tests.acceptance.project", *words]


def wait_for_a_burst() -> None:
    """Return within the first hundredths of a second, when beats are claiming, sending and confirming."""
    time.sleep(1 - time.time() % 1 + random.uniform(0, 0.025))


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None
