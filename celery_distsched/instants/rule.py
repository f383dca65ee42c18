"""What every kind of schedule comes down to: a sequence of instants."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

SECOND_US = 1_000_000
DAY_US = 86_400 * SECOND_US

#: The year 9900: no instant is computed after it, so that no date runs out of what `datetime` holds.
LATEST_US = 250_246_627_200 * SECOND_US


class Rule(ABC):
    """When an entry is due, as instants: integer microseconds since the epoch, in UTC.

    A rule is pure: it looks at no clock, and what it says depends on its arguments alone.
    """

    __slots__ = ()

    @abstractmethod
    def after(self, last_us: int) -> int | None:
        """Return the first instant strictly after the entry's last one; None: there is none."""

    def newest_first(self, last_us: int, upto_us: int) -> Iterator[int]:
        """Yield every instant in (last, upto], newest first."""
        return reversed(list(self._chain(last_us, upto_us)))

    def count(self, last_us: int, upto_us: int) -> int:
        """Return how many instants there are in (last, upto]."""
        return sum(1 for _ in self._chain(last_us, upto_us))

    def _chain(self, last_us: int, upto_us: int) -> Iterator[int]:
        instant = self.after(last_us)
        while instant is not None and instant <= upto_us:
            yield instant
            instant = self.after(instant)
