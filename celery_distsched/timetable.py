"""When each entry of this node's share is to be looked at next: a heap."""

from __future__ import annotations

import heapq


class Timetable:
    """Names by the time, in microseconds, at which they fall due. A name has one time; a new one replaces it."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, str]] = []
        self._at: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._at)

    def __contains__(self, name: object) -> bool:
        return name in self._at

    def set(self, name: str, at_us: int) -> None:
        """Look at this entry then."""
        self._at[name] = at_us
        heapq.heappush(self._heap, (at_us, name))
        # What was replaced stays in the heap until its turn; without a bound, edits would make it grow.
        if len(self._heap) > 2 * len(self._at) + 1000:
            self._heap = [(at, name) for name, at in self._at.items()]
            heapq.heapify(self._heap)

    def drop(self, name: str) -> None:
        """Forget this entry."""
        self._at.pop(name, None)

    def pop_due(self, now_us: int, most: int) -> list[str]:
        """Take out at most `most` of the entries whose time has come, the longest waiting first."""
        due: list[str] = []
        while self._heap and self._heap[0][0] <= now_us and len(due) < most:
            at, name = heapq.heappop(self._heap)
            if self._at.get(name) == at:
                del self._at[name]
                due.append(name)
        return due

    def next_us(self) -> int | None:
        """Return the earliest time, or None when nothing waits."""
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None
