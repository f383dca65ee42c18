"""What is due of each entry of this node's share, and when to look at it again.

Here an entry's rule, its record, its version and its catch-up policy come together in the one swap that claims what is
to be sent. Whether that swap is won is the ledger's affair.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from copy import copy
from datetime import datetime
from typing import Any

from celery.beat import ScheduleEntry

from celery_distsched.clock import Clock, iso, microseconds
from celery_distsched.entries import PlannedEntry
from celery_distsched.holding import Move, Phase
from celery_distsched.instants import Due, Rule, ask, due, jitter
from celery_distsched.many_lines import ManyLines
from celery_distsched.node_pool import NodePool
from celery_distsched.other_schedules import OtherSchedules
from celery_distsched.progress import Progress
from celery_distsched.record import MAX_OPEN, Record, Version, may_claim, version_of
from celery_distsched.records import Records
from celery_distsched.schedule_epoch import ScheduleEpoch
from celery_distsched.settings import Settings
from celery_distsched.timetable import Timetable

logger = logging.getLogger(__name__)

#: Microseconds after which a run is late enough to be told: more than an ordinary change of nodes takes.
_LATE_US = 2_000_000
#: Seconds until an entry is looked at again that has more open than a record holds.
_FULL_S = 0.2
#: Seconds until an entry is looked at again that is to be planned anew, if it has not been by then.
_PLANNED_S = 1.0
#: Seconds until an entry is looked at again that has no next instant in sight.
_LOOK_AGAIN_S = 3600.0


class Agenda:
    """The entries of this node's share, and what is to be done of them when."""

    def __init__(
        self,
        records: Records,
        pool: NodePool,
        settings: Settings,
        progress: Progress,
        clock: Clock,
        is_due: Callable[[ScheduleEntry], Any] = ScheduleEntry.is_due,
        outdated: Callable[[], None] = lambda: None,
    ) -> None:
        """Keep what is needed; `is_due` is asked of entries without a rule, `outdated` told of plans to make anew."""
        self.entries: Mapping[str, PlannedEntry] = {}
        #: Names of the entries that are mine.
        self.share: set[str] = set()
        self.timetable = Timetable()
        #: Of single entries; summed up at the end of a tick.
        self.lines = ManyLines(logger)
        self._records = records
        self._pool = pool
        self._settings = settings
        self._progress = progress
        self._clock = clock
        self._is_due = is_due
        self._outdated = outdated
        self._hand_over_us = microseconds(settings.hand_over_s)
        self._schedule_epoch = ScheduleEpoch(0, "")
        self._away_before_us = -self._hand_over_us
        self._epochs: Collection[int] = ()
        self._others = OtherSchedules(clock)
        #: Entries of my share of which a live node has a newer version.
        self._yielded: set[str] = set()
        self._reported: set[str] = set()
        #: Entries that came in while this node ran, until the cluster's register says whether they were away before.
        self._unregistered: set[str] = set()
        #: What was found to be due at the moment of the last claims, by what decides it.
        self._found: dict[tuple[int, int, int], Due] = {}

    def now_us(self) -> int:
        """Return cluster time."""
        now = self._pool.now_us()
        if now is None:
            raise AssertionError("there is no cluster time before the first join")
        return now

    def move(self, gained: set[str], lost: Set[str]) -> None:
        """Take these into the share, and drop those."""
        # With many entries a copy of an empty share's gain would be the largest thing that is made and thrown away.
        self.share = self.share - lost | gained if self.share else gained
        for name in self._progress.along(lost, self._clock):
            self.timetable.drop(name)

    def follow_epochs(self, mine: ScheduleEpoch, live: Collection[int]) -> None:
        """Take in which schedules are alive: of an entry the newest version runs."""
        self._others.look(mine.epoch, live)
        if (self._schedule_epoch, self._epochs) == (mine, live):
            return
        # Of what has not been read yet nothing is said before it is.
        look_again = self._yielded if self._schedule_epoch == mine else self.share - self._records.unread
        self._schedule_epoch, self._epochs = mine, live
        self._away_before_us = mine.since_us - self._hand_over_us
        self._unregistered = {name for name in self._unregistered if not mine.carries(name)}
        self.schedule(list(look_again))

    def _version(self, planned: PlannedEntry, known: Version | None = None) -> Version:
        """Return the version of an entry that is mine: the very one that is known of it, where they are equal."""
        epoch = self._schedule_epoch.epoch
        if known is not None and known.fingerprint == planned.fingerprint and known.epoch == epoch:
            return known
        return version_of(planned.fingerprint, epoch)

    # What is due

    def claims(self, names: Iterable[str], enqueue: Callable[[str], bool]) -> dict[str, Move]:
        """Return the swaps that claim what is due now of these entries, where there is anything to write. Never raises.

        Args:
            names: The entries.
            enqueue: Whether an entry's messages are pushed in the very step that claims them.
        """
        now = self.now_us()
        self._found.clear()
        moves = {}
        for name in names:
            try:
                move = self._claimed(name, now, enqueue)
            except Exception as exc:  # noqa: BLE001  (one bad schedule must not stop the others)
                self._give_up_for_now(name, exc)
            else:
                if move is not None:
                    moves[name] = move
        return moves

    def _claimed(self, name: str, now: int, enqueue: Callable[[str], bool]) -> Move | None:
        planned, holding = self.entries[name], self._records.free(name)
        if holding is None or (record := holding.record) is None:
            return None
        mine = self._version(planned, record.version)
        if not may_claim(record.version, mine, self._epochs):
            return None
        if (ready := self._ready(planned, record, now)) != record:
            dropped = {at: mark for at, mark in record.open.items() if at not in ready.open}
            return Move(record.text(), ready, fenced=True, dropped=dropped)
        if not planned.enabled:
            return None
        if planned.outdated:
            # By its schedule of now it may not be due at all.
            self._outdated()
            self.timetable.set(name, now + microseconds(_PLANNED_S))
            return None
        room = MAX_OPEN - len(record.open) + len(holding.instants(Phase.DONE))
        if room <= 0:
            self.timetable.set(name, now + microseconds(_FULL_S))
            return None
        if planned.rule is None:
            entry = planned.entry
            is_due, again_s = ask(entry.schedule, record.last, now, lambda last: self._is_due(_as_of(entry, last)))
            self.timetable.set(name, now + microseconds(max(again_s, 0.01)))
            if not is_due or now <= record.last:
                return None
            return self._records.advance(name, self.may_take, claim=(now,), version=mine, enqueue=enqueue(name))
        found = self._due(planned, planned.rule, record.last, now)
        claim = found.send[:room]
        if claim and now - claim[0] > _LATE_US + planned.jitter_s * 1e6:
            self._say_late(name, claim, now)
        if claim and not record.last < claim[0] <= claim[-1] <= now:
            raise AssertionError(f"claiming {claim} after {record.last} at {now}")
        upto = found.upto if len(claim) == len(found.send) else claim[-1]
        return self._records.advance(
            name, self.may_take, claim=claim, upto=upto, skipped=found.skipped, version=mine, enqueue=enqueue(name)
        )

    def _say_late(self, name: str, claim: Sequence[int], now: int) -> None:
        self.lines.say(
            logging.INFO,
            "entries of which late runs are claimed",
            "entry %r: claiming %d run(s) late, the oldest of %s, %.3g s ago",
            name,
            len(claim),
            iso(claim[0]),
            (now - claim[0]) / 1e6,
        )

    def _due(self, planned: PlannedEntry, rule: Rule, last: int, now: int) -> Due:
        catch_up, hand_over_s = planned.catch_up, self._settings.hand_over_s
        if planned.jitter_s:
            return due(rule, last, now, catch_up, hand_over_s, self._jitter_of(planned))
        # Entries of one schedule that ran together last are due together: it is worked out once.
        key = (id(rule), id(catch_up), last)
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = due(rule, last, now, catch_up, hand_over_s)
        return found

    def _ready(self, planned: PlannedEntry, record: Record, now: int) -> Record:
        """Return the record as it has to be before this version of the entry is claimed: mostly as it is."""
        if self._is_back(planned.name, record):
            # What was left open when it went away nobody waits for any more.
            since = self._schedule_epoch.since_us
            record = record._replace(last=since, open={at: mark for at, mark in record.open.items() if at > since})
        if record.paused == planned.enabled:
            # Switched on: it starts from now, and nothing of the past is run. Switched off: noted for that day.
            last = max(record.last, now) if planned.enabled else record.last
            record = record._replace(last=last, paused=not planned.enabled)
        if record.version is not None and record.version.fingerprint != planned.fingerprint:
            record = record._replace(version=self._version(planned))
        return record

    def _is_back(self, name: str, record: Record) -> bool:
        """Whether an entry was away, removed by a deploy, and has come back with the schedule of this node."""
        # What is as young as a hand-over has not been away.
        return record.last < self._away_before_us and self._schedule_epoch.is_back(name)

    def may_take(self, name: str) -> bool:
        planned, holding = self.entries.get(name), self._records.holdings.get(name)
        if planned is None or holding is None or holding.record is None:
            return False
        record = holding.record
        mine = self._version(planned, record.version)
        back = name in self._unregistered or self._is_back(name, record)
        return may_claim(record.version, mine, self._epochs) and not back

    # When to look again

    def schedule(self, names: Iterable[str]) -> None:
        """Note when these entries fall due next, those of them that are mine."""
        now = self.now_us()
        for name in self._progress.along(names, self._clock):
            self._schedule(name, now)

    def _schedule(self, name: str, now: int) -> None:
        planned, holding = self.entries.get(name), self._records.free(name)
        if (
            planned is None
            or holding is None
            or (record := holding.record) is None
            or name not in self.share
            or name in self._unregistered
        ):
            self.timetable.drop(name)
            return
        version = record.version
        same = version is None or version.fingerprint == planned.fingerprint
        if not same and not may_claim(version, self._version(planned), self._epochs):
            self._yield(name)
            return
        self._yielded.discard(name)
        if record.last > now + self._hand_over_us:
            self._report_future(name, record.last)
        if not same or record.paused is planned.enabled or self._is_back(name, record):
            self.timetable.set(name, now)
        elif not planned.enabled:
            self.timetable.drop(name)
        elif planned.rule is None:
            self.timetable.set(name, now)
        else:
            try:
                after = planned.rule.after(record.last)
                if after is None:
                    after = now + microseconds(_LOOK_AGAIN_S)
                elif planned.jitter_s:
                    after += self._jitter_of(planned)(after)
                self.timetable.set(name, after)
            except Exception as exc:  # noqa: BLE001  (one bad schedule must not stop the others)
                self._give_up_for_now(name, exc)

    def _yield(self, name: str) -> None:
        self.timetable.drop(name)
        if name not in self._yielded:
            self._yielded.add(name)
            logger.debug("entry %r: a live node has a newer version of it, which runs", name)

    def _jitter_of(self, planned: PlannedEntry) -> Callable[[int], int]:
        rule, spread_s = planned.rule, planned.jitter_s
        if not spread_s or rule is None:
            return _no_jitter
        return lambda instant: jitter(planned.name, instant, spread_s, rule.after(instant))

    def _give_up_for_now(self, name: str, exc: Exception) -> None:
        self.timetable.set(name, self.now_us() + microseconds(_LOOK_AGAIN_S))
        if name not in self._reported:
            self._reported.add(name)
            logger.error(
                "entry %r: its next run cannot be worked out: %r; trying again in an hour", name, exc, exc_info=exc
            )

    def changed(self, removed: Set[str], added: Set[str]) -> None:
        """Entries have gone and come while this node runs."""
        self._unregistered = (self._unregistered - removed) | added
        # What comes back under one of these names is reported anew.
        self._reported -= removed

    def _report_future(self, name: str, last: int) -> None:
        if name not in self._reported:
            self._reported.add(name)
            self.lines.say(
                logging.ERROR,
                "entries with a record that is still to come: they do not run before then",
                "entry %r: its record says that it ran at %s, which is still to come: it does not run before then. If a"
                " clock was wrong, stop all beats and remove its record from the store",
                name,
                iso(last),
            )

    def first_record(self, name: str) -> Record:
        planned = self.entries[name]
        # In whole milliseconds: intervals that are first seen together run together, and are worked out together.
        last_us = self.now_us() // 1000 * 1000 if planned.last_us is None else planned.last_us
        return Record(last_us, paused=not planned.enabled, version=self._version(planned))


def _as_of(entry: ScheduleEntry, last_run_at: datetime) -> ScheduleEntry:
    shown = copy(entry)
    shown.last_run_at = last_run_at
    return shown


def _no_jitter(instant: int) -> int:
    return 0
