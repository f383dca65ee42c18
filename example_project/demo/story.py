"""What happens in the demo, in order: start, share, kill, take over, stop, hand over, join, compare."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from uuid import uuid4

from example_project.demo.processes import Process, ProcessGroup, Signals, wait_until
from example_project.demo.report import SECOND_US, Grid, Report, compare, longest_gap, ran_again
from example_project.demo.scene import Beat, Scene
from example_project.demo.screen import LineScreen, LiveScreen
from example_project.demo.servers import Server

#: Seconds in which the whole demo is over, whatever happens.
_LIMIT_S = 55.0
#: A run that comes so many seconds after its instant is late.
_LATE_S = 0.5


class Failed(Exception):
    """The demo could not go on; `process` is the one that may say why."""

    def __init__(self, message: str, process: Process | None = None) -> None:
        self.process = process
        super().__init__(message)


@dataclass(frozen=True)
class Gap:
    """The longest time without a run of an entry of every second, in seconds, and when that was."""

    seconds: float
    when: str


class Story:
    """One run of the demo."""

    def __init__(
        self,
        group: ProcessGroup,
        scene: Scene,
        screen: LineScreen | LiveScreen,
        signals: Signals,
        expected: Mapping[str, Grid],
        *,
        ttl_s: float,
        pause_s: float,
    ) -> None:
        self.gaps: list[Gap] = []
        self._group = group
        self._scene = scene
        self._runs = scene.runs
        self._screen = screen
        self._signals = signals
        self._expected = expected
        self._every_second = [name for name, grid in expected.items() if grid.clock and grid.step_us == SECOND_US]
        self._ttl_s = ttl_s
        self._pause_s = pause_s
        self._must_live: dict[str, Process] = {}
        self._killed_us: int | None = None

    def tell(self, server: Server | None) -> Report:
        """Play it all, and return what came of it. Raises `Failed` or `Interrupted`."""
        if server is not None:
            self._start_server(server)
        self._start_worker()
        all_seen = self._start_beats()
        self._pause()
        killed = self._kill(self._scene.beats[1])
        self._killed_us = round(killed * SECOND_US)
        self.gaps.insert(0, self._gap("before", all_seen, killed))
        self._pause()
        self._stop(self._scene.beats[2])
        self._join()
        return self._finish()

    def _start_server(self, server: Server) -> None:
        self._must_live[server.name] = self._group.start(server.name, server.command)
        self._until(server.ready, f"{server.name} answers", 20.0)
        self._say(f"{server.name} answers at {server.url.partition('://')[2]}")

    def _start_worker(self) -> None:
        worker = self._celery(
            "worker",
            *("worker", "--pool", "solo", "--include", "example_project.demo.recorder"),
            *("--without-gossip", "--without-mingle", "--without-heartbeat"),
        )
        self._must_live["the worker"] = worker
        self._until(lambda: self._runs.worker_ready, "the worker takes messages", 25.0)
        self._say(f"one worker takes messages (pid {worker.pid})")

    def _start_beats(self) -> float:
        self._scene.first_second = int(time.time())
        beats = [self._start_beat() for _ in range(3)]
        self._say("three beats start; nobody tells them of each other")
        often = {name for name, grid in self._expected.items() if grid.step_us <= 10 * SECOND_US}
        self._until(
            lambda: often <= self._runs.last.keys() and all(self._runs.by_pid[beat.process.pid] for beat in beats),
            "every entry has run and every beat has sent",
            25.0,
        )
        shares = ", ".join(str(len(self._entries_of(beat))) for beat in beats)
        self._say(f"they have shared the entries out: {shares}; each entry is run by one of them")
        return time.time()

    def _kill(self, beat: Beat) -> float:
        # Between two bursts: if a beat dies in the instant between a message and the note that it was sent, the next
        # owner sends that message again, under the same task id. That is promised so, but here it would be a double.
        self._until(
            lambda: time.time() - self._runs.by_pid[beat.process.pid][-1].received > 0.25, "a quiet moment", 10.0
        )
        entries = self._entries_of(beat)
        killed = time.time()
        self._end(beat, signal.SIGKILL, "killed -9")
        beat.process.wait(5.0)
        self._say(
            f"kill -9 beat {beat.number} (pid {beat.process.pid}): its {len(entries)} entries wait until it is missed"
        )
        again = self._until_run_again(beat, entries, killed)
        late = [run for run in self._runs.since(killed, entries) if run.received - run.instant_us / 1e6 > _LATE_S]
        self._say(
            f"others run all of them, {again:.1f} s after the kill; the {len(late)} runs that fell due meanwhile"
            " came late"
        )
        self.gaps.append(self._gap("after kill -9", killed, time.time()))
        return killed

    def _stop(self, beat: Beat) -> None:
        entries = self._entries_of(beat)
        stopped = time.time()
        self._end(beat, signal.SIGTERM, "stopped")
        self._say(f"SIGTERM to beat {beat.number} (pid {beat.process.pid}): it hands {len(entries)} entries over")
        self._until(lambda: not beat.process.alive, f"beat {beat.number} ends", 5.0)
        self._until_run_again(beat, entries, stopped)
        self._pause()
        gap = self._gap("after SIGTERM", stopped, time.time())
        self._say(f"others run them; the longest gap of an entry was {gap.seconds:.1f} s, and it runs every second")
        self.gaps.append(gap)

    def _join(self) -> None:
        started = time.time()
        beat = self._start_beat(late=True)
        self._say(f"beat {beat.number} starts (pid {beat.process.pid})")
        self._until(lambda: bool(self._runs.by_pid[beat.process.pid]), f"beat {beat.number} sends", 15.0)
        self._pause()
        self._say(f"beat {beat.number} has taken {len(self._entries_of(beat))} entries over")
        self.gaps.append(self._gap("after the join", started, time.time()))

    def _finish(self) -> Report:
        until_us = int(time.time() * SECOND_US)
        # Lost is what has not come after a crash would have been mended, too.
        wait_until(lambda: not self._report(until_us).lost, min(self._ttl_s + 3.0, self._left_s()), self._meanwhile)
        beats = [beat for beat in self._scene.beats if not beat.gone]
        for beat in beats:
            beat.label = "done"
            beat.process.send(signal.SIGTERM)
        self._until(lambda: not any(beat.process.alive for beat in beats), "the beats end", 5.0)
        self._send_last_message()
        self._say("the beats are stopped, and the worker has taken every message")
        return self._report(until_us)

    def _send_last_message(self) -> None:
        """Send one behind all the others: when the worker has it, it has them all."""
        from example_project.app import app

        task_id = str(uuid4())
        app.send_task("example_project.tasks.report", task_id=task_id, retry=False)
        self._until(lambda: task_id in self._runs.by_hand, "the worker takes the last message", 10.0)

    # What all of these are made of

    def _celery(self, name: str, *arguments: str) -> Process:
        command = [sys.executable, "-m", "celery", "--app", "example_project.app", "--no-color", *arguments]
        return self._group.start(name, [*command, "--loglevel", "INFO"])

    def _start_beat(self, *, late: bool = False) -> Beat:
        number = len(self._scene.beats) + 1
        beat = Beat(number, self._celery(f"beat-{number}", "beat"), late=late)
        self._scene.beats.append(beat)
        self._must_live[f"beat {number}"] = beat.process
        return beat

    def _end(self, beat: Beat, signum: signal.Signals, label: str) -> None:
        del self._must_live[f"beat {beat.number}"]
        beat.gone, beat.label = True, label
        beat.process.send(signum)

    def _entries_of(self, beat: Beat) -> list[str]:
        return self._runs.entries_of(beat.process.pid)

    def _until_run_again(self, beat: Beat, entries: list[str], since: float) -> float:
        """Wait until others run what a beat ran every second; returns the seconds that it took."""
        often = [name for name in entries if name in self._every_second]

        def again() -> float | None:
            return ran_again(self._runs.all, often, since, not_by=beat.process.pid)

        self._until(lambda: again() is not None, f"others run the entries of beat {beat.number}", 4 * self._ttl_s)
        return again() or 0.0

    def _gap(self, when: str, since: float, until: float) -> Gap:
        return Gap(longest_gap(self._runs.all, self._every_second, since, until), when)

    def _report(self, until_us: int) -> Report:
        return compare(self._expected, self._runs.all, until_us, self._killed_us)

    def _say(self, text: str) -> None:
        self._scene.events.append((self._scene.elapsed_s(), text))
        self._screen.draw()

    def _pause(self) -> None:
        wait_until(lambda: False, min(self._pause_s, self._left_s()), self._meanwhile)

    def _until(self, condition: Callable[[], bool], what: str, limit_s: float) -> None:
        limit_s = min(limit_s, self._left_s())
        if not wait_until(condition, limit_s, self._meanwhile):
            raise Failed(f"waited {limit_s:.0f} s in vain until {what}")

    def _left_s(self) -> float:
        return max(0.0, _LIMIT_S - self._scene.elapsed_s())

    def _meanwhile(self) -> None:
        self._signals.check()
        self._runs.read()
        self._screen.draw()
        for name, process in self._must_live.items():
            if not process.alive and not any(
                beat.label == "done" and beat.process is process for beat in self._scene.beats
            ):
                raise Failed(f"{name} ended by itself, with status {process.status}", process)
