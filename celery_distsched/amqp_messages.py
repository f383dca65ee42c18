"""What py-amqp would write to RabbitMQ: caught on the last step, and the frames cut into a template.

A message is a frame with the method, one with the properties, among them the headers, and the body in one or more. In
the headers each text is preceded by its length, and so is the table of all headers; ids are of one length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from struct import calcsize, pack, unpack_from
from typing import Any, ClassVar

import amqp.channel
import kombu.transport.pyamqp
from amqp.method_framing import frame_writer

from celery_distsched.hooks import foreign
from celery_distsched.template import Caught, OrdinaryWay, new_marks

_METHODS = {
    "prepare_message": kombu.transport.pyamqp,
    "basic_publish": amqp.channel,
    "_basic_publish": amqp.channel,
    "basic_publish_confirm": amqp.channel,
}
_HEADER, _BODY, _END = 2, 3, b"\xce"
#: In a frame of properties, before their flags: class, weight and the length of the body.
_HEADER_START = ">HHQ"
#: The first three properties, by their flags.
_CONTENT_TYPE, _CONTENT_ENCODING, _HEADERS = 1 << 15, 1 << 14, 1 << 13


class AmqpTemplate:
    """One kind of message: its frames, with a place for each value that is a message's own."""

    def __init__(self, written: bytes, marks: Mapping[str, str], frame_max: int) -> None:
        frames = list(_frames(written))
        (_, self._channel, _), (_, _, header) = frames[0], frames[1]
        self._method = written[: 8 + len(frames[0][2])]
        self._class, self._weight, _ = unpack_from(_HEADER_START, header)
        before, table, after = _properties(header[calcsize(_HEADER_START) :])
        self._before, self._table, self._after = before, _pattern(table, marks), _pattern(after, marks)
        self._body = b"".join(payload for _, _, payload in frames[2:])
        self._most = frame_max - 8

    def fill(self, values: Mapping[str, Any]) -> bytes:
        """Put a message's values in; those of `AmqpMessages.encoded` as it made them."""
        own = {
            b"task_id": values["task_id"].encode(),
            b"scheduled_at": _sized(values["scheduled_at"]),
            b"name": values["name"],
            b"expires": values.get("expires"),
            b"argsrepr": values.get("argsrepr"),
            b"kwargsrepr": values.get("kwargsrepr"),
        }
        body = values.get("body", self._body)
        table = self._table % own
        start = pack(_HEADER_START, self._class, self._weight, len(body))
        header = b"".join((start, self._before, pack(">I", len(table)), table, self._after % own))
        frames = [self._method, pack(">BHI", _HEADER, self._channel, len(header)), header, _END]
        for at in range(0, len(body), self._most):
            piece = body[at : at + self._most]
            frames += (pack(">BHI", _BODY, self._channel, len(piece)), piece, _END)
        return b"".join(frames)


def _frames(written: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    while at < len(written):
        kind, channel, size = unpack_from(">BHI", written, at)
        yield kind, channel, written[at + 7 : at + 7 + size]
        at += size + 8


def _properties(properties: bytes) -> tuple[bytes, bytes, bytes]:
    """Divide them: before the headers' length, the headers, and after."""
    (flags,) = unpack_from(">H", properties)
    if not flags & _HEADERS:
        raise OrdinaryWay("its message has no headers")
    at = 2
    for flag in (_CONTENT_TYPE, _CONTENT_ENCODING):
        if flags & flag:
            at += 1 + properties[at]
    (size,) = unpack_from(">I", properties, at)
    return properties[:at], properties[at + 4 : at + 4 + size], properties[at + 4 + size :]


def _pattern(text: bytes, marks: Mapping[str, str]) -> bytes:
    place_of = {_sized(mark): b"%%(%b)b" % field.encode() for field, mark in marks.items() if field != "task_id"}
    place_of[marks["task_id"].encode()] = b"%(task_id)b"
    pieces = re.split(b"(" + b"|".join(map(re.escape, place_of)) + b")", text)
    return b"".join(place_of.get(piece) or piece.replace(b"%", b"%%") for piece in pieces)


def _sized(value: str) -> bytes:
    """A text as it stands in a table: behind its length."""
    encoded = value.encode()
    return pack(">I", len(encoded)) + encoded


def hooks_of(channel: Any) -> str | None:
    """Say what is not py-amqp's and kombu's own about a channel; None: all is."""
    kind = type(channel)
    if kind is not kombu.transport.pyamqp.Channel:
        return f"the broker's channel is of a class of its own, {kind.__name__}"
    return foreign((f"Channel.{name}", channel, name, where) for name, where in _METHODS.items())


class AmqpMessages:
    """The last step of kombu's AMQP transport: caught on one channel, written as for another."""

    marks: ClassVar[Mapping[str, str]] = new_marks()
    routed_by_broker: ClassVar[bool] = True

    def __init__(self, channel: Any, written_for: int) -> None:
        """Keep what is needed.

        Args:
            channel: The channel on which `apply_async` publishes.
            written_for: Number of the channel that messages are written to.
        """
        self.channel = channel
        self.written_for = written_for

    def hooks(self) -> str | None:
        """Say what is not py-amqp's and kombu's own about the channel; None: all is."""
        return hooks_of(self.channel)

    @contextmanager
    def catching(self) -> Iterator[list[Caught]]:
        """Catch what py-amqp would write to this channel, with all that leads up to it done."""
        channel, caught, publish = self.channel, list[Caught](), self.channel.basic_publish
        channel.basic_publish = lambda message, **options: caught.append(_CaughtPublish(self, message, options))
        try:
            yield caught
        finally:
            channel.basic_publish = publish

    def template(self, written: bytes) -> AmqpTemplate:
        """Cut frames where there is a mark."""
        return AmqpTemplate(written, self.marks, self.channel.connection.frame_max)

    def encoded(self, field: str, value: Any) -> bytes:
        """Return a value as it is written: the body as it is, all else as in a table."""
        if field == "body":
            return value if isinstance(value, bytes) else str(value).encode()
        return _sized(value)


class _CaughtPublish(Caught):
    def __init__(self, messages: AmqpMessages, message: Any, options: Mapping[str, Any]) -> None:
        self._messages, self._message, self._options = messages, message, options
        self.properties = message.properties
        self.headers = message.properties.get("application_headers") or {}
        self.content_type = message.properties.get("content_type")
        self.exchange = options["exchange"]

    def generated(self) -> dict[str, Any]:
        return {"expires": self.headers["expires"] or ""}

    def mark(self, field: str, mark: str) -> None:
        if field == "body":
            self._message.body = mark
        else:
            self.headers[field] = mark

    def written(self) -> bytes:
        if self._options.get("mandatory") or self._options.get("immediate"):
            raise OrdinaryWay("it may be returned")
        channel = self._messages.channel
        connection, written = channel.connection, _Written()
        write, number = connection.frame_writer, channel.channel_id
        # For this one call: py-amqp's own writer, to memory, and as for the other channel.
        connection.frame_writer = frame_writer(connection, written)
        channel.channel_id = self._messages.written_for
        try:
            options = self._options
            channel._basic_publish(self._message, exchange=options["exchange"], routing_key=options["routing_key"])
        finally:
            connection.frame_writer, channel.channel_id = write, number
        return bytes(written.data)


class _Written:
    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> None:
        self.data += data
