"""The promises as invariants: each write, claim, send and message is held to them at the moment when it happens.

Nothing here asks the code under test what it thinks: what is true is worked out from what the store holds, when each
membership last renewed, and what has happened to whom.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from celery_distsched.instants import jitter
from celery_distsched.record import HANDED_BACK, Record, node_of
from tests.simulation.losses import LOSS, Losses, parse

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster

#: In peace an instant is sent, and a mark is closed, within this, in seconds.
_IN_TIME_S = 1.0
#: A node that could reach the store for so long after its message was accepted has confirmed it, in seconds.
_CONFIRMED_S = 2.0
#: What may lie between the clocks of the store and its reader, in seconds.
_TRIP_S = 0.2


class Broken(AssertionError):
    """A promise was not kept."""

    def __init__(self, promise: str, what: str) -> None:
        super().__init__(f"{promise}: {what}")
        self.promise = promise


@dataclass
class Run:
    """One occurrence, from its claim on."""

    claimed_at: float
    #: Mark → since when it was, or is, the one that is to send it.
    holders: dict[str, float] = field(default_factory=dict)
    #: (when, by whom, which attempt) of each message that the broker has.
    messages: list[tuple[float, Any, int]] = field(default_factory=list)
    #: (when, by whom) of each attempt's last look before it was written.
    attempts: list[tuple[float, Any]] = field(default_factory=list)
    #: The broker left somebody without an answer.
    unanswered: bool = False
    pushed: bool = False
    counted: bool = False
    closed: bool = False
    #: It is open again, after it was settled: since when nobody had anything to do with it.
    settled_at: float | None = None
    #: Who has opened it again, and had to know.
    opened_by: Any = None


class Promises:
    """What has happened so far, and whether it may have."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.world, self.store = cluster, cluster.world, cluster.store
        self.ttl_s = cluster.settings.node_ttl
        self.at_most_once = cluster.settings.at_most_once
        self.hand_over_us = round(cluster.settings.hand_over_s * 1e6)
        #: How far cluster time may be from the calendar.
        self.skew_us = round((_TRIP_S + cluster.plan.skew_s) * 1e6)
        #: It may be late by as much as a heartbeat was on its way, and read late; never early.
        self.late_us = self.skew_us + 2_000_000
        self.runs: dict[tuple[str, int], Run] = {}
        self.losses = Losses(cluster)
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
        run, me = self.runs.get((name, instant)), node.dispatch.records.me
        # After a loss others may know better than who has opened it again; whether that is excused, its message shows.
        excused = run and me in run.holders and (run.opened_by or self.losses.since(run.holders[me]))
        if mark != me and not excused:
            self.fail("one claim", f"{me} sends {name} {instant}, which is marked for {mark}")
        if run is not None:
            run.attempts.append((self.world.now, node))

    def unanswered(self, name: str, instant: int) -> None:
        if (run := self.runs.get((name, instant))) is not None:
            run.unanswered = True

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
            if not self._forgotten(node, name, instant):
                self.fail("one claim", f"{node.node_id} sent {name} {instant}, which nobody has claimed, or long ago")
            return
        run.messages.append((self.world.now, node, attempt))
        if len(run.messages) == 1 and run.settled_at is None:
            return
        since = run.claimed_at if run.settled_at is None else run.settled_at
        if self.losses.excuse(run.opened_by or node, name, instant, since):
            self.counts["sent again after a loss"] += 1
            return
        if run.settled_at is not None:
            self.fail("store loss", f"{node.node_id} sends {name} {instant} again, which was settled")
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
        self._wrote(node, fence, name, before, parse(after), since_us, pushed)
        self.losses.wrote(name, parse(after).last)

    def _wrote(
        self,
        node: Any,
        fence: str | None,
        name: str,
        before: str | None,
        new: Record,
        since_us: int,
        pushed: Mapping[int, str],
    ) -> None:
        upto, _ = self.losses.upto.get(name, (None, 0.0))
        if self.losses.felt and upto is not None and (before is None or new.last <= upto):
            self._put_back(node, name, before, new, upto)
            self._changed(node, fence, name, Record(0) if before is None else parse(before), new)
            return
        if before is None:
            if upto is not None:
                self.fail("one claim", f"{node.node_id} writes {name} anew, of which there was a record")
            if new.last > self.world.time_us + self.skew_us or new.open:
                self.fail("instants", f"{name} begins as {new}")
            return
        old = parse(before)
        if new.last < old.last:
            self.fail("one claim", f"{name}: last fell from {old.last} to {new.last}")
        opened = sorted([*(at for at in new.open if at not in old.open), *pushed])
        if opened or new.last != old.last:
            self._claimed(node, fence, name, old.last, new, opened, since_us, upto or 0)
            for at in pushed:
                self.runs[name, at].pushed = self.runs[name, at].closed = True
        self._changed(node, fence, name, old, new)

    def _changed(self, node: Any, fence: str | None, name: str, old: Record, new: Record) -> None:
        for at, mark in old.open.items():
            if at not in new.open:
                self._closed(node, name, at, mark)
            elif new.open[at] != mark:
                self._passed_on(node, fence, name, at, mark, new.open[at])

    def _claimed(
        self,
        node: Any,
        fence: str | None,
        name: str,
        last: int,
        new: Record,
        opened: list[int],
        since_us: int,
        upto: int,
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
            if at <= upto:
                self._open_again(node, fence, name, at)
            else:
                self.runs[name, at] = Run(self.world.now, {fence or "": self.world.now})
        if name.startswith("only") and not opened:
            return  # what a deploy brings back starts from now
        due = list(planned.rule.newest_first(last, new.last))
        if due[:1] != [new.last] or not set(opened) <= set(due):
            self.fail("instants", f"{name}: {opened} up to {new.last} after {last} are not on its grid")
            return
        skipped = [at for at in due if at not in opened and at > upto]
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

    # After a loss

    def wrote_generation(self, node: Any, text: str) -> None:
        """A node says that the store has lost data, or that there was none."""
        if not self.losses.noticed() and not json.loads(text)["new"]:
            self.fail("store loss", f"{node.node_id} has noticed one where there was none")
        self.cluster.trouble(None, 0.0, LOSS, settle_s=3 * self.ttl_s + 2)

    def _put_back(self, node: Any, name: str, before: str | None, new: Record, upto: int) -> None:
        """The store held more of an entry than it does, and is told again what it was, or another beginning."""
        if new.last > upto and not self._forgotten(node, name, upto):
            self.fail("store loss", f"{name} starts from now, and somebody knows what it was")
        old = Record(0) if before is None else parse(before)
        if new.last < old.last:
            self.fail("one claim", f"{name}: last fell from {old.last} to {new.last}")
        for at, mark in new.open.items():
            if at not in old.open and at <= upto and mark != HANDED_BACK:
                self._open_again(node, mark, name, at)

    def _open_again(self, node: Any, mark: str | None, name: str, at: int) -> None:
        """An instant is open that was so before: nothing is wrong with that as long as nobody has sent it."""
        run = self.runs.get((name, at))
        if run is None:
            run = self.runs[name, at] = Run(self.world.now, settled_at=self.losses.upto[name][1])
        run.closed, run.opened_by = False, node
        run.holders[mark or ""] = self.world.now

    def _forgotten(self, node: Any, name: str, at: int) -> bool:
        """Whether nobody has to know any more that an instant was settled."""
        upto, _ = self.losses.upto.get(name, (-1, 0.0))
        return at <= upto and self.losses.excuse(node, name, at, self.losses.since_when(name, at))

    def _settle_lost(self) -> None:
        """Everybody is at rest: what the store does not hold open is not going to be sent any more."""
        for (name, at), run in self.runs.items():
            if run.closed or (run.settled_at is None and not self.losses.since(run.claimed_at)):
                continue
            text = self.store.ledger.get(name)
            if text is None or at in parse(text).open:
                continue
            run.closed = True
            mark = max(run.holders, key=lambda mark: run.holders[mark], default="")
            holder = next((node for node in self.cluster.serving if node.node_id == node_of(mark)), None)
            sent = run.messages or run.counted or run.settled_at is not None
            # Who has joined anew since was away too long to know what others had done with it before the loss.
            stayed = holder is not None and holder.pool.view.me == mark
            if not sent and stayed and self.losses.well(holder):
                self.fail("store loss", f"{name} {at} was claimed by {mark}, is lost, and nobody has counted it")

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
        if (run := self.runs.get((name, at))) is not None:
            run.holders[to] = self.world.now
        if mark != HANDED_BACK:
            self.counts["taken over"] += 1
            self._must_be_dead(node, name, at, mark)

    def _must_be_dead(self, node: Any, name: str, at: int, mark: str) -> None:
        # A store that went back may show an older membership of the node's own, under which it does nothing any more.
        mine = node_of(mark) == node.node_id and self.losses.felt
        if mark in self.store.nodes and not mine:
            self.fail("one claim", f"{node.node_id} takes {name} {at} from {mark}, which is a member")
        silent_s = self.world.now - self.store.renewed_at.get(mark, float("-inf"))
        # Each trusts in its own TTL, and whoever finds it dead waits for no less than both.
        patience_s = max(node.settings.node_ttl, self.cluster.ttls_s.get(node_of(mark), 0.0))
        # A store that has gone back may give a renewal the number that it gave another before: nobody sees it then.
        unseen = self.losses.since(self.world.now - self.ttl_s)
        over = unseen or mark in self.store.left
        if node_of(mark) != node.node_id and silent_s < patience_s - 1e-6 and not over:
            self.fail("trust", f"{node.node_id} takes {name} {at} from {mark}, which was there {silent_s:.3f} s ago")

    def _closed(self, node: Any, name: str, at: int, mark: str) -> None:
        run = self.runs.get((name, at))
        if run is None:
            if not self.losses.felt:
                self.fail("one claim", f"{node.node_id} closes {name} {at}, which nobody has claimed")
            return
        if run.settled_at is not None or self.losses.since(run.claimed_at):
            # It may have come back with an old record; in the end it is seen whether it was sent.
            run.closed = run.closed or bool(run.messages)
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
            assert planned.rule is not None
            text = self.store.ledger.get(name)
            last, _ = self.losses.upto.get(name, (-1, 0.0))
            # What has come back with an old record nobody may look for before it is noticed.
            if text is not None and not self.losses.unnoticed:
                for at in parse(text).open:
                    run = self.runs.get((name, at))
                    if run is None or now - run.claimed_at > _IN_TIME_S:
                        self.fail("failover", f"{name} {at} stays open in peace: {text}")
            if (text is None or parse(text).last < last) and not self.losses.felt:
                self.fail("mixed versions" if text is None else "store loss", f"{name} has lost its record: {text}")
            # What nobody has noticed yet has to be noticed when the next instant falls due.
            due = planned.rule.after(last)
            if due is not None and due < late_us:
                delay = jitter(name, due, planned.jitter_s, planned.rule.after(due)) if planned.jitter_s else 0
                if due + delay < late_us:
                    self.fail(
                        "failover", f"{name} is late: {due} is not claimed, {peace_s:.1f} s after the last trouble"
                    )

    @property
    def unsettled(self) -> bool:
        """Whether a claim is open, of an entry that somebody carries."""
        if self.losses.felt:
            self._settle_lost()
        carried = self.cluster.carried()
        return any(not run.closed and name in carried for (name, _), run in self.runs.items())

    def forget_settled(self) -> None:
        """All that was claimed is closed: from here on, a message of one of these is one too many."""
        self.counts["runs"] += len(self.runs)
        self.runs.clear()
        carried = self.cluster.carried()
        for name in self.losses.settle(self.store.ledger):
            if name in carried:
                self.fail("store loss", f"{name} stays at {self.store.ledger.get(name)}, and somebody knows better")
