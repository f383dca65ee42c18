"""The scheduler's ``schedule``: a dict that tells when it has been changed, so that no tick has to compare entries."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any, TypeVar

_Method = TypeVar("_Method", bound=Callable[..., Any])
#: Of all schedules: one that takes another's place has a version of its own.
_versions = count(1)


class NoticedSchedule(dict[str, Any]):
    """Name → `celery.beat.ScheduleEntry`; `version` is another one after each change."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.changed()

    def changed(self) -> None:
        """Tell of a change."""
        self.version = next(_versions)


def _noticed(method: _Method) -> _Method:
    def change(self: NoticedSchedule, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        finally:
            # Only now: whoever plans in the middle of it, in another thread, is to do so again.
            self.changed()

    change.__name__, change.__doc__ = method.__name__, method.__doc__
    return change  # type: ignore[return-value]


for _name in ("__setitem__", "__delitem__", "__ior__", "clear", "pop", "popitem", "setdefault", "update"):
    setattr(NoticedSchedule, _name, _noticed(getattr(dict, _name)))
