"""The way to the broker: bounded in time, confirmed where the broker can, and never retried behind our back."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from enum import Enum
from typing import Any
from urllib.parse import unquote, urlsplit

from celery import Celery
from kombu.exceptions import OperationalError

from celery_distsched.drivers.secret import Secrets
from celery_distsched.drivers.url import StoreUrl
from celery_distsched.outcome import Outcome, any_of, chain, takes_nothing

logger = logging.getLogger(__name__)

#: A list that nobody has: to push to what is there already does nothing then, and is refused as every push is.
_NOWHERE = "distsched:nowhere"

_EXITS = (SystemExit, KeyboardInterrupt)
#: Seconds that closing the connection may take.
_FAREWELL_S = 0.3


#: Of whatever library: it may work a moment later.
_PASSING = frozenset({"ConnectionError", "TimeoutError", "OperationalError", "gaierror"})


class Step(Enum):
    """How far one attempt has come: what fails before or after the broker is asked is no fault of the broker's."""

    BEFORE = "before"  #: in what the user, or Celery, does first: arguments, receivers, the result backend
    WRITING = "writing"  #: with the broker
    LEFT = "left"  #: the broker has the message; what comes now is said of it


class BrokerAway(Exception):
    """It could not be found out how messages are to be written: the broker does not answer, or takes nothing."""


class Broker:
    """One connection of our own, since Celery's has no timeouts and two lives: retries and a pool."""

    def __init__(self, app: Celery, producer_class: Any, timeout_s: float) -> None:
        self._app = app
        self._producer_class = producer_class
        self.timeout_s = timeout_s
        self._secrets: Secrets | None = None
        self._connection: Any = None
        self._producer: Any = None
        self._pid = os.getpid()
        self._inherited: list[Any] = []
        self._step = Step.WRITING
        #: RabbitMQ reads nothing from this connection for now: its memory or its disk is nearly full.
        self.blocked = False
        self._was_blocked = False

    def says(self, error: BaseException) -> str:
        """Return what an error says, without the broker's passwords: a server may repeat what it was sent."""
        if self._secrets is None:
            conf = self._app.conf
            options = {"transport": conf.broker_transport_options or {}, "tls": conf.broker_use_ssl}
            self._secrets = Secrets(StoreUrl("broker"), options, *_passwords(self._app))
        return self._secrets.masked(str(error))

    def connect(self) -> None:
        """Make sure that there is a live connection; raises one of its own errors after at most ``timeout_s``."""
        self._notice_fork()
        if self._connection is not None:
            self._notice_closed()
            if self.blocked:
                raise ConnectionRefusedError("RabbitMQ has blocked whoever publishes: see its alarms")
            if not self._was_blocked:
                return
            # A confirm that nobody waits for any more would be taken for that of the next message.
            self.drop()
        hosts = len(self._app.connection_for_write().alt) or 1
        connection = self._app.connection_for_write(
            connect_timeout=self.timeout_s / hosts,
            # Nobody would send AMQP heartbeats between two runs, and the broker would close the connection for it.
            heartbeat=0,
            transport_options=self._transport_options(),
        )
        try:
            # Each host once, with no wait in between: this thread has a schedule to keep.
            connection.ensure_connection(max_retries=hosts - 1, interval_start=0, reraise_as_library_errors=False)
            # The Redis transports connect at the first use of a channel.
            connection.default_channel  # noqa: B018
        except BaseException:
            _collect(connection)
            raise
        self._heed_alarms(connection)
        self._connection = connection
        self._producer = self._producer_class(connection, auto_declare=False)
        # py-amqp would wait for ever for a dead peer. Transports that know no timeouts ignore them.
        bounds = {"timeout": self.timeout_s, "confirm_timeout": self.timeout_s}
        publish = self._producer.publish

        def noted(*args: Any, **kwargs: Any) -> Any:
            self._step = Step.WRITING
            result = publish(*args, **{**bounds, **kwargs})
            self._step = Step.LEFT
            return result

        self._producer.publish = noted

    def probe(self) -> None:
        """Make sure that there is a live connection to a broker that takes messages; raises one of its own errors."""
        self.connect()
        channel = self._connection.default_channel
        if self._connection.transport.driver_type != "redis" or not hasattr(channel, "conn_or_acquire"):
            return
        try:
            with channel.conn_or_acquire() as client:
                client.lpushx(_NOWHERE, "")
        except Exception as exc:
            if self.outcome_of(exc) in (Outcome.REFUSED, Outcome.UNKNOWN):
                # Behind the same name there may be another server by now, which takes them.
                self.drop()
                raise
            # Not everybody may write to such a list, which says nothing of the others.
            logger.debug("the broker is not asked whether it takes messages: %s", self.says(exc))

    def _heed_alarms(self, connection: Any) -> None:
        """Learn when RabbitMQ blocks a connection: what is written then is read, and done, when that is over."""
        self.blocked = self._was_blocked = False
        native = connection.connection
        if not hasattr(native, "on_blocked"):
            return

        def on_blocked(reason: str) -> None:
            self.blocked = self._was_blocked = True
            logger.warning("RabbitMQ has an alarm, and reads nothing: no more is sent until it is over (%s)", reason)

        def on_unblocked() -> None:
            self.blocked = False

        native.on_blocked, native.on_unblocked = on_blocked, on_unblocked

    def _notice_fork(self) -> None:
        if self._pid != os.getpid():
            # The connection is the parent's, and ends for both if it is so much as collected here.
            self._inherited.append(self._connection)
            self._pid, self._connection, self._producer = os.getpid(), None, None
            self.blocked = False

    @property
    def current(self) -> Any:
        """The connection that there is, or None; asks nobody whether it still lives."""
        return self._connection

    @property
    def connection(self) -> Any:
        """The live connection."""
        self.connect()
        return self._connection

    @property
    def producer(self) -> Any:
        """A producer on the live connection."""
        self.connect()
        return self._producer

    def answers(self) -> bool:
        """Whether the broker answers on the connection that there is; if not, that is dropped. One bounded attempt."""
        self._notice_fork()
        if self.blocked:
            return False
        try:
            if self._connection is not None:
                # Opening a channel asks the server, on each transport.
                self._connection.channel().close()
        except Exception as exc:  # noqa: BLE001  (whatever it is, there was no answer)
            logger.debug("the broker does not answer: %s", self.says(exc))
            self.drop()
        return self._connection is not None

    def _transport_options(self) -> dict[str, Any]:
        scheme = self._app.connection_for_write().transport_cls
        if not isinstance(scheme, str):
            return {}
        if "redis" in scheme or "sentinel" in scheme:
            return {
                "socket_timeout": self.timeout_s,
                "socket_connect_timeout": self.timeout_s,
                # A push whose answer was lost must not be pushed again unseen.
                "retry_on_timeout": False,
            }
        if "amqp" in scheme:
            return {"read_timeout": self.timeout_s, "write_timeout": self.timeout_s, "confirm_publish": True}
        return {}

    def _notice_closed(self) -> None:
        """Raise now, with nothing written, if an AMQP broker has closed the connection since its last use."""
        if self._connection.transport.driver_type != "amqp":
            return
        try:
            with suppress(TimeoutError):
                self._connection.drain_events(timeout=0)
        except Exception:
            self.lost()
            raise

    def lost(self) -> None:
        """The connection has ended."""
        self.blocked = False
        self.drop()

    def drop(self) -> None:
        """Forget the connection without a farewell: after an error nobody may be there to answer one.

        One that is blocked stays: it will tell when that is over, and a new one would not, before it had been written
        to. What was written to it, and to each that was dropped, is read in the end, and is one message more.
        """
        self._notice_fork()
        if self.blocked:
            return
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            _collect(connection)

    def close(self) -> None:
        """Close the connection in good order, in bounded time."""
        self._notice_fork()
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            # AMQP's farewell waits for an answer, which a dead broker never gives.
            farewell = threading.Thread(target=_release, args=(connection,), name="distsched-farewell", daemon=True)
            farewell.start()
            farewell.join(_FAREWELL_S)

    def begin(self) -> None:
        """An ``apply_async`` is about to be called, whose error `outcome_of_attempt` is to be asked about."""
        self._step = Step.BEFORE

    def outcome_of_attempt(self, error: BaseException) -> Outcome:
        """Say what an error out of ``apply_async``, called after `begin`, means for the message."""
        step, errors = self._step, list(chain(error))
        if not any_of(errors, _EXITS):
            if step is Step.LEFT:
                return Outcome.FAILED
            if step is Step.BEFORE and self.answers():
                passing = any(kind.__name__ in _PASSING for exc in errors for kind in type(exc).__mro__)
                # An eager task has run, whatever it raised.
                return Outcome.POSTPONED if passing and not self._app.conf.task_always_eager else Outcome.FAILED
        return self.outcome_of(error)

    def outcome_of(self, error: BaseException) -> Outcome:
        """Say what an error out of the broker's client means for the message."""
        errors = list(chain(error))
        # A signal's exit that was overtaken by another error on its way up.
        if any_of(errors, _EXITS):
            return Outcome.UNKNOWN
        # Only connecting fails with these, so nothing was written.
        if any_of(errors, (ConnectionRefusedError, socket.gaierror)) or takes_nothing(error):
            return Outcome.REFUSED
        connection = self._connection
        if any(type(exc).__name__ == "MessageNacked" for exc in errors):
            # py-amqp's own, and with it in no list of errors: a queue that is full and refuses, say.
            return Outcome.REJECTED
        lost = (OperationalError, OSError, *(connection.connection_errors if connection else ()))
        # The broker's own "no" to one message: a queue of another kind, a missing exchange, no memory.
        if (
            connection
            and any_of(errors, tuple(connection.channel_errors))
            and not any_of(errors, connection.connection_errors)
        ):
            return Outcome.REJECTED
        return Outcome.UNKNOWN if any_of(errors, lost) else Outcome.FAILED


def _passwords(app: Celery) -> Iterator[str | None]:
    broker = app.conf.broker_write_url
    urls = broker if isinstance(broker, str) else ";".join(broker or ())
    for url in urls.split(";"):
        with suppress(ValueError):
            yield unquote(urlsplit(url).password or "")
    yield app.conf.broker_password


def _collect(connection: Any) -> None:
    poller = getattr(getattr(connection.transport, "cycle", None), "poller", None)
    try:
        connection.collect(socket_timeout=0.1)
        if poller is not None:
            # kombu leaves it to the garbage collector, which comes late where a broker is away for long.
            poller.close()
    except Exception as exc:  # noqa: BLE001  (a dead connection fails in any way it likes)
        logger.debug("closing a broker connection: %r", exc)


def _release(connection: Any) -> None:
    try:
        connection.release()
    except Exception as exc:  # noqa: BLE001  (a dead connection fails in any way it likes)
        logger.debug("closing a broker connection: %r", exc)
