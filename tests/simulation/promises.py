"""The promises as invariants: each write, claim, send and message is held to them at the moment when it happens.

Nothing here asks the code under test what it thinks: what is true is worked out from what the store holds, when each
membership last renewed, and what has happened to whom.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from celery_distsched.instants import jitter
from celery_distsched.record import HANDED_BACK, Record, node_of

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster

#: In peace an instant is sent, and a mark is closed, within this, in seconds.
_IN_TIME_S = 1.0
#: A node that could reach the store for so long after its message was accepted has confirmed it, in seconds.
_CONFIRMED_S = 2.0
#: What may lie between the clocks of the store and its reader, in seconds.
_TRIP_S = 0.2

parse = lru_cache(maxsize=4096)(Record.parse)


class Broken(AssertionError):
    """A promise was not kept."""

    def __init__(self, promise: str, what: str) -> None:
        super().__init__(f"{promise}: {what}")
        self.promise = promise


@dataclass
class Run:
    """One occurrence, from its claim on."""

    claimed_at: float
    #: (when, by whom, which attempt) of each message that the broker has.
    messages: list[tuple[float, Any, int]] = field(default_factory=list)
    #: (when, by whom) of each attempt's last look before it was written.
    attempts: list[tuple[float, Any]] = field(default_factory=list)
    #: The broker left somebody without an answer.
    unanswered: bool = False
    pushed: bool = False
    counted: bool = False
    closed: bool = False


class Promises:
    """What has happened so far, and whether it may have."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.world, self.store = cluster, cluster.world, cluster.store
        self.ttl_s = cluster.settings.node_ttl
        self.at_most_once = cluster.settings.at_most_once
        self.hand_over_us = round(cluster.settings.hand_over_s * 1e6)
        #: How far cluster time may be from the calendar.
        self.skew_us = round((_TRIP_S + cluster.plan.skew_s) * 1e6)
        #: Without a clock to ask it may be late by as much as a heartbeat was on its way; never early.
        self.late_us = self.skew_us + (0 if cluster.plan.store_clock else 8_000_000)
        self.runs: dict[tuple[str, int], Run] = {}
        self.counts: Counter[str] = Counter()

    def fail(self, promise: str, what: str) -> None:
        self.world.fail(Broken(promise, f"{what} (at {self.world.time:.3f} s)"))

    # Acts of a node

    def acts(self, node: Any, what: str) -> None:
        late = self.world.now - node.trusted_until()
        if late > 1e-9:
            self.fail("trust", f"{node.node_id} {what} {late:.3f} s after its trust has run out")

    def sends(self, node: Any, name: str, instant: int) -> None:
        """A node is about to send: its last look before it writes."""
        self.acts(node, "sends")
        mark = parse(self.store.ledger.get(name) or '{"last":0}').open.get(instant)
        if mark != node.dispatch.ledger.me:
            self.fail("one claim", f"{node.dispatch.ledger.me} sends {name} {instant}, which is marked for {mark}")
        run = self.runs.get((name, instant))
        if run is not None:
            run.attempts.append((self.world.now, node))

    def unanswered(self, name: str, instant: int) -> None:
        self.runs[name, instant].unanswered = True

    def counted(self, name: str, instant: int) -> None:
        """A node reports a run as possibly lost."""
        self.counts["possibly lost"] += 1
        run = self.runs.get((name, instant))
        if run is not None:
            run.counted = True
        # What only this version has the last node of it can pass on to nobody.
        if not self.at_most_once and not name.startswith("only"):
            self.fail("delivery", f"{name} {instant} is given up in at_least_once")

    # Messages

    def delivered(self, node: Any, name: str, instant: int, attempt: int) -> None:
        """The broker has a message."""
        self.counts["messages"] += 1
        run = self.runs.get((name, instant))
        if run is None:
            self.fail("one claim", f"{node.node_id} sent {name} {instant}, which nobody has claimed, or long ago")
            return
        run.messages.append((self.world.now, node, attempt))
        if len(run.messages) == 1:
            return
        self.counts["sent again"] += 1
        story = ", ".join(f"{sender.node_id} at {at:.3f} (attempt {which})" for at, sender, which in run.messages)
        if self.at_most_once or run.pushed:
            self.fail("delivery", f"{name} {instant} was sent twice: {story}")
        elif all(which == 1 for _, _, which in run.messages) and not run.unanswered:
            self.fail("delivery", f"{name} {instant} was sent again as if it were the first time: {story}")
        elif not self._admitted(run, node):
            self.fail("delivery", f"{name} {instant} was sent twice without a cause: {story}; {self.cluster.troubles}")

    def _admitted(self, run: Run, node: Any) -> bool:
        if run.unanswered:
            return True
        at, first, _ = run.messages[0]
        if not self._could_confirm(first, at, self.world.now):
            return True
        # Frozen between its last look and the write: others have taken over and sent meanwhile.
        began = max((when for when, sender in run.attempts if sender is node), default=self.world.now)
        return began < at and any(
            who in (node, None) and since < self.world.now and until > began
            for who, since, until, _ in self.cluster.troubles
        )

    def _could_confirm(self, node: Any, since: float, until: float) -> bool:
        """Whether a node had the time to confirm what was accepted, with nothing in its way."""
        until = min(until, node.ended_at)
        free_from = since
        for who, begins, ends, _ in sorted(self.cluster.troubles, key=lambda trouble: trouble[1:3]):
            if who in (node, None) and ends > free_from and begins < until:
                if begins - free_from > _CONFIRMED_S:
                    return True
                free_from = max(free_from, ends)
        return until - free_from > _CONFIRMED_S

    # Writes

    def wrote(
        self,
        node: Any,
        fence: str | None,
        name: str,
        before: str | None,
        after: str,
        since_us: int,
        pushed: Mapping[int, str],
    ) -> None:
        """A record was changed in the store. The writer has worked it out at `since_us`."""
        new = parse(after)
        if before is None:
            if new.last > self.world.time_us + self.skew_us or new.open:
                self.fail("instants", f"{name} begins as {after}")
            return
        old = parse(before)
        if new.last < old.last:
            self.fail("one claim", f"{name}: last fell from {old.last} to {new.last}")
        opened = sorted([*(at for at in new.open if at not in old.open), *pushed])
        if opened or new.last != old.last:
            self._claimed(node, fence, name, old.last, new, opened, since_us)
            for at in pushed:
                self.runs[name, at].pushed = self.runs[name, at].closed = True
        for at, mark in old.open.items():
            if at not in new.open:
                self._closed(node, name, at, mark)
            elif new.open[at] != mark:
                self._passed_on(node, fence, name, at, mark, new.open[at])

    def _claimed(
        self, node: Any, fence: str | None, name: str, last: int, new: Record, opened: list[int], since_us: int
    ) -> None:
        planned, now_us = node.entries[name], self.world.time_us
        self._must_be_newest(node, name, planned.fingerprint)
        self.counts["claims"] += len(opened)
        for at in opened:
            if not last < at <= new.last:
                self.fail("one claim", f"{name} {at} is claimed again after {last}")
            if new.open.get(at, fence) != fence:
                self.fail("one claim", f"{node.node_id} marks {name} {at} for {new.open[at]}, and is {fence}")
            if at > now_us + self.skew_us:
                self.fail("clocks", f"{node.node_id} claims {name} {at} {(at - now_us) / 1e6:.3f} s too early")
            self.runs[name, at] = Run(self.world.now)
        if name.startswith("only") and not opened:
            return  # what a deploy brings back starts from now
        due = list(planned.rule.newest_first(last, new.last))
        if due[:1] != [new.last] or not set(opened) <= set(due):
            self.fail("instants", f"{name}: {opened} up to {new.last} after {last} are not on its grid")
            return
        skipped = [at for at in due if at not in opened]
        self.counts["skipped"] += len(skipped)
        # Worked out at `since_us`; the newest that may have been old by then, and the oldest that may have been fresh.
        old_us = since_us - self.hand_over_us + self.skew_us
        fresh_us = since_us - self.hand_over_us - self.late_us
        delay_us = round(planned.jitter_s * 1e6)
        if planned.catch_up.policy == "all" and skipped:
            self.fail("catch-up", f"{name}: {skipped} are lost")
        if any(at > old_us for at in skipped):
            self.fail("hand-over", f"{name}: {skipped} are skipped, and some of them are fresh")
        stale = [at for at in opened if at + delay_us < fresh_us]
        most = {"none": 0, "latest": 1, "all": len(stale)}[planned.catch_up.policy]
        if len(stale) > most:
            self.fail("catch-up", f"{name}: {stale} are sent for {planned.catch_up.policy}")
        if planned.catch_up.policy == "latest" and not opened:
            self.fail("catch-up", f"{name}: nothing is sent for {skipped}")

    def _must_be_newest(self, node: Any, name: str, fingerprint: str) -> None:
        peace_s = self.world.now - self.cluster.unsettled_until
        for other in self.cluster.serving if peace_s > 0 else []:
            newer = other.version > node.version and name in other.entries
            if newer and other.entries[name].fingerprint != fingerprint:
                self.fail("mixed versions", f"{node.node_id} claims {name}, of which {other.node_id} has a newer one")

    def _passed_on(self, node: Any, fence: str | None, name: str, at: int, mark: str, to: str) -> None:
        """A mark has another holder now."""
        if to == HANDED_BACK:
            if node_of(mark) != node.node_id:
                self.fail("one claim", f"{node.node_id} hands back {name} {at}, which is marked for {mark}")
            return
        if to != fence:
            self.fail("one claim", f"{node.node_id} marks {name} {at} for {to}, and is {fence}")
        if mark != HANDED_BACK:
            self.counts["taken over"] += 1
            self._must_be_dead(node, name, at, mark)

    def _must_be_dead(self, node: Any, name: str, at: int, mark: str) -> None:
        if mark in self.store.nodes:
            self.fail("one claim", f"{node.node_id} takes {name} {at} from {mark}, which is a member")
        silent_s = self.world.now - self.store.renewed_at.get(mark, float("-inf"))
        if node_of(mark) != node.node_id and silent_s < self.ttl_s - 1e-6:
            self.fail("trust", f"{node.node_id} takes {name} {at} from {mark}, which was there {silent_s:.3f} s ago")

    def _closed(self, node: Any, name: str, at: int, mark: str) -> None:
        run = self.runs.get((name, at))
        if run is None:
            self.fail("one claim", f"{node.node_id} closes {name} {at}, which nobody has claimed")
            return
        run.closed = True
        if any(sender is node for _, sender, _ in run.messages):
            return
        if not run.counted:
            self.fail("delivery", f"{node.node_id} closes {name} {at}, which it has not sent")
        elif node_of(mark) != node.node_id:
            self._must_be_dead(node, name, at, mark)

    # Time

    def check_in_time(self) -> None:
        """In peace, everything that is due is sent, and nothing stays open."""
        now, cluster = self.world.now, self.cluster
        peace_s = now - cluster.unsettled_until
        if peace_s < _IN_TIME_S:
            return
        late_us = self.world.time_us - round(_IN_TIME_S * 1e6) - self.skew_us
        for name, planned in cluster.carried().items():
            text = self.store.ledger.get(name)
            if text is None:
                self.fail("mixed versions", f"{name} has no record")
                continue
            record = parse(text)
            for at in record.open:
                if now - self.runs[name, at].claimed_at > _IN_TIME_S:
                    self.fail("failover", f"{name} {at} stays open in peace: {text}")
            assert planned.rule is not None
            due = planned.rule.after(record.last)
            if due is not None and due < late_us:
                delay = jitter(name, due, planned.jitter_s, planned.rule.after(due)) if planned.jitter_s else 0
                if due + delay < late_us:
                    self.fail(
                        "failover", f"{name} is late: {due} is not claimed, {peace_s:.1f} s after the last trouble"
                    )

    @property
    def unsettled(self) -> bool:
        """Whether a claim is open, of an entry that somebody carries."""
        carried = self.cluster.carried()
        return any(not run.closed and name in carried for (name, _), run in self.runs.items())

    def forget_settled(self) -> None:
        """All that was claimed is closed: from here on, a message of one of these is one too many."""
        self.counts["runs"] += len(self.runs)
        self.runs.clear()
