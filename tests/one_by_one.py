"""The ordinary way: what stands in for `FastWay` where there is neither an app nor a broker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from celery_distsched.drivers.base import Push
from celery_distsched.entries import PlannedEntry


class OneByOne:
    """Every message goes by itself; what knows another way says so."""

    surveying = slicing = False
    out_of_reach = None

    def look_ahead(self, now: float) -> None: ...

    def same_redis(self, now: float) -> Any:
        return None

    def slices(self, now: float) -> Any:
        return None

    def takes(self, name: str) -> bool:
        return False

    def messages(self, due: Mapping[str, Sequence[int]]) -> dict[str, list[Push]]:
        return {name: [Push("queue", str(instant)) for instant in instants] for name, instants in due.items()}

    def set_entries(self, entries: Mapping[str, PlannedEntry]) -> None: ...
    def look_again(self) -> None: ...
    def rest(self, name: str, error: str) -> None: ...
    def note(self, name: str, instants: Sequence[int]) -> None: ...
