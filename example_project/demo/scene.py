"""What there is to be seen at one moment, and the lines that show it."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from example_project.demo.processes import Process
from example_project.demo.report import SECOND_US, Grid
from example_project.demo.runs import Run, Runs
from example_project.demo.text import Line, Style, cell, wrapped

_LEVELS = " ▁▂▃▄▅▆▇█"
_COLOURS = (Style.CYAN, Style.YELLOW, Style.MAGENTA, Style.GREEN)
#: Seconds after which a run that has not come is called waiting.
_GRACE_S = 0.3
#: Columns of the table, without the picture that takes what is left.
_TABLE = 74


@dataclass
class Beat:
    """One beat of the demo."""

    number: int
    process: Process
    #: Whether it came after the others.
    late: bool = False
    #: Whether it was killed or stopped.
    gone: bool = False
    #: What to show as its state, where that is not plain.
    label: str = ""

    @property
    def colour(self) -> Style:
        """The colour that stands for it everywhere."""
        return _COLOURS[(self.number - 1) % len(_COLOURS)]

    def state(self, runs: Runs) -> tuple[str, Style]:
        """Return how it is, in a word or two."""
        if self.label:
            return self.label, Style.RED if "kill" in self.label else Style.DIM
        if not self.process.alive:
            return f"ended ({self.process.status})", Style.RED
        if not runs.by_pid[self.process.pid]:
            return "starting", Style.DIM
        return ("alive, new" if self.late else "alive"), Style.GREEN


@dataclass
class Scene:
    """Everything that a screen shows. The demo changes it, the screens read it."""

    #: Names and values: the store, the broker, ...
    facts: Mapping[str, str]
    #: Entry → its instants.
    expected: Mapping[str, Grid]
    runs: Runs
    started: float = field(default_factory=time.monotonic)
    #: Whole second, since the epoch, of the first column of the pictures by second.
    first_second: int = 0
    beats: list[Beat] = field(default_factory=list)
    events: list[tuple[float, str]] = field(default_factory=list)

    def elapsed_s(self) -> float:
        """Seconds since the demo started."""
        return time.monotonic() - self.started

    def over(self) -> None:
        """Whoever is alive now is ended with the demo."""
        for beat in self.beats:
            if not beat.label and beat.process.alive:
                beat.label = "ended"

    def lines(self, width: int, *, unicode: bool) -> list[Line]:
        """Draw everything but the events."""
        title = f"   {len(self.expected)} entries, shared out over several beats"
        name = "  celery_distsched"
        facts: Line = []
        for fact, value in self.facts.items():
            facts += [("  ", Style.PLAIN), (f"{fact} ", Style.DIM), (value, Style.PLAIN)]
        room = width - _TABLE
        # Fewer columns would say nothing.
        seconds = min(room, 40) if unicode and room >= 20 else 0
        picture = "runs in each second" if seconds else ""
        return [
            [
                (name, Style.BOLD),
                (title, Style.DIM),
                cell(f"{self.elapsed_s():.1f} s", width - len(name + title), right=True),
            ],
            facts,
            [],
            [
                (
                    f"  {'beat':<6}{'pid':<9}{'state':<13}{'entries':<14}{'sent last':<23}{'runs':>4}   {picture}",
                    Style.DIM,
                )
            ],
            *(self._beat(beat, seconds, unicode=unicode) for beat in self.beats),
            [],
            *self._owners(),
        ]

    def events_lines(self, width: int) -> list[Line]:
        """Draw what has happened, oldest first."""
        lines: list[Line] = []
        for at, text in self.events:
            for index, part in enumerate(wrapped(text, width - 12)):
                stamp = f"{at:>6.1f} s  " if index == 0 else " " * 10
                lines.append([("  " + stamp, Style.DIM), (part, Style.PLAIN)])
        return lines

    def shares(self) -> str:
        """Tell in one line who runs how many entries, and how much each has sent."""
        told = []
        for beat in self.beats:
            entries, waiting = self.runs.entries_of(beat.process.pid), self._waiting(beat)
            if beat.gone and waiting:
                told.append(f"beat {beat.number} {beat.label}, {len(waiting)} of its entries wait")
            elif not beat.gone:
                sent = len(self.runs.by_pid[beat.process.pid])
                told.append(f"beat {beat.number} has {len(entries)} entries and has sent {sent} runs")
        return "; ".join(told)

    def _waiting(self, beat: Beat) -> set[str]:
        """Return the entries of a beat that has gone which should have run since."""
        overdue_us = (time.time() - _GRACE_S) * 1e6
        return {
            entry
            for entry in self.runs.entries_of(beat.process.pid)
            if beat.gone and self.runs.last[entry].instant_us + self.expected[entry].step_us < overdue_us
        }

    def _beat(self, beat: Beat, seconds: int, *, unicode: bool) -> Line:
        pid = beat.process.pid
        sent, owned = self.runs.by_pid[pid], len(self.runs.entries_of(pid))
        state, style = beat.state(self.runs)
        if not beat.gone:
            bar = ("■" if unicode else "#") * round(owned * 10 / len(self.expected))
            share = cell(f"{owned:>2} {bar}", 14, beat.colour)
        elif waiting := self._waiting(beat):
            share = cell(f"{len(waiting):>2} waiting", 14, Style.RED)
        else:
            share = cell(" - taken over", 14, Style.DIM)
        quiet = Style.DIM if beat.gone else Style.PLAIN
        return [
            ("  ", Style.PLAIN),
            cell(f"{beat.number}", 6, beat.colour),
            cell(f"{pid}", 9, quiet),
            cell(state, 13, style),
            share,
            cell(_last(sent), 23, quiet),
            (f"{len(sent):>4}   ", quiet),
            (self._by_second(sent, seconds) if seconds else "", beat.colour),
        ]

    def _by_second(self, sent: Sequence[Run], seconds: int) -> str:
        """Draw how many runs arrived in each of the last seconds."""
        counts = Counter(int(run.received) for run in sent)
        now = int(time.time())
        first = max(self.first_second or now, now - seconds + 1)
        levels = (math.ceil(counts[at] * 8 / len(self.expected)) for at in range(first, now + 1))
        return "".join(_LEVELS[min(level, 8)] for level in levels)

    def _owners(self) -> list[Line]:
        """Draw each entry as the number of the beat that ran it last."""
        beats = {beat.process.pid: beat for beat in self.beats}
        waiting = {entry for beat in self.beats for entry in self._waiting(beat)}
        lines: dict[str, Line] = {}
        for entry, grid in self.expected.items():
            kind = ("every second" if grid.step_us == SECOND_US else "by the clock") if grid.clock else "intervals"
            line = lines.setdefault(kind, [(f"  {kind:<15}", Style.DIM)])
            run = self.runs.last.get(entry)
            beat = beats.get(run.pid) if run else None
            if beat is None:
                line.append(("· ", Style.DIM))
            elif beat.gone:
                line.append((f"{beat.number} ", Style.RED if entry in waiting else Style.DIM))
            else:
                line.append((f"{beat.number} ", beat.colour))
        return list(lines.values())


def _last(sent: Sequence[Run]) -> str:
    if not sent:
        return "-"
    run = sent[-1]
    return f"{run.entry:<11}{time.strftime('%H:%M:%S', time.localtime(run.instant_us / 1e6))}"
