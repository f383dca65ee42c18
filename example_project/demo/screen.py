"""Where the demo is shown: a terminal that is drawn anew a few times a second, or lines, one after the other."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from example_project.demo.processes import Interrupted
from example_project.demo.scene import Scene
from example_project.demo.text import Line, rendered

#: A terminal smaller than this gets lines.
_SMALLEST = (72, 20)
#: Seconds between two lines about the shares.
_SHARES_S = 5.0


class LineScreen:
    """One line for each thing that happens, and now and then one about the shares."""

    def __init__(self, scene: Scene, output: TextIO) -> None:
        self._scene = scene
        self._output = output
        self._shown = 0
        self._shares_due_s = _SHARES_S

    def draw(self) -> None:
        """Show what is new."""
        for at, text in self._scene.events[self._shown :]:
            self._print(f"{at:6.1f} s  {text}")
            self._shown += 1
        elapsed = self._scene.elapsed_s()
        if elapsed >= self._shares_due_s and any(not beat.label for beat in self._scene.beats):
            self._shares_due_s = elapsed + _SHARES_S
            self._print(f"{elapsed:6.1f} s    {self._scene.shares()}")

    def close(self, last_lines: Iterable[Line] = ()) -> None:
        """Show the end."""
        self.draw()
        for line in last_lines:
            self._print(rendered(line, 10_000, colour=False))

    def _print(self, text: str) -> None:
        encoding = self._output.encoding or "ascii"
        _write(self._output, text.encode(encoding, "replace").decode(encoding) + "\n")


class LiveScreen:
    """A page of its own in the terminal. In the end what was there before comes back, and the last picture under it."""

    def __init__(self, scene: Scene, output: TextIO, *, colour: bool) -> None:
        self._scene = scene
        self._output = output
        self._colour = colour
        self._unicode = (output.encoding or "").lower().replace("-", "") == "utf8"
        self._open = False

    def draw(self) -> None:
        """Draw everything anew, without a flicker: each line is written over its predecessor."""
        width, height = shutil.get_terminal_size()
        top = [[], *self._scene.lines(width - 1, unicode=self._unicode), []]
        events = self._scene.events_lines(width - 1)
        lines = [*top, *events[-max(1, height - len(top) - 1) :]]
        opening = "" if self._open else "\x1b[?1049h\x1b[?25l"
        self._open = True
        page = "".join(f"{text}\x1b[K\r\n" for text in self._rendered(lines[: height - 1], width - 1))
        _write(self._output, f"{opening}\x1b[H{page}\x1b[J")

    def close(self, last_lines: Iterable[Line] = ()) -> None:
        """Give the terminal back, and leave the last picture and these lines on it."""
        if not self._open:
            return
        self._open = False
        width = shutil.get_terminal_size().columns - 1
        picture = [[], *self._scene.lines(width, unicode=self._unicode), [], *self._scene.events_lines(width)]
        text = "\n".join(self._rendered([*picture, *last_lines], width))
        _write(self._output, f"\x1b[?25h\x1b[?1049l{text}\n")

    def _rendered(self, lines: Iterable[Line], width: int) -> list[str]:
        return [rendered(line, width, colour=self._colour) for line in lines]


def screen_for(scene: Scene, output: TextIO = sys.stdout) -> LineScreen | LiveScreen:
    """Choose by what the output is."""
    size = shutil.get_terminal_size()
    fits = size.columns >= _SMALLEST[0] and size.lines >= _SMALLEST[1]
    if output.isatty() and fits and os.environ.get("TERM", "dumb") != "dumb":
        return LiveScreen(scene, output, colour=not os.environ.get("NO_COLOR"))
    return LineScreen(scene, output)


def _write(output: TextIO, text: str) -> None:
    """Write at once. That nobody reads any more, or the terminal has gone, is a wish to end."""
    try:
        output.write(text)
        output.flush()
    except OSError as exc:
        # What is left in the buffer needs a place to go, or Python complains at its end.
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), output.fileno())
        raise Interrupted(signal.SIGPIPE) from exc
