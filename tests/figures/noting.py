"""How a test notes what it has measured: one line of JSON each, in the file that the environment names."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.figures.promises import ALSO, PROMISES, RUNS, SECONDS, STORES

_VARIABLE = "FIGURES"


def figures_file() -> Path | None:
    """Return where figures are noted; None: nowhere."""
    named = os.environ.get(_VARIABLE)
    return Path(named) if named else None


class Figure:
    """Takes what one test has measured."""

    def __init__(self, test: str) -> None:
        self._test = test
        self._lines: list[str] = []

    def runs(self, promise: str, store: str, wrong: int, of: int, what: str) -> None:
        """Note how many of so many were not as promised.

        Args:
            promise: Which, by its key in `PROMISES`.
            store: By its scheme.
            wrong: How many were lost, came twice, or whatever is promised not to be.
            of: How many there were.
            what: They were, and what was done to them: "runs lost; kill -9 twice".
        """
        assert of > 0, "nothing was tried"
        self._note(promise, store, {"kind": RUNS, "value": int(wrong), "of": of, "what": what})

    def also(self, promise: str, store: str, number: int, of: int, what: str) -> None:
        """Note a number that goes with a promise and breaks none: of how many runs something is true."""
        self._note(promise, store, {"kind": ALSO, "value": number, "of": of, "what": what})

    def seconds(self, promise: str, store: str, took_s: float, within_s: float, what: str) -> None:
        """Note how long the slowest took, how long it may, and what it was."""
        self._note(promise, store, {"kind": SECONDS, "value": round(took_s, 3), "of": round(within_s, 1), "what": what})

    def _note(self, promise: str, store: str, measured: dict[str, object]) -> None:
        # A name that is not in the table is an error in every run, not only where figures are asked for.
        assert promise in PROMISES, promise
        assert store in STORES, store
        self._lines.append(json.dumps({"promise": promise, "store": store, "test": self._test, **measured}) + "\n")

    def keep(self) -> None:
        """Write down what was noted, where somebody asks for it."""
        path = figures_file()
        if path is not None:
            # Several processes append to it: all lines of a test are one write.
            with path.open("a") as file:
                file.write("".join(self._lines))
