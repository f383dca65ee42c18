"""Messages in slices: what is claimed together is written together, and waited for once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from celery_distsched.broker import Broker
from celery_distsched.drivers.base import Push
from celery_distsched.outcome import Outcome
from celery_distsched.template import Messages

logger = logging.getLogger(__name__)


IN_SLICES = "claimed, sent and confirmed one after the other, in slices"


class RedisSlices:
    """One pipeline a slice, and in it one push a list: of a list's messages either all are pushed or none is."""

    what = IN_SLICES

    def __init__(self, broker: Broker, messages: Any, why: str) -> None:
        self.why = why
        self.messages: Messages = messages
        self._broker = broker
        self._channel = messages.channel

    def send(self, pushes: Sequence[Push]) -> Callable[[], list[Outcome]]:
        """Push them; one bounded attempt. Returns what returns what became of each."""
        outcomes = self._pushed(pushes)
        return lambda: outcomes

    def _pushed(self, pushes: Sequence[Push]) -> list[Outcome]:
        of_list: dict[str, list[str]] = {}
        for push in pushes:
            of_list.setdefault(push.key, []).append(push.text)
        try:
            with self._channel.conn_or_acquire() as client:
                pipeline = client.pipeline(transaction=False)
                for key, texts in of_list.items():
                    pipeline.lpush(key, *texts)
                answers = pipeline.execute(raise_on_error=False)
        except Exception as exc:  # noqa: BLE001  (what it means is the broker's to say)
            return [_failed(self._broker, exc, len(pushes))] * len(pushes)
        outcomes = {}
        for (key, texts), answer in zip(of_list.items(), answers, strict=True):
            refused = isinstance(answer, Exception)
            outcomes[key] = _failed(self._broker, answer, len(texts), key) if refused else Outcome.ACCEPTED
        return [outcomes[push.key] for push in pushes]


class _Slice(NamedTuple):
    """Messages that were written together, until the broker has answered for all of them."""

    outcomes: list[Outcome]
    #: Delivery tag → number in the slice.
    waiting: dict[int, int]

    def settle(self, tag: int, multiple: bool, outcome: Outcome) -> None:
        tags = [waiting for waiting in self.waiting if waiting <= tag] if multiple else [tag]
        for one in tags:
            number = self.waiting.pop(one, None)
            if number is not None:
                self.outcomes[number] = outcome


class AmqpSlices:
    """A channel of our own, in confirm mode: a slice is written at once, then all its confirms are waited for."""

    what = IN_SLICES
    why = "the broker is RabbitMQ"

    def __init__(self, broker: Broker, channel: Any, messages: Messages, timeout_s: float) -> None:
        """Take a channel over.

        Args:
            broker: Says what an error means.
            channel: Nobody else publishes on it, or the count of messages would be wrong.
            messages: Makes what is written on it.
            timeout_s: For writing a slice, and again for its confirms.
        """
        self.messages = messages
        self._broker = broker
        self._channel = channel
        self._timeout_s = timeout_s
        #: The broker counts the messages of a channel in confirm mode from 1.
        self._written = 0
        #: Those that are on their way.
        self._slices: list[_Slice] = []
        channel.confirm_select()
        channel.events["basic_ack"].add(partial(self._settle, Outcome.ACCEPTED))
        channel.events["basic_nack"].add(partial(self._settle, Outcome.REJECTED))

    def send(self, frames: Sequence[bytes]) -> Callable[[], list[Outcome]]:
        """Write them; one bounded attempt. Returns what waits for the broker's answers, and says what became of each.

        Slices before this one may be on their way still.
        """
        connection = self._channel.connection
        try:
            with suppress(TimeoutError):
                connection.drain_events(timeout=0)
        except Exception as exc:  # noqa: BLE001  (closed since the last slice, in any way: nothing has been written)
            logger.error("%d messages: %s: %s", len(frames), Outcome.REFUSED.meaning, self._broker.says(exc))  # noqa: TRY400
            self._broker.lost()
            return lambda: [Outcome.REFUSED] * len(frames)
        if self._broker.blocked:
            return lambda: [Outcome.REFUSED] * len(frames)
        tags = range(self._written + 1, self._written + len(frames) + 1)
        slice_ = _Slice([Outcome.UNKNOWN] * len(frames), {tag: number for number, tag in enumerate(tags)})
        self._slices.append(slice_)
        self._written += len(frames)
        try:
            with connection.transport.having_timeout(self._timeout_s):
                connection.transport.write(b"".join(frames))
        except Exception as exc:  # noqa: BLE001  (what it means is the broker's to say)
            self._broken(exc)
        return partial(self._answers, connection, slice_, time.monotonic() + self._timeout_s)

    def _answers(self, connection: Any, slice_: _Slice, until: float) -> list[Outcome]:
        try:
            while slice_.waiting:
                connection.drain_events(timeout=max(until - time.monotonic(), 0.001))
        except Exception as exc:  # noqa: BLE001  (what it means is the broker's to say)
            self._broken(exc)
        self._slices = [other for other in self._slices if other is not slice_]
        nacked = slice_.outcomes.count(Outcome.REJECTED)
        if nacked:
            logger.error("%d messages: the broker will not take them; they are tried again", nacked)
        return slice_.outcomes

    def _broken(self, error: Exception) -> None:
        """Whatever it is, the channel is not to be used again, and what was not answered is not known."""
        _failed(self._broker, error, sum(len(slice_.waiting) for slice_ in self._slices))
        for slice_ in self._slices:
            slice_.waiting.clear()
        self._broker.drop()

    def _settle(self, outcome: Outcome, tag: int, multiple: bool) -> None:
        for slice_ in self._slices:
            slice_.settle(tag, multiple, outcome)


def _failed(broker: Broker, error: Exception, messages: int, to: str = "") -> Outcome:
    """Say what an error means for messages of which no message of their own failed, and report it."""
    outcome = broker.outcome_of(error)
    if outcome is Outcome.FAILED:
        # They were made well; of what then went wrong nothing is known.
        outcome = Outcome.UNKNOWN
    where = f" for {to}" if to else ""
    logger.error("%d messages%s: %s: %s", messages, where, outcome.meaning, broker.says(error))
    if outcome in (Outcome.UNKNOWN, Outcome.REFUSED):
        broker.drop()
    return outcome
