"""The queue of a RabbitMQ broker as somebody outside sees it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

import amqp

from tests.acceptance.queue import AGAIN_S, Message, Queue, identity, message_of, missing

#: What tells messages apart: RabbitMQ has no name for one of its own.
Identity = tuple[str, str, int]


class RabbitQueue(Queue):
    """The durable queue ``celery``; nothing in it is acknowledged, so the broker keeps it all."""

    def empty(self) -> None:
        with self._connection() as connection:
            _declare(connection.channel()).queue_purge("celery")

    def vanished(self) -> list[Message]:
        there: Counter[Identity] = Counter()
        with self._connection() as connection:
            channel = connection.channel()
            number = channel.queue_declare("celery", passive=True).message_count
            channel.basic_consume("celery", callback=lambda message: there.update([identity(_parsed(message))]))
            while there.total() < number:
                connection.drain_events(timeout=5)
        return missing(self.messages, there)

    def _connection(self) -> Any:
        place = urlsplit(self.url)
        return amqp.Connection(
            f"{place.hostname}:{place.port}", place.username, place.password, connect_timeout=2, heartbeat=0
        )

    def _watch(self, over: threading.Event) -> None:
        while not over.is_set():
            try:
                with self._connection() as connection:
                    self._listen(connection, over)
            except (OSError, amqp.AMQPError):
                over.wait(AGAIN_S)

    def _listen(self, connection: Any, over: threading.Event) -> None:
        # A new connection is given everything again; what is given once more than it was seen is new.
        again = Counter(map(identity, self.messages))

        def take(delivered: Any) -> None:
            message = _parsed(delivered)
            again[identity(message)] -= 1
            if again[identity(message)] < 0:
                self.messages.append(message)

        _declare(connection.channel()).basic_consume("celery", callback=take)
        while not over.is_set():
            try:
                connection.drain_events(timeout=0.1)
            except TimeoutError:
                continue


def _declare(channel: Any) -> Any:
    """As kombu declares it."""
    channel.queue_declare("celery", durable=True, auto_delete=False)
    return channel


def _parsed(delivered: Any) -> Message:
    return message_of(delivered.headers, time.time())
