"""Who is alive, as this node sees it, and until when it may act on that.

Liveness is *change seen on the observer's own clock*: a heartbeat that has not changed for one TTL is dead, whatever
any wall clock says. Doubt means no: a view is trusted until *start of the last successful renewal + TTL - margin*, so a
node that is cut off, frozen or slow stops by itself before anybody calls it dead.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from celery_distsched.clock import Clock, microseconds
from celery_distsched.cluster_time import ClusterTime
from celery_distsched.drivers.base import Member
from celery_distsched.info import Info
from celery_distsched.record import node_of
from celery_distsched.ring import HashRing
from celery_distsched.schedule_epoch import ScheduleEpoch

#: Seconds for which a dead membership is remembered after it has gone from the store.
_REMEMBER_S = 600.0


class Pulse(NamedTuple):
    """A membership's heartbeat as it was last read."""

    member: Member
    #: What it says, read once and not at each poll; None: it is not of our form.
    info: Info | None
    #: When it was last seen to change, and (infinity: it is there) since when it has been gone; on `Clock.elapsed`.
    seen_at: float
    gone_since: float = float("inf")
    #: Whether it has been seen to change at all.
    beats: bool = False


@dataclass(frozen=True)
class View:
    """The pool at one moment: immutable, swapped whole, so that two threads share it without a lock."""

    #: My membership; None while I am not a member.
    me: str | None = None
    ring: HashRing = field(default_factory=HashRing)
    #: The members of my ring, each with its place on it.
    places: Mapping[str, str] = field(default_factory=dict)
    #: Live members, whatever their schedule.
    alive: Mapping[str, Info] = field(default_factory=dict)
    #: Members that have been silent for a TTL.
    dead: frozenset[str] = frozenset()
    #: Those of the dead that are no members in the store any more: their fences are void, what they hold can be taken.
    buried: frozenset[str] = frozenset()
    #: Memberships that have gone from the store, and may yet be alive: it has not been a TTL.
    absent: frozenset[str] = frozenset()
    #: Ids of the nodes of the absent that are no members under another membership either.
    missing: frozenset[str] = frozenset()
    #: On `Clock.elapsed`.
    trusted_until: float = float("-inf")
    #: When the members were last read, and since when that has gone on without a gap; on `Clock.elapsed`.
    polled_at: float = float("-inf")
    watching_since: float = float("inf")
    #: Cluster time is `Clock.elapsed` plus this, in microseconds.
    offset_us: int | None = None
    #: My schedule's place among those of the cluster; None before it is known.
    schedule: ScheduleEpoch | None = None
    #: The longest TTL that any node goes by of which I know, in seconds.
    longest_ttl_s: float = float("inf")

    @property
    def place(self) -> str | None:
        """My place on the ring."""
        return self.places.get(self.me or "")

    @cached_property
    def node_ids(self) -> frozenset[str]:
        """Ids of the live nodes, whatever their memberships."""
        return frozenset(map(node_of, self.alive))

    @cached_property
    def epochs(self) -> frozenset[int]:
        """Epochs of the schedules that live nodes carry."""
        mine = () if self.schedule is None else (self.schedule.epoch,)
        return frozenset((*mine, *(info.epoch for info in self.alive.values())))


class NodePool:
    """What one node makes of the heartbeats that it reads. Used by the heartbeat thread only, but for `view`."""

    def __init__(self, node_id: str, ttl_s: float, clock: Clock) -> None:
        self.node_id = node_id
        self.ttl_s = ttl_s
        #: What a write that was checked just before the end of trust may still take.
        self.margin_s = min(ttl_s / 10, 0.5)
        #: Seconds between two looks at the members. A crash costs one TTL, counted from the last change seen, plus the
        #: time until that change was seen.
        self.poll_s = min(ttl_s / 20, 0.25)
        self.view = View(longest_ttl_s=ttl_s)
        self.schedule: ScheduleEpoch | None = None
        self._clock = clock
        self._pulses: dict[str, Pulse] = {}
        self._time = ClusterTime(clock, ttl_s)
        self._trusted_until = float("-inf")
        self._me: str | None = None
        self._digest = ""
        # The host and ordinal of each member of the ring, and what place each gets.
        self._peers: dict[str, tuple[str, int]] = {}
        self._places: dict[str, str] = {}
        self._absent: frozenset[str] = frozenset()
        self._missing: frozenset[str] = frozenset()

    def now_us(self) -> int | None:
        """Cluster time in microseconds; None until it is known, soon after the first join."""
        offset = self.view.offset_us
        return None if offset is None else microseconds(self._clock.elapsed()) + offset

    def trusted(self) -> bool:
        """Whether this node may act on its view now."""
        view = self.view
        known = view.me is not None and view.offset_us is not None
        return known and self._clock.elapsed() < view.trusted_until

    def renewed(self, me: str, asked_at: float, store_us: int | None) -> None:
        """A join or renewal succeeded. It was sent at `asked_at`: a slow answer must shorten trust, not stretch it."""
        answered_at = self._clock.elapsed()
        if me != self._me:
            # Who has just joined calls nobody dead for a TTL: the others may have been kept out by the same thing.
            self._give_time(answered_at)
        self._me = me
        self._trusted_until = asked_at + self.ttl_s - self.margin_s
        if store_us is not None:
            self._time.store_said(store_us, asked_at, answered_at)

    def lost(self) -> None:
        """The store says that I am no member."""
        self._me, self._trusted_until = None, float("-inf")
        view = self.view
        self._publish(view.alive, view.dead, view.buried, view.polled_at, view.watching_since)

    def bury(self, memberships: Iterable[str]) -> None:
        """These dead members have been removed from the store."""
        self.view = replace(self.view, buried=self.view.buried.union(memberships))

    def observe(self, members: Mapping[str, Member], digest: str) -> View:
        """Take in the members as just read, and make them the new view."""
        now = self._clock.elapsed()
        since = self.view.watching_since
        # After a gap everybody gets a TTL to be seen again: it was I who was without the store.
        gap = now - self.view.polled_at > self.ttl_s / 2
        if gap:
            since = now
            self._give_time(now)
        # What has changed while nothing could be read may have been written at any time since: it does not say what
        # time it is.
        dated = now - self.view.polled_at <= min(self.ttl_s / 5, 1.0)
        for membership, member in members.items():
            before = self._pulses.get(membership)
            if before is not None and before.member == member and before.gone_since == float("inf"):
                continue
            info = Info.parse(member.info)
            changed = before is None or before.member.pulse != member.pulse
            if changed and info is not None and membership != self._me:
                # One change is not enough: the store may have gone back to what a node wrote hours ago.
                known_to_beat = before is not None and before.beats
                take_in = self._time.heard if dated and known_to_beat else self._time.found
                take_in(membership, info.wall_us, info.cluster_us, now)
            if before is None:
                self._pulses[membership] = Pulse(member, info, now)
            else:
                seen_at, beats = (now, True) if changed else (before.seen_at, before.beats)
                self._pulses[membership] = Pulse(member, info, seen_at, beats=beats)
        if len(self._pulses) > len(members):
            self._forget_the_gone(members, now)
        dead = frozenset(
            m for m, pulse in self._pulses.items() if now - pulse.seen_at >= self._patience_s(pulse) and m != self._me
        )
        alive = {m: info for m in members if m not in dead and (info := self._pulses[m].info) is not None}
        self._digest = digest
        self._absent = frozenset(self._pulses.keys() - members.keys() - dead)
        self._missing = frozenset(map(node_of, self._absent)).difference(map(node_of, members), [self.node_id])
        # There is no time before the first join: nobody needs it, and nobody could say it.
        if self._me is not None or self._time.offset_us is not None:
            self._time.settle([m for m in alive if m != self._me], now)
        return self._publish(alive, dead, dead.difference(members), now, since)

    def _publish(
        self, alive: Mapping[str, Info], dead: frozenset[str], buried: frozenset[str], polled_at: float, since: float
    ) -> View:
        peers = {
            m: (info.host, info.ordinal)
            for m, info in alive.items()
            if info.digest == self._digest and (info.active or m == self._me)
        }
        if peers != self._peers:
            # At nearly every look it is as it was.
            self._peers, self._places = peers, ring_places(peers)
        places = self._places
        ring = self.view.ring if self.view.ring.nodes == set(places.values()) else HashRing(places.values())
        self.view = View(
            me=self._me,
            ring=ring,
            places=places,
            alive=alive,
            dead=dead,
            absent=self._absent,
            missing=self._missing,
            buried=buried,
            trusted_until=self._trusted_until,
            polled_at=polled_at,
            watching_since=since,
            offset_us=self._time.offset_us,
            schedule=self.schedule,
            longest_ttl_s=max(map(self._patience_s, self._pulses.values()), default=self.ttl_s),
        )
        return self.view

    def _give_time(self, now: float) -> None:
        self._pulses = {membership: pulse._replace(seen_at=now) for membership, pulse in self._pulses.items()}

    def _forget_the_gone(self, members: Collection[str], now: float) -> None:
        for membership in self._pulses.keys() - members:
            pulse = self._pulses[membership]
            if pulse.gone_since == float("inf"):
                # Evicted, it may have renewed since it was last seen. Who was silent for long was buried by another
                # node, and that only with the very pulse that was silent.
                evicted = now - pulse.seen_at < 0.8 * self._patience_s(pulse)
                pulse = pulse._replace(gone_since=now, seen_at=now if evicted else pulse.seen_at)
                self._pulses[membership] = pulse
            # The time that is given after each gap must not keep it for ever, nor an outage make it forgotten at once.
            if now - pulse.gone_since > _REMEMBER_S and now - pulse.seen_at >= self._patience_s(pulse):
                del self._pulses[membership]
                self._time.forget(membership)

    def _patience_s(self, pulse: Pulse) -> float:
        """Seconds after which a silent member is dead: the longer of its own TTL, in which it trusts, and mine."""
        return self.ttl_s if pulse.info is None else max(self.ttl_s, pulse.info.ttl_us / 1e6)

    def patience_s(self, membership: str) -> float:
        """Seconds after which a silent member is dead; for one that is not known, my own TTL."""
        pulse = self._pulses.get(membership)
        return self.ttl_s if pulse is None else self._patience_s(pulse)

    @property
    def beating(self) -> set[str]:
        """Memberships that have been seen to renew, and not only to be there."""
        return {membership for membership, pulse in self._pulses.items() if pulse.beats}

    def next_death(self) -> float:
        """When, on `Clock.elapsed`, the next member would be dead if it stayed silent."""
        now = self._clock.elapsed()
        deaths = (pulse.seen_at + self._patience_s(pulse) for m, pulse in self._pulses.items() if m != self._me)
        return min((at for at in deaths if at > now), default=float("inf"))


def ring_places(peers: Mapping[str, tuple[str, int]]) -> dict[str, str]:
    """Give each membership its place on the ring: host and ordinal, so that a restarted node gets its old share again.

    Two nodes that took the same ordinal at the same moment are told apart by their memberships, everywhere alike.
    """
    places: dict[str, str] = {}
    taken: set[str] = set()
    for host, ordinal, membership in sorted((*peer, membership) for membership, peer in peers.items()):
        while (place := f"{host}/{ordinal}") in taken:
            ordinal += 1
        taken.add(place)
        places[membership] = place
    return places


def free_ordinal(alive: Mapping[str, Info], host: str, node_id: str) -> int:
    """Return the smallest number that no live node of this host uses."""
    used = {info.ordinal for membership, info in alive.items() if info.host == host and node_of(membership) != node_id}
    return next(number for number in range(len(used) + 1) if number not in used)
