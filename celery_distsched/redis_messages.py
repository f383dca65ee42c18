"""What kombu would push to a Redis list: caught on the last step, and the text cut into a template."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from json.encoder import encode_basestring_ascii
from operator import itemgetter
from typing import Any, ClassVar

import kombu.transport.redis
import kombu.transport.virtual.base
from kombu.utils.json import dumps

from celery_distsched.drivers.base import Push
from celery_distsched.hooks import foreign
from celery_distsched.template import Caught, OrdinaryWay, new_marks

_METHODS = {
    "_put": kombu.transport.redis,
    "_q_for_pri": kombu.transport.redis,
    "priority": kombu.transport.redis,
    "basic_publish": kombu.transport.virtual.base,
    "prepare_message": kombu.transport.virtual.base,
    "encode_body": kombu.transport.virtual.base,
    "_inplace_augment_message": kombu.transport.virtual.base,
    "_get_message_priority": kombu.transport.virtual.base,
}


class RedisTemplate:
    """One kind of message: the list, and the text with a place for each value that is a message's own."""

    def __init__(self, push: Push, marks: Mapping[str, str]) -> None:
        self.key = push.key
        field_of = {mark: field for field, mark in marks.items()}
        #: What is the same for all, and between every two of these parts a mark.
        self._parts = re.split("(" + "|".join(map(re.escape, marks.values())) + ")", push.text)
        self._own = itemgetter(*(field_of[mark] for mark in self._parts[1::2]))

    def fill(self, values: Mapping[str, str]) -> Push:
        """Put a message's values in, each as `RedisMessages.encoded` made it."""
        parts = self._parts.copy()
        parts[1::2] = self._own(values)
        return Push(self.key, "".join(parts))


class RedisMessages:
    """The last step of kombu's Redis transport, on one channel."""

    marks: ClassVar[Mapping[str, str]] = new_marks()
    routed_by_broker: ClassVar[bool] = False

    def __init__(self, channel: Any, prefix: str = "") -> None:
        """Keep what is needed.

        Args:
            channel: The channel.
            prefix: What the names of lists get in front, where another client than the channel's is to push.
        """
        self.channel = channel
        self.prefix = prefix

    def hooks(self) -> str | None:
        """Say what is not kombu's own about the channel; None: all is."""
        kind = type(self.channel)
        if kind.__module__ != kombu.transport.redis.__name__:
            return f"the broker's channel is of a class of its own, {kind.__name__}"
        return foreign((f"Channel.{name}", self.channel, name, where) for name, where in _METHODS.items())

    @contextmanager
    def catching(self) -> Iterator[list[Caught]]:
        """Catch what kombu would push on this channel, with all that leads up to it done."""
        channel, caught = self.channel, list[Caught]()

        def put(queue: str, message: dict[str, Any], **options: Any) -> None:
            caught.append(_CaughtPut(self, queue, message))

        channel._put = put
        channel._put_fanout = lambda *args, **options: caught.extend([_CaughtPut(self, "", {})] * 2)
        try:
            yield caught
        finally:
            del channel._put, channel._put_fanout

    def template(self, marked: Push) -> RedisTemplate:
        """Cut a text where there is a mark."""
        return RedisTemplate(marked, self.marks)

    def encoded(self, field: str, value: Any) -> str:
        """Return a value as it stands between the quotes of a JSON string."""
        if field == "name":
            return encode_basestring_ascii(value)[1:-1]
        if field == "body":
            value, _ = self.channel.encode_body(value, self.channel.body_encoding)
        return str(dumps(value))[1:-1]  # type: ignore[no-untyped-call]


class _CaughtPut(Caught):
    def __init__(self, messages: RedisMessages, queue: str, message: dict[str, Any]) -> None:
        self._messages, self._queue, self._message = messages, queue, message
        self.headers, self.properties = message.get("headers", {}), message.get("properties", {})
        self.content_type = message.get("content-type")
        self.exchange = self.properties.get("delivery_info", {}).get("exchange", "")

    def generated(self) -> dict[str, Any]:
        return {"delivery_tag": self.properties["delivery_tag"], "expires": self.headers["expires"] or ""}

    def mark(self, field: str, mark: str) -> None:
        if field == "delivery_tag":
            self.properties["delivery_tag"] = mark
        elif field == "body":
            self._message["body"] = mark
        else:
            self.headers[field] = mark

    def written(self) -> Push:
        channel, client = self._messages.channel, _Client()
        # On this object, for this one call: a client that notes what it is told.
        channel.conn_or_acquire = lambda *args, **kwargs: client
        try:
            type(channel)._put(channel, self._queue, self._message)
        finally:
            del channel.conn_or_acquire
        ((key, text),) = client.pushed
        return Push(f"{self._messages.prefix}{key}", text)


class _Client:
    def __init__(self) -> None:
        self.pushed: list[tuple[str, str]] = []

    def __enter__(self) -> _Client:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def lpush(self, key: str, text: str) -> None:
        self.pushed.append((key, text))

    def pipeline(self) -> None:
        raise OrdinaryWay("its queue expires")
