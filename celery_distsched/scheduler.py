"""Celery's side: the class that ``beat_scheduler`` names."""

from __future__ import annotations

import copy
import difflib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from types import MappingProxyType
from typing import Any

import celery.app.task
import celery.beat
from celery import Celery, signals
from celery.beat import ScheduleEntry, Scheduler, SchedulingError
from celery.beat import logger as celery_logger

from celery_distsched import collector
from celery_distsched.broker import Broker
from celery_distsched.clock import as_datetime
from celery_distsched.drivers import open_driver
from celery_distsched.entries import PlannedEntry, Planner, in_turn, make_entry
from celery_distsched.errors import ConfigError
from celery_distsched.hooks import own
from celery_distsched.message import message_entry, without_unknown
from celery_distsched.node import Node
from celery_distsched.outcome import Outcome
from celery_distsched.schedule import NoticedSchedule
from celery_distsched.settings import Settings

logger = logging.getLogger(__name__)

# Celery's beat logs what ends it with a traceback, and raises it; click then says it in one line. For a mistake in the
# settings that line is all there is to say.
celery_logger.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], ConfigError)))

_NONE: Mapping[str, Any] = MappingProxyType({})
#: Seconds for the store's farewell; with the broker's, it takes one at most: SIGKILL may follow SIGTERM soon.
_FAREWELL_S = 0.7
#: Entries that are looked at in each tick for whether they have been given another schedule in place.
_IN_TURN = 100


class DistributedScheduler(Scheduler):  # type: ignore[misc]
    """A scheduler that shares ``beat_schedule`` out over all live beats; each run is sent by one of them."""

    def __init__(self, app: Celery, *args: Any, lazy: bool = False, **kwargs: Any) -> None:
        self.settings = Settings.of(app)
        self.driver = self._new_driver()
        self._node: Node | None = None
        self._closed = False
        self._outcome: Outcome | None = None
        self._sending = False
        #: Name → our own keys of an entry. Not in the entry, all of which Celery hands to the constructor of the next.
        self._our_keys: dict[str, Mapping[str, Any]] = {}
        #: Held from when our keys of entries are noted until these are in the schedule.
        self._putting_in = threading.RLock()
        self._planned: dict[str, PlannedEntry] = {}
        self._turns: Iterator[PlannedEntry] = iter(())
        #: Those that could not be planned, and why: reported once.
        self._unplanned: dict[str, str] = {}
        super().__init__(app, *args, lazy=lazy, **kwargs)
        self.broker = Broker(app, self.Producer, self.settings.node_ttl / 2)
        if not lazy:
            signals.beat_init.connect(self._on_beat_init, weak=True)

    def _new_driver(self) -> Any:
        settings = self.settings
        return open_driver(
            settings.url,
            namespace=settings.namespace,
            ttl_s=settings.node_ttl,
            # Several attempts fit into the time for which a view is trusted.
            timeout_s=min(settings.node_ttl / 5, 1.0),
            options=settings.driver_options,
        )

    @property
    def info(self) -> str:
        """Lines for the banner: what the settings allow; what is in force is logged at the first join."""
        settings = self.settings
        reason = f" ({settings.url_reason})" if settings.url_reason else ""
        return "\n".join(
            (
                f"    . store -> {settings.url.masked}{reason}",
                f"    . namespace -> {settings.namespace}",
                f"    . delivery -> {settings.delivery}, catch-up {settings.catch_up}",
                f"    . node ttl -> {settings.node_ttl:g} s",
            )
        )

    # The schedule

    def get_schedule(self) -> Any:
        return self.data

    def set_schedule(self, schedule: Mapping[str, ScheduleEntry]) -> None:
        self.data = schedule if isinstance(schedule, NoticedSchedule) else NoticedSchedule(schedule)

    schedule = property(get_schedule, set_schedule)

    def setup_schedule(self) -> None:
        """Take the entries one by one: a bad one is reported and costs no other."""
        self.schedule = self.data
        with collector.paused():
            self.update_from_dict(self.app.conf.beat_schedule)
        self.install_default_entries(self.schedule)
        unknown = sorted(self.settings.entries.keys() - {*self.schedule, *self.app.conf.beat_schedule})
        if unknown:
            near = difflib.get_close_matches(unknown[0], [str(name) for name in self.schedule], n=1)
            raise ConfigError(
                f"distsched_entries: there is no entry {unknown[0]!r} in beat_schedule"
                + (f"; did you mean {near[0]!r}?" if near else "")
            )

    def _maybe_entry(self, name: str, entry: Any) -> Any:
        if isinstance(entry, self.Entry):
            if entry.name != name:
                # Celery's own beat makes a new one of it, with this name.
                entry = copy.copy(entry)
                entry.name = name
            entry.app = self.app
            return entry
        made, ours = make_entry(name, entry, self.app, self.settings, self.Entry)
        if ours:
            self._our_keys[name] = ours
        else:
            self._our_keys.pop(name, None)
        return made

    def update_from_dict(self, dict_: Mapping[str, Any]) -> None:
        entries = {}
        with self._putting_in:
            for name, given in dict_.items():
                try:
                    entries[name] = self._maybe_entry(name, given)
                except (ConfigError, TypeError, ValueError) as exc:
                    self._report_bad(name, exc)
            self.schedule.update(entries)

    def merge_inplace(self, b: Mapping[str, Any]) -> None:
        for name in set(self.schedule) - set(b):
            del self.schedule[name]
        self.update_from_dict(b)

    def _plan(self, along: Callable[[Iterable[str]], Iterable[str]] = iter) -> dict[str, PlannedEntry]:
        """Work out how each entry is to be run; `along` is told how far this has come."""
        decides = not own(type(self), "is_due", celery.beat)
        planner, before, planned = Planner(self.app, self.settings, decides=decides), self._planned, {}
        unplanned = {}
        # While another thread puts entries in, some of them may not be there yet; its end makes us come again.
        if self._putting_in.acquire(blocking=False):
            try:
                for name in self._our_keys.keys() - self.schedule.keys():
                    del self._our_keys[name]
            finally:
                self._putting_in.release()
        schedule = dict(self.schedule)
        for name in along(schedule):
            try:
                planned[name] = planner.plan(name, schedule[name], self._our_keys.get(name, _NONE), before.get(name))
            except Exception as exc:  # noqa: BLE001  (a schedule class of the user's may raise anything)
                unplanned[name] = repr(exc)
                if self._unplanned.get(name) != unplanned[name]:
                    self._report_bad(name, exc)
        self._planned, self._unplanned, self._turns = planned, unplanned, in_turn(planned)
        return planned

    @staticmethod
    def _report_bad(name: str, exc: Exception) -> None:
        what = str(exc) if isinstance(exc, ConfigError) else f"{type(exc).__name__}: {exc}"
        logger.error("entry %r will not run: %s. The other entries are not affected", name, what)

    # The loop

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Do all that is due; returns the seconds until the next call."""
        if self._closed:
            # Whoever closed it from within a send may not have got through to the service with its own SystemExit.
            raise SystemExit(0)
        node = self._node
        if node is None or node.pid != os.getpid():
            node = self._node = self._become_node()
        if node.heartbeat.refusal is not None:
            raise node.heartbeat.refusal
        if any(planned.outdated for planned in islice(self._turns, _IN_TURN)):
            self.schedule.changed()
        if self.schedule.version != node.planned_version:
            with collector.paused():
                version = self.schedule.version
                node.take_on(self._plan(node.along), version)
        return node.tick()

    def _become_node(self) -> Node:
        """Join the cluster. A forked process becomes another node, with a client and an identity of its own."""
        if self._node is not None:
            self.driver, self.broker = self._new_driver(), Broker(self.app, self.Producer, self.settings.node_ttl / 2)
        node = Node(self)
        with collector.paused():
            version = self.schedule.version
            planned = self._plan()
            node.take_on(planned, version)
        logger.info("%d entries; delivery %s", len(planned), self.settings.delivery)
        node.heartbeat.start()
        return node

    def apply_entry(self, entry: ScheduleEntry, producer: Any = None) -> None:
        """Send one entry now, the ordinary way; others may patch this method on Celery's class."""
        super().apply_entry(entry, producer=producer)

    def apply_async(self, entry: ScheduleEntry, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:
        self._outcome = None
        self.broker.begin()
        try:
            result = super().apply_async(entry, producer=producer, advance=False, **kwargs)
        except SchedulingError as exc:
            self._outcome = self.broker.outcome_of_attempt(exc)
            if self._outcome is Outcome.FAILED:
                # Celery's `apply_entry` logs it, with the traceback.
                raise
            logger.error("entry %r: %s: %s", entry.name, self._outcome.meaning, self.broker.says(exc))  # noqa: TRY400
            return None
        self._outcome = Outcome.ACCEPTED
        return result

    def _send(self, planned: PlannedEntry, instant: int, attempt: int) -> Outcome:
        try:
            producer = self.broker.producer
        except Exception as exc:  # noqa: BLE001  (each transport has errors of its own)
            logger.error("entry %r: %s: %s", planned.name, Outcome.REFUSED.meaning, self.broker.says(exc))  # noqa: TRY400
            return Outcome.REFUSED
        entry = message_entry(planned, instant, attempt, namespace=self.settings.namespace, node=self.node_id)
        task = self.app.tasks.get(planned.entry.task)
        if task is not None and not own(task, "apply_async", celery.app.task):
            entry.options = without_unknown(entry.options, planned.entry.options or {}, task.apply_async)
        self._outcome, self._sending = None, True
        try:
            self.apply_entry(entry, producer=producer)
        except Exception:
            logger.exception("entry %r: sending it failed; this run is given up", planned.name)
            return Outcome.FAILED
        finally:
            self._sending = False
        # Somebody's patch may have chosen not to send at all: that is their answer, and it stands.
        outcome = self._outcome or Outcome.ACCEPTED
        if outcome is Outcome.FAILED and self._closed:
            # It was closed in the middle: what went wrong says nothing of the entry.
            outcome = Outcome.UNKNOWN
        if outcome in (Outcome.UNKNOWN, Outcome.REFUSED):
            self.broker.drop()
        planned.entry.last_run_at = as_datetime(instant)
        planned.entry.total_run_count += 1
        return outcome

    def _probe(self) -> bool:
        try:
            self.broker.probe()
        except Exception as exc:  # noqa: BLE001
            logger.debug("the broker is still out of reach: %s", self.broker.says(exc))
            return False
        logger.warning("the broker takes messages again")
        return True

    @property
    def node_id(self) -> str:
        """Name of this node: host, process id and a random part; empty before the first tick."""
        return self._node.pool.node_id if self._node else ""

    # What Celery's own scheduler offers to others

    @property
    def connection(self) -> Any:
        return self.broker.connection

    @property
    def producer(self) -> Any:
        return self.broker.producer

    def close(self) -> None:
        """Hand over, confirm, hand back, leave; may be called twice, and on the stack of a tick."""
        node = self._node if self._node is not None and self._node.pid == os.getpid() else None
        try:
            if node is not None and not self._closed:
                node.hand_over()
        finally:
            # A second signal ends the handing over, and its handler has been through here then.
            if not self._closed:
                self._closed = True
                self._leave(node)
            super().close()

    def _leave(self, node: Node | None) -> None:
        if node is not None:
            node.dispatch.closed = True
            if node.heartbeat.stop(node.dispatch.hand_back, _FAREWELL_S):
                logger.info("%s has left; its runs: %s", node.pool.node_id, node.dispatch.records.tally.summary())
            else:
                logger.warning(
                    "could not say goodbye to the store in %g s: the share of %s moves on in %g s",
                    _FAREWELL_S,
                    node.pool.node_id,
                    self.settings.node_ttl,
                )
        # On the stack of a send, the connection is in the middle of something, and ends with the process.
        if not self._sending:
            self.broker.close()

    def _on_beat_init(self, sender: Any, **kwargs: Any) -> None:
        if sender.__dict__.get("scheduler") is not self:
            return
        # Celery's beat leaves a ping unanswered when its loop stands still, but only after a minute: ours goes round
        # four times a second, and waits for nothing longer than a TTL. Celery before 5.7 answers no ping.
        if self.app.conf.get("beat_remote_control_max_tick_age", 0) is None:
            self.app.conf.beat_remote_control_max_tick_age = 2 * self.settings.node_ttl
