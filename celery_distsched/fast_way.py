"""Which way messages go: claimed and pushed in one call, sent in slices, or by `apply_async` one after the other.

All three leave the same messages. The choice is made for the whole before each slice, since somebody may hook into the
sending at any time, and then for each entry; which way an entry takes, and why, is in the debug log, and how many take
which in the info log.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from celery.beat import logger as beat_logger

from celery_distsched.broker import BrokerAway
from celery_distsched.clock import as_datetime
from celery_distsched.drivers.base import Push
from celery_distsched.entries import PlannedEntry
from celery_distsched.hooks import hooks
from celery_distsched.outcome import Outcome
from celery_distsched.publisher import Publisher
from celery_distsched.same_redis import SameRedis, why_apart
from celery_distsched.slices import AmqpSlices, RedisSlices
from celery_distsched.survey import Survey

logger = logging.getLogger(__name__)

#: Seconds until a broker that was no help is looked at again.
_LOOK_AGAIN_S = 1.0
#: Seconds until a broker that was another Redis than the store is asked again whether it is.
_ASK_AGAIN_S = 10.0
#: Bytes in one call to a server: it does nothing else meanwhile.
CALL_BYTES = 1_000_000


class FastWay:
    """Decides, before each slice and for each entry, which way messages go."""

    def __init__(self, scheduler: Any, node_id: str) -> None:
        self._scheduler = scheduler
        self._node_id = node_id
        self._connection: Any = None
        self._lane: SameRedis | RedisSlices | AmqpSlices | None = None
        self._publisher: Publisher | None = None
        self._why_no_lane: str | None = "not looked at yet"
        self._look_again_at = float("-inf")
        self._ask_again_at = float("-inf")
        self._looked = False
        self._may_be_store = hasattr(scheduler.driver, "claim_and_push")
        #: Why a broker that may be the store has no connection: what is claimed now could not go with its claim.
        self.out_of_reach: str | None = None
        self._entries: Mapping[str, PlannedEntry] = {}
        #: What was said last of all of them.
        self._said: tuple[Any, str | None] | None = None
        self._survey: Survey | None = None
        self._noted = (0, as_datetime(0))
        #: See `_routing`.
        self._routed: tuple[Any, ...] = ()

    def set_entries(self, entries: Mapping[str, PlannedEntry]) -> None:
        """Say anew of these which way they go, and look only at what has changed."""
        self._entries = entries
        if self._publisher is not None:
            self._publisher.keep(entries)
        if self._survey is None:
            self._said = None
        else:
            self._survey.take_on(entries)

    # The whole

    def look_ahead(self, now: float) -> None:
        """Find out which way messages go, before anything is due; connect to the broker for it, once."""
        self._look(now, connect=not self._looked)

    def same_redis(self, now: float) -> SameRedis | None:
        """Return what claims and pushes in one call, if that can be done now."""
        lane = self._look(now, connect=self._may_be_store)
        return lane if isinstance(lane, SameRedis) else None

    @property
    def slicing(self) -> bool:
        """Whether what is claimed is sent in slices, as of the last look."""
        return self._said is not None and isinstance(self._said[0], (RedisSlices, AmqpSlices))

    def slices(self, now: float) -> RedisSlices | AmqpSlices | None:
        """Return what sends in slices what has been claimed, if that can be done now."""
        lane = self._look(now, connect=self._may_be_store)
        return None if isinstance(lane, SameRedis) else lane

    def _look(self, now: float, *, connect: bool) -> SameRedis | RedisSlices | AmqpSlices | None:
        hook = self._hook()
        why_not = hook or self._look_at_broker(now, connect)
        unknown = self._may_be_store and hook is None and self._scheduler.broker.current is None
        self.out_of_reach = why_not if unknown else None
        lane = self._lane if why_not is None else None
        if (lane, why_not) != self._said:
            self._said = (lane, why_not)
            self._survey = self._new_survey(lane)
            if lane is None and why_not != _NOT_CONNECTED and self.out_of_reach is None:
                count = len(self._entries)
                logger.info("%s, for all of %d entries, since %s", _ONE_BY_ONE, count, why_not)
        if self._survey is not None:
            self._survey.go_on(now)
        return lane

    def _hook(self) -> str | None:
        if not self._scheduler.settings.fast_publish:
            return "distsched_fast_publish is off"
        try:
            return hooks(self._scheduler, sys.modules["celery_distsched.scheduler"])
        except Exception as exc:  # noqa: BLE001  (a backend or a router that cannot be made: the ordinary way reports it)
            return f"the app is not in order: {exc!r}"

    def _look_at_broker(self, now: float, connect: bool) -> str | None:
        broker, routing = self._scheduler.broker, self._routing()
        if routing != self._routed:
            self._routed = routing
            self.look_again()
        if self._publisher is not None:
            self._publisher.look_again()
        if self._lane is not None and broker.current is self._connection and not self._is_one_by_now(now):
            return self._lane.messages.hooks()
        # A connection is made by whoever sends or probes: two bounded attempts in one tick would take twice the time.
        # But once, to begin with, while nothing is due; and to a broker that may be the store before anything is
        # claimed, so that no run goes another way than with its claim.
        if broker.current is None and not connect:
            self._lane = None
            return _NOT_CONNECTED
        if self._lane is None and broker.current is self._connection and now < self._look_again_at:
            return self._why_no_lane
        self._lane, self._looked = None, True
        try:
            self._connection = broker.connection
            self._why_no_lane = self._new_lane(self._connection)
        except Exception as exc:  # noqa: BLE001  (whatever is wrong with the broker, the ordinary way reports it)
            self._lane, self._connection = None, None
            what = "reached" if broker.current is None else "asked"
            self._why_no_lane = f"the broker cannot be {what}: {broker.says(exc)}"
            if broker.outcome_of(exc) in (Outcome.REFUSED, Outcome.UNKNOWN):
                # It went away just then, which says nothing of whether it is the store.
                broker.drop()
        self._look_again_at, self._ask_again_at = now + _LOOK_AGAIN_S, now + _ASK_AGAIN_S
        return self._why_no_lane

    def _is_one_by_now(self, now: float) -> bool:
        """Whether a broker that was another Redis is the store's: in a failover either may be followed later."""
        if not isinstance(self._lane, RedisSlices) or not self._may_be_store or now < self._ask_again_at:
            return False
        self._ask_again_at = now + _ASK_AGAIN_S
        try:
            return why_apart(self._scheduler.driver, *_server(self._connection.default_channel)) is None
        except Exception as exc:  # noqa: BLE001  (whatever is wrong with either, whoever sends or claims reports it)
            logger.debug("the broker, or the store, does not say which server it is: %r", exc)
            return False

    def _routing(self) -> tuple[Any, ...]:
        """Return what is another once the app's settings for where messages go are changed."""
        app = self._scheduler.app
        return app.amqp.router, *(app.amqp.router.routes or ()), app.conf.task_default_queue

    def _new_lane(self, connection: Any) -> str | None:
        """Make what the broker's connection allows; returns why there is nothing to make."""
        broker, channel = self._scheduler.broker, connection.default_channel
        lane: SameRedis | RedisSlices | AmqpSlices
        if connection.transport.driver_type == "redis" and hasattr(channel, "conn_or_acquire"):
            # Only now, as below, since it cannot be imported without the transport's library.
            from celery_distsched.redis_messages import RedisMessages

            apart = why_apart(self._scheduler.driver, *_server(channel))
            # A server that was started anew between the two questions looks like two.
            run_id, database = _server(channel)
            if apart is not None:
                apart = why_apart(self._scheduler.driver, run_id, database)
            if apart is None:
                messages = RedisMessages(channel, prefix=channel.global_keyprefix or "")
                lane = SameRedis(self._scheduler.driver, run_id, messages)
            else:
                lane = RedisSlices(broker, RedisMessages(channel), why=apart)
        elif connection.transport.driver_type == "amqp" and hasattr(channel, "confirm_select"):
            from celery_distsched.amqp_messages import AmqpMessages, hooks_of

            # Before a channel is opened, or each look would leave one more.
            if hook := hooks_of(channel):
                return hook
            own = connection.channel()
            lane = AmqpSlices(broker, own, AmqpMessages(channel, own.channel_id), broker.timeout_s)
        else:
            return f"the broker is neither Redis nor RabbitMQ, but {connection.transport.driver_type}"
        if hook := lane.messages.hooks():
            return hook
        self._lane, self._publisher = lane, Publisher(self._scheduler, self._node_id, lane.messages)
        return None

    def look_again(self) -> None:
        """What is behind one of the connections has changed."""
        self._lane, self._look_again_at = None, float("-inf")

    def _new_survey(self, lane: SameRedis | RedisSlices | AmqpSlices | None) -> Survey | None:
        publisher, broker = self._publisher, self._scheduler.broker
        if lane is None or publisher is None:
            return None
        survey = Survey(lane.what, lane.why, publisher.why_not, lambda: broker.current is not None)
        survey.take_on(self._entries)
        return survey

    @property
    def surveying(self) -> bool:
        """Whether there are entries that nobody has looked at yet, which takes as long as ten messages."""
        return self._survey is not None and self._survey.under_way

    # Each entry

    def takes(self, name: str) -> bool:
        """Whether its messages are made here, or it waits until that is known: it goes no other way till then."""
        planned = self._entries.get(name)
        try:
            return planned is not None and self._publisher is not None and self._publisher.why_not(planned) is None
        except BrokerAway:
            return True

    def messages(self, due: Mapping[str, Sequence[int]]) -> dict[str, list[Any]]:
        """Return the messages of entries by their instants, without those entries that go the ordinary way.

        None at all where the broker has gone away; the next look finds that out.
        """
        if self._publisher is None:
            return {}
        known = [(self._entries[name], instants) for name, instants in due.items() if name in self._entries]
        try:
            made = self._publisher.messages(known)
        except BrokerAway as exc:
            logger.debug("no messages are made: %s", exc)
            return {}
        return {planned.name: some for (planned, _), some in zip(known, made, strict=True) if some is not None}

    def send(
        self, entries: Mapping[str, tuple[Sequence[int], Sequence[Any]]]
    ) -> Callable[[], dict[str, list[Outcome]]]:
        """Send a slice: of each entry these instants, by these messages.

        Returns:
            What waits for the broker's answers, to be called once, and returns what became of each message.
        """
        lane = self._lane
        if lane is None or isinstance(lane, SameRedis):
            return lambda: {name: [Outcome.REFUSED] * len(messages) for name, (_, messages) in entries.items()}
        waiting = lane.send([message for _, messages in entries.values() for message in messages])

        def answers() -> dict[str, list[Outcome]]:
            became = iter(waiting())
            outcomes = {name: list(islice(became, len(messages))) for name, (_, messages) in entries.items()}
            for name, (instants, _) in entries.items():
                self.note(name, instants)
            return outcomes

        return answers

    def rest(self, name: str, error: str) -> None:
        """The broker would not take an entry's message: the ordinary way reports it, and tries again."""
        if self._publisher is not None and name in self._entries:
            self._publisher.rest(self._entries[name], error)

    def note(self, name: str, instants: Sequence[int]) -> None:
        """What Celery's `apply_entry` would have noted and logged of a run."""
        entry = self._entries[name].entry
        if beat_logger.isEnabledFor(logging.INFO):
            for instant in instants:
                beat_logger.info("Scheduler: Sending due task %s (%s)", name, entry.task)
                if beat_logger.isEnabledFor(logging.DEBUG) and self._publisher is not None:
                    beat_logger.debug("%s sent. id->%s", entry.task, self._publisher.task_id(name, instant))
        at = instants[-1]
        if self._noted[0] != at:
            # The same for all that were due together.
            self._noted = (at, as_datetime(at))
        entry.last_run_at = self._noted[1]
        entry.total_run_count += len(instants)


def in_calls(messages: Mapping[str, Sequence[Any]], most: int) -> Iterator[list[str]]:
    """Divide entries into parts of at most so many, with no more messages than one call may carry."""
    names, room = list[str](), CALL_BYTES
    for name, some in messages.items():
        # An entry's messages differ in nothing but times and ids.
        size = len(some) * len(some[0].text if isinstance(some[0], Push) else some[0])
        if names and (size > room or len(names) == most):
            yield names
            names, room = [], CALL_BYTES
        names.append(name)
        room -= size
    if names:
        yield names


def _server(channel: Any) -> tuple[str, int]:
    """Return which Redis the broker is, by its run_id, and which of its databases."""
    return channel.client.info("server")["run_id"], channel.pool.connection_kwargs["db"]


_NOT_CONNECTED = "there is no connection to the broker"
_ONE_BY_ONE = "claimed, sent and confirmed one after the other"
