"""Beats as whole processes on one store: started, killed, frozen, asked to end."""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from tests.acceptance.beat import Beat
from tests.acceptance.occurrences import Hurt, Sent
from tests.acceptance.outages import Outage
from tests.acceptance.queue import Queue
from tests.acceptance.rhythms import SECOND_US, rhythms
from tests.servers.fake_clock import FakeClock
from tests.servers.process import STOP_S

if TYPE_CHECKING:
    from typing_extensions import Self

DEFAULT_TTL_S = 5.0
#: Seconds after which what has not been sent is lost: long enough for the slowest take-over on the busiest machine.
SETTLE_S = 30.0
_TURN = Path(__file__).resolve().parents[2] / ".cache" / "starting"
_STAMP = re.compile(r"\[\d{4}-\d\d-\d\d [\d:,]+: ")


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
        settings: Mapping[str, Any] | None = None,
        hangs: bool = False,
        fastest_s: float = 1.0,
        prefix: Sequence[str] = (),
    ) -> None:
        """Prepare a run.

        Args:
            store: The URL of the store.
            queue: Where the beats' messages arrive.
            entries: Number of entries in the schedule.
            ttl_s: ``distsched_node_ttl``; None: the default.
            delivery: ``distsched_delivery``; None: the default.
            broker: Another URL that leads to the queue's server.
            settings: Any others.
            hangs: Whether its beats can be made to hang.
            fastest_s: The shortest interval of an entry.
            prefix: What the beats' command lines begin with.
        """
        self.namespace = uuid4().hex
        given = {
            **(settings or {}),
            "distsched_url": store,
            "broker_url": broker or queue.url,
            "distsched_namespace": self.namespace,
            "distsched_node_ttl": ttl_s,
            "distsched_delivery": delivery,
        }
        chosen = {name: value for name, value in given.items() if value is not None}
        project = {"settings": chosen, "entries": entries, "hangs": hangs, "fastest_s": fastest_s, "more": {}}
        self.environment = {"ACCEPTANCE": json.dumps(project)}
        self._prefix = prefix
        self._ttl_s = ttl_s or DEFAULT_TTL_S
        self._in_a_file = store.startswith("sqlite")
        self.queue = queue
        self.rhythms = rhythms(entries, fastest_s)
        self.beats: list[Beat] = []
        #: In the order in which it was done.
        self.hurts: list[Hurt] = []
        self._watch = queue.watched()

    def start(
        self, number: int = 1, words: Sequence[str] = ("beat", "-l", "INFO"), clocks: Sequence[FakeClock] = ()
    ) -> list[Beat]:
        """Start beats all at once; return when each has sent something.

        Args:
            number: How many.
            words: What follows ``celery``; ``{name}`` is the beat's.
            clocks: Wall clocks of the first of these, where they are not to have the machine's.
        """
        new = [self.add(words, clock) for clock in [*clocks, *[None] * (number - len(clocks))]]
        # Before anything is done to anybody, there is time to wait for one's turn.
        with ThreadPoolExecutor(number) as starters, nullcontext() if self.hurts else _turn():
            list(starters.map(Beat.start, new))
        return new

    def add(self, words: Sequence[str] = ("beat", "-l", "INFO"), clock: FakeClock | None = None) -> Beat:
        """Make one more beat, to be started by the caller."""
        name = f"beat-{len(self.beats) + 1}"
        self.beats.append(Beat(name, words, self.environment, self.queue, clock, self._prefix))
        return self.beats[-1]

    def carry(self, more: Mapping[str, Mapping[str, Any]]) -> None:
        """Let the beats that are started from now on have these entries too; when they ought to run is for the test.

        Args:
            more: Name → what ``beat_schedule`` has of it, but for the task; a text for a schedule is one of `cron`.
        """
        project = json.loads(self.environment["ACCEPTANCE"])
        self.environment = {**self.environment, "ACCEPTANCE": json.dumps({**project, "more": more})}

    def wait_until_sending(self, beat: Beat) -> None:
        """Return when a beat has sent the first of what falls due at the next full second, and not yet the rest."""
        second_us = (time.time() // 1 + 1) * SECOND_US
        self.queue.wait_for(
            lambda messages: any(m.pid == beat.beat_pid and m.instant_us >= second_us for m in messages[-100:]),
            within_s=15,
            what=f"anything new sent by {beat.name}",
        )

    def kill(self, beat: Beat) -> Hurt:
        """``kill -9``."""
        hurt = self._note("kill -9", beat)
        beat.kill()
        return self._replaced(hurt, hurt._replace(confirmed=beat.confirmed()))

    def freeze(self, beat: Beat, seconds: float) -> Hurt:
        """SIGSTOP, and SIGCONT after that time; return when the beat is at work again."""
        with self.stopped(beat):
            time.sleep(seconds)
        hurt = next(hurt for hurt in reversed(self.hurts) if hurt.pid == beat.beat_pid)
        # What it sends at once may be what it had in hand; what falls due a second later shows that it is a member.
        again_us = (hurt.until + 1) * SECOND_US
        self.queue.wait_for(
            lambda messages: any(m.pid == hurt.pid and m.instant_us > again_us for m in messages),
            within_s=15,
            what=f"sent by {beat.name} again after SIGCONT",
        )
        return hurt

    @contextmanager
    def stopped(self, beat: Beat) -> Iterator[None]:
        """Have a beat stopped by SIGSTOP inside."""
        hurt = self._note("SIGSTOP", beat)
        beat.freeze()
        try:
            yield
        finally:
            self._over(hurt)
            beat.thaw()

    @contextmanager
    def hung(self, beat: Beat) -> Iterator[None]:
        """Have a beat's scheduler loop stuck inside."""
        hurt = self._note("hung", beat)
        beat.hang()
        try:
            yield
        finally:
            beat.release()
            self._over(hurt)

    def terminate(self, beat: Beat, within_s: float = STOP_S) -> Hurt:
        """SIGTERM; return when it has ended."""
        hurt = self._note("SIGTERM", beat)
        beat.terminate(within_s)
        return self._replaced(hurt, hurt._replace(until=time.time(), confirmed=beat.confirmed()))

    @contextmanager
    def during(self, outage: Outage) -> Iterator[None]:
        """Have a server away inside; the beats' own affairs are for the caller."""
        hurt = Hurt(outage.kind, 0, time.time(), stretch=_stretch())
        self.hurts.append(hurt)
        outage.begin()
        try:
            yield
        finally:
            mended_from = time.time()
            outage.end()
            self._over(hurt, mended_from)

    def wait_until_each_sends(self, beats: Sequence[Beat], within_s: float) -> float:
        """Return when each of these has sent something due after this call, with the wall clock of the last."""
        now_us = time.time() * SECOND_US
        # In a long run the messages of before are many, and who looks through them keeps the watcher from the new ones.
        so_far = len(self.queue.messages)
        self.queue.wait_for(
            lambda messages: (
                {m.pid for m in messages[so_far:] if m.instant_us > now_us} >= {beat.beat_pid for beat in beats}
            ),
            within_s,
            what=f"sent by each of {', '.join(beat.name for beat in beats)}",
        )
        return time.time()

    def note(self, kind: str) -> None:
        """Something was done that excuses nothing."""
        now = time.time()
        self.hurts.append(Hurt(kind, 0, now, now))

    def judge(self, began: float, ended: float) -> None:
        """Say of a run between two moments that nothing was lost and nothing came twice without a cause."""
        sent = self.sent
        assert not (lost := sent.lost(began, ended)), f"lost: {', '.join(map(str, lost))}{self.story()}"
        assert not (strays := sent.strays()), f"for no instant: {', '.join(map(str, strays))}{self.story()}"
        assert not (confused := sent.confused()), f"task ids: {', '.join(map(str, confused))}{self.story()}"
        assert not (doubled := sent.doubled_without_cause(self.hurts)), f"doubled: {doubled}{self.story()}"

    def wrong(self, began: float, ended: float) -> int:
        """Return of how many runs between two moments `judge` would complain."""
        sent = self.sent
        lost = [*sent.lost(began, ended), *sent.strays(), *sent.confused()]
        return len({*lost, *sent.doubled_without_cause(self.hurts)})

    def settle(self, after: float, upto: float) -> None:
        """Wait until all that was due between two moments has been sent, or nothing more will come.

        Whether it has been sent is for the test to say, and how late.
        """
        deadline = time.monotonic() + SETTLE_S
        while self.sent.lost(after, upto) and time.monotonic() < deadline:
            time.sleep(0.2)

    @property
    def outages(self) -> list[Hurt]:
        """What was done to servers."""
        return [hurt for hurt in self.hurts if not hurt.pid]

    @property
    def sent(self) -> Sent:
        """What has arrived so far."""
        return Sent.of(list(self.queue.messages), self.rhythms)

    def story(self) -> str:
        """What was done to the beats and what they have said, in order of time, without a line for each message."""
        hurts = [
            f"{hurt.kind}{f' of process {hurt.pid}' if hurt.pid else ''} at {hurt.at % 60:.3f} s of the minute"
            for hurt in self.hurts
        ]
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
        now = time.time()
        # After an outage a beat has to join again before it can confirm what it had sent.
        again_s = self._ttl_s + 1
        gone = [one.at for one in self.hurts if self._cuts_off(one, beat) and now <= one.until + again_s]
        self.hurts.append(
            Hurt(kind, beat.beat_pid, now, cut_off_at=min(gone, default=float("inf")), stretch=_stretch())
        )
        return self.hurts[-1]

    def _cuts_off(self, hurt: Hurt, beat: Beat) -> bool:
        """Say whether something that was done may have kept a beat from the store."""
        # Who is stopped in the middle of writing to a file keeps its lock.
        locks = self._in_a_file and hurt.kind == "SIGSTOP" and hurt.pid != beat.beat_pid
        return locks or (not hurt.pid and hurt.kind.startswith("store"))

    def _over(self, hurt: Hurt, mended_from: float = float("inf")) -> Hurt:
        return self._replaced(hurt, hurt._replace(until=time.time(), mended_from=mended_from))

    def _replaced(self, hurt: Hurt, by: Hurt) -> Hurt:
        self.hurts[self.hurts.index(hurt)] = by
        return by


@contextmanager
def _turn() -> Iterator[None]:
    """Nobody else on this machine is inside: beats that start take whole processors from those at work."""
    _TURN.parent.mkdir(exist_ok=True)
    with _TURN.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _stretch() -> float:
    """How much slower than alone each process is: where others work too, a tenth of a second of work takes longer."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def wait_for_a_burst() -> None:
    """Return within the first hundredths of a second, when beats are claiming, sending and confirming."""
    time.sleep(1 - time.time() % 1 + random.uniform(0, 0.025))
