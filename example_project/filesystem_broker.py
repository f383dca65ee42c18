"""Kombu's ``filesystem://`` broker, made safe for several processes.

Kombu creates a message's file first and writes it then. A worker that looks in between takes an empty file, and ends
(https://github.com/celery/kombu/issues/1551). Here a message appears under its name when it is whole.
"""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import Any
from uuid import uuid4

from kombu.transport import TRANSPORT_ALIASES, filesystem
from kombu.utils.json import dumps


class Channel(filesystem.Channel):
    """Puts messages whole."""

    def _put(self, queue: str, payload: Any, **_options: Any) -> None:  # type: ignore[override]
        name = f"{round(monotonic() * 1000)}_{uuid4()}.{queue}.msg"
        # A reader ignores it: what follows the first dot is not its queue's name.
        unfinished = Path(self.data_folder_out, f".{name}")
        unfinished.write_text(dumps(payload))  # type: ignore[no-untyped-call]
        unfinished.rename(unfinished.with_name(name))


class Transport(filesystem.Transport):
    """The transport with this channel."""

    Channel = Channel


def install() -> None:
    """Let ``filesystem://`` mean this transport."""
    TRANSPORT_ALIASES["filesystem"] = f"{__name__}:Transport"
