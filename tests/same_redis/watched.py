"""What the broker's server is told: who pushes each message, a client or a script."""

from __future__ import annotations

import re
import threading
from collections import defaultdict
from typing import Any
from uuid import uuid4

import redis

FAST, ORDINARY = "claimed and pushed in one call", "pushed by the broker's client"
_MESSAGE = re.compile(r"\{\W{1,3}body\W")
_NAME = re.compile(r'periodic_task_name\W+([^"\\]+)')


class Watch:
    """Listens to every command that a server executes, from its making to its `close`."""

    def __init__(self, url: str) -> None:
        self._client: Any = redis.Redis.from_url(url)
        self._heard, self._heard_all = threading.Condition(), ""
        self._ways: defaultdict[str, list[str]] = defaultdict(list)
        self._thread = threading.Thread(target=self._listen, name="watch", daemon=True)
        self._thread.start()
        self.ways()

    def ways(self) -> dict[str, list[str]]:
        """Return how each entry's messages so far came into their lists, in order."""
        mark = uuid4().hex
        with self._heard:
            # Nothing is told of what came before the server knew of us: say it until it is heard.
            while mark not in self._heard_all:
                self._client.echo(mark)
                self._heard.wait(0.1)
        return dict(self._ways)

    def close(self) -> None:
        self._client.echo("over")
        self._thread.join(10)
        self._client.close()

    def _listen(self) -> None:
        with self._client.monitor() as monitor:
            while True:
                told = monitor.next_command()
                command = told["command"]
                if command == "ECHO over":
                    return
                if command.startswith("ECHO"):
                    with self._heard:
                        self._heard_all = command
                        self._heard.notify()
                elif command.upper().startswith("LPUSH"):
                    for message in _MESSAGE.split(command)[1:]:
                        # The first is the message's own; a tracer may have put another copy in.
                        for name in _NAME.findall(message)[:1]:
                            self._ways[name].append(FAST if told["client_type"] == "lua" else ORDINARY)
