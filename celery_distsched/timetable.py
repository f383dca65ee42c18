"""When each entry of this node's share is to be looked at next."""

from __future__ import annotations

import heapq
from collections import deque

#: Most times that one call takes out of the heap: ten milliseconds, if they all came at once.
_MOST_TIMES = 10_000


class Timetable:
    """Names by the time, in microseconds, at which they fall due. A name has one time; a new one replaces it.

    Many names share a time, as all that run on the full minute do: the heap holds times, not names.
    """

    def __init__(self) -> None:
        self._at: dict[str, int] = {}
        #: Those that are to come: a heap of times, and the names noted for each. A name that has been given another
        #: time since, or was dropped, stays noted until its turn.
        self._times: list[int] = []
        self._noted: dict[int, list[str]] = {}
        #: Those that have come, in order of time.
        self._waiting: deque[tuple[int, list[str]]] = deque()
        self._notes = 0

    def __len__(self) -> int:
        return len(self._at)

    def __contains__(self, name: object) -> bool:
        return name in self._at

    def set(self, name: str, at_us: int) -> None:
        """Look at this entry then."""
        if self._at.get(name) == at_us:
            return
        self._at[name] = at_us
        self._note(name, at_us)
        # Without a bound, edits would make it grow.
        if self._notes > 2 * len(self._at) + 1000:
            self._tidy()

    def drop(self, name: str) -> None:
        """Forget this entry."""
        self._at.pop(name, None)

    def pop_due(self, now_us: int, most: int) -> list[str]:
        """Take out at most `most` of the entries whose time has come.

        Half of them are those that came last, so that whoever falls due behind a long queue is not kept waiting by it;
        the others are those that have waited longest.
        """
        self._move_due(now_us)
        due: list[str] = []
        self._take(due, most // 2, newest=True)
        self._take(due, most, newest=False)
        return due

    def next_us(self) -> int | None:
        """Return the earliest time, or None when nothing waits."""
        while self._waiting and not self._is_live(*self._waiting[0]):
            self._waiting.popleft()
        if self._waiting:
            return self._waiting[0][0]
        while self._times and not self._is_live(self._times[0], self._noted[self._times[0]]):
            del self._noted[heapq.heappop(self._times)]
        return self._times[0] if self._times else None

    def _note(self, name: str, at_us: int) -> None:
        self._notes += 1
        noted = self._noted.get(at_us)
        if noted is not None:
            noted.append(name)
        else:
            self._noted[at_us] = [name]
            heapq.heappush(self._times, at_us)

    def _move_due(self, now_us: int) -> None:
        for _ in range(_MOST_TIMES):
            if not self._times or self._times[0] > now_us:
                return
            at = heapq.heappop(self._times)
            self._waiting.append((at, self._noted.pop(at)))

    def _take(self, due: list[str], upto: int, *, newest: bool) -> None:
        while self._waiting and len(due) < upto:
            at, names = self._waiting[-1 if newest else 0]
            while names and len(due) < upto:
                name = names.pop()
                self._notes -= 1
                if self._at.get(name) == at:
                    del self._at[name]
                    due.append(name)
            if not names:
                if newest:
                    self._waiting.pop()
                else:
                    self._waiting.popleft()

    def _is_live(self, at: int, names: list[str]) -> bool:
        """Whether somebody is still to be looked at then; forgets who is not."""
        while names and self._at.get(names[-1]) != at:
            names.pop()
            self._notes -= 1
        return bool(names)

    def _tidy(self) -> None:
        self._times, self._noted, self._notes = [], {}, 0
        self._waiting.clear()
        for name, at in self._at.items():
            self._note(name, at)
