"""What the runs have come to, as tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tests.acceptance.beat import Beat
from tests.acceptance.occurrences import Hurt, Occurrence
from tests.acceptance.rhythms import SECOND_US
from tests.chaos.lane import TTL_S, Run

#: Seconds for which a fault that is over may still make runs late.
_AFTER_S = TTL_S + 2.0
_HEADS = ("runs", "lost", "twice", "of these excused", "late p50", "p99", "max")


class Account:
    """The sums of one run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        sent = run.cluster.sent
        self.expected = sent.expected(run.began, run.ended)
        self.lost = set(sent.lost(run.began, run.ended))
        self.doubled = set(sent.doubled())
        self.unexcused = self.doubled if run.exactly_once else set(sent.doubled_without_cause(run.cluster.hurts))
        self.confused = sent.confused()
        self.strays = sent.strays()
        self.most = max((len(messages) for messages in sent.messages.values()), default=0)
        self._sent = sent
        self._confirmed: dict[str, frozenset[Occurrence]] = {}

    def wrong(self) -> list[str]:
        """Return what must not be; nothing, where all is well."""
        found = {
            "lost": sorted(self.lost),
            "sent twice without an excuse": sorted(self.unexcused),
            "with two task ids": self.confused,
            "sent for no instant": self.strays,
        }
        named = [f"{what}: {', '.join(map(str, which[:8]))}" for what, which in found.items() if which]
        if self.run.vanished:
            named.append(f"taken by the broker and not kept: {len(self.run.vanished)}")
        return [f"{self.run.lane}: {one}" for one in [*named, *self.run.faults]]

    def tell(self, logs: Path) -> None:
        """Write down what the beats said, and what is known of runs that came twice without an excuse, or latest."""
        (logs / f"{self.run.lane}.log").write_text(self.run.cluster.story())
        arrived = {one: self._sent.messages[one][0].seen_at - one[1] / SECOND_US for one in self.expected - self.lost}
        latest = sorted(arrived, key=lambda one: -arrived[one])[:10]
        for name, which in (("twice", sorted(self.unexcused)), ("late", latest)):
            told = [line for occurrence in which for line in self._in_full(occurrence)]
            (logs / f"{self.run.lane}.{name}").write_text("\n".join(told))

    def _in_full(self, occurrence: Occurrence) -> Iterator[str]:
        for message in self._sent.messages[occurrence]:
            near = [
                f"{hurt.kind} from {hurt.at - message.seen_at:+.2f} s to {hurt.until - message.seen_at:+.2f} s"
                for hurt in self.run.cluster.hurts
                if hurt.pid in (0, message.pid) and -12 < hurt.at - message.seen_at < 12
            ]
            seen = f"seen {message.seen_at % 3600:.3f} s after the hour"
            sender = next(beat for beat in self.run.cluster.beats if beat.beat_pid == message.pid)
            confirmed = "confirmed" if occurrence in self._confirmed_by(sender) else "not confirmed"
            yield f"{occurrence}: attempt {message.attempt} by {message.pid}, {confirmed}, {seen}; {', '.join(near)}"

    def _confirmed_by(self, beat: Beat) -> frozenset[Occurrence]:
        if beat.name not in self._confirmed:
            self._confirmed[beat.name] = beat.confirmed()
        return self._confirmed[beat.name]

    def rows(self) -> list[list[str]]:
        """Return a row of sums for all, for the time without a fault, and for each kind of fault."""
        by_kind: dict[str, list[Hurt]] = {}
        for hurt in self.run.cluster.hurts:
            by_kind.setdefault(hurt.kind, []).append(hurt)
        hurts = self.run.cluster.hurts
        rows = [self._row(f"**{self.run.lane}**", len(hurts), self.expected)]
        rows.append(self._row("no fault near", 0, [one for one in self.expected if not _near(one, hurts)]))
        for kind, ones in sorted(by_kind.items()):
            rows.append(self._row(kind, len(ones), [one for one in self.expected if _near(one, ones)]))
        return rows

    def _row(self, name: str, number: int, among: Iterable[Occurrence]) -> list[str]:
        chosen = set(among)
        late = sorted(
            messages[0].seen_at - at / SECOND_US
            for (entry, at), messages in self._sent.messages.items()
            if (entry, at) in chosen
        )
        twice = self.doubled & chosen
        counts = [len(chosen), len(self.lost & chosen), len(twice), len(twice - self.unexcused)]
        times = [f"{late[int(len(late) * part)] if late else 0:.3f}" for part in (0.5, 0.99)]
        return [name, str(number or ""), *map(str, counts), *times, f"{late[-1] if late else 0:.3f}"]


def _near(occurrence: Occurrence, hurts: Sequence[Hurt]) -> bool:
    at = occurrence.instant_us / SECOND_US
    # Of what kills, the end is not known: its effect ends with the takeover.
    return any(hurt.at - 0.5 <= at <= (hurt.at if hurt.kind == "kill -9" else hurt.until) + _AFTER_S for hurt in hurts)


def table(accounts: Sequence[Account]) -> str:
    """Return all rows."""
    rows = [["", "faults", *_HEADS], ["---", *["---:"] * (len(_HEADS) + 1)]]
    rows += [row for account in accounts for row in account.rows()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
