"""Log lines that may come in thousands at once, as when a node dies: the first few whole, one for all the others."""

from __future__ import annotations

import logging

#: Lines of one kind, in one tick, that are logged whole; the others are in the debug log.
MOST = 10


class ManyLines:
    """The lines of one module about single entries, from tick to tick."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        #: How many there were of each kind in this tick: a level, and what is said of those that are not logged whole.
        self._counts: dict[tuple[int, str], int] = {}

    def say(self, level: int, others: str, line: str, *args: object) -> None:
        """Log one line.

        Args:
            level: How bad it is.
            others: What follows "… and 4,312 more", for those that are too many.
            line: As the logger takes it.
            args: The same.
        """
        count = self._counts[level, others] = self._counts.get((level, others), 0) + 1
        self._logger.log(level if count <= MOST else logging.DEBUG, line, *args)

    def sum_up(self) -> None:
        """Log how many others there were; the next tick begins anew."""
        if self._counts:
            counts, self._counts = self._counts, {}
            for (level, others), count in counts.items():
                if count > MOST:
                    self._logger.log(level, "… and %s more %s", f"{count - MOST:,}", others)
