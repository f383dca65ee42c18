"""What becomes of runs beyond the ordinary, in numbers and in log lines: taken over, skipped, possibly lost."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping

from celery_distsched.clock import iso
from celery_distsched.holding import Move
from celery_distsched.many_lines import ManyLines
from celery_distsched.record import HANDED_BACK, node_of

logger = logging.getLogger(__name__)


class Tally:
    """One node's account of its runs."""

    def __init__(self, *, at_most_once: bool) -> None:
        self.counts: Counter[str] = Counter()
        #: Of single entries; summed up at the end of a tick.
        self.lines = ManyLines(logger)
        self._at_most_once = at_most_once
        #: Runs whose loss has been counted, while anything may be repeated.
        self._dropped: set[tuple[str, int]] = set()

    def summary(self) -> str:
        """What has become of this node's runs, for the log."""
        others = (f"{self.counts[what]:,} {what}" for what in ("sent again", "taken over", "skipped", "possibly lost"))
        return ", ".join((f"{self.counts['accepted']:,} sent", *others))

    def won(self, name: str, move: Move, me: str) -> None:
        """Report what a won move took over and passed over."""
        for instant, mark in move.taken.items():
            if mark == HANDED_BACK:
                self.lines.say(
                    logging.INFO, "runs handed over by nodes that left; sending them",
                    "entry %r, instant %s: handed over by a node that left; sending it", name, iso(instant),
                )  # fmt: skip
            # My own, of an older membership, have not changed hands.
            elif node_of(mark) != node_of(me):
                self.counts["taken over"] += 1
                self.lines.say(
                    logging.WARNING, "runs taken over from dead nodes, to be sent again",
                    "entry %r, instant %s: taken over from %s, to be sent again", name, iso(instant), mark,
                )  # fmt: skip
        if move.skipped:
            self.counts["skipped"] += move.skipped
            self.lines.say(
                logging.WARNING, "entries of which missed runs were skipped, as their catch-up policies say",
                "entry %r: skipped %d missed run(s), as its catch-up policy says; it goes on from %s",
                name, move.skipped, iso(move.new.last),
            )  # fmt: skip

    def taken_away(self, name: str, instant: int, by: str) -> None:
        """Report that another node has taken over what this one held."""
        self.lines.say(
            logging.WARNING, "runs of this node taken over by others",
            "entry %r, instant %s: taken over by %s", name, iso(instant), by,
        )  # fmt: skip

    def dropping(self, moves: Mapping[str, Move], me: str, why: str = "") -> None:
        """Count runs before the swap that drops their marks: if its answer is lost, nobody else can tell."""
        for name, move in moves.items():
            for instant, mark in move.dropped.items():
                if (name, instant) not in self._dropped:
                    self._dropped.add((name, instant))
                    self.possibly_lost(name, instant, why or self._why_dropped(mark, me))

    def nothing_is_open(self) -> None:
        """No swap is out and no mark is looked at: none of the counted can be dropped again."""
        self._dropped.clear()

    def _why_dropped(self, mark: str, me: str) -> str:
        if mark == HANDED_BACK or not self._at_most_once:
            return "it was open when the entry went away, and the entry has come back"
        died = f"its sender {mark} died" if mark != me else "this node stopped while sending it"
        return f"{died}; at_most_once"

    def possibly_lost(self, name: str, instant: int, why: str) -> None:
        """Count and report a run of which nobody knows whether it was sent, and which nobody will send again."""
        self.counts["possibly lost"] += 1
        # However many there are, each is named: somebody may have to make up for it, and nothing else tells which.
        logger.error("entry %r, instant %s: possibly lost (%s): it is not sent again", name, iso(instant), why)
