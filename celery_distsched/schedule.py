"""The scheduler's ``schedule``: a dict that tells when it has been changed, so that no tick has to compare entries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

_Method = TypeVar("_Method", bound=Callable[..., Any])


class NoticedSchedule(dict[str, Any]):
    """Name → `celery.beat.ScheduleEntry`; `version` grows with each change."""

    version = 0


def _noticed(method: _Method) -> _Method:
    def change(self: NoticedSchedule, *args: Any, **kwargs: Any) -> Any:
        self.version += 1
        return method(self, *args, **kwargs)

    change.__name__, change.__doc__ = method.__name__, method.__doc__
    return change  # type: ignore[return-value]


for _name in ("__setitem__", "__delitem__", "__ior__", "clear", "pop", "popitem", "setdefault", "update"):
    setattr(NoticedSchedule, _name, _noticed(getattr(dict, _name)))
