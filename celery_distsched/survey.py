"""A look at all entries, a few at a time, to say how many go the ordinary way, and why."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from celery_distsched.broker import BrokerAway
from celery_distsched.entries import PlannedEntry

logger = logging.getLogger(__name__)

#: Longest time, in seconds, that one look may take, and from that look to the next: what is due meanwhile gets four
#: fifths of the time.
_LOOK_S = 0.005
_LOOK_AGAIN_S = 0.025
#: Seconds until a broker that takes nothing is tried again.
_TRY_AGAIN_S = 1.0
#: Entries looked at before the time is: a few milliseconds, if no two are alike.
_AT_A_TIME = 5


class Survey:
    """Says of the entries how many go one way to the broker."""

    def __init__(
        self, way: str, since: str, why_not: Callable[[PlannedEntry], str | None], connected: Callable[[], bool]
    ) -> None:
        """Keep what is needed.

        Args:
            way: What the way does with messages.
            since: Why it is this one.
            why_not: Says why an entry goes the ordinary way; None: it does not. May raise `BrokerAway`.
            connected: Whether there is a connection to the broker.
        """
        self._way = way
        self._since = since
        self._why_not = why_not
        self._connected = connected
        self._entries: Mapping[str, PlannedEntry] = {}
        #: Those that nobody has looked at yet, the next one last; and of those that go the ordinary way, why.
        self._unseen: list[PlannedEntry] = []
        self._ordinary: dict[str, str] = {}
        self._looks: Iterator[bool] | None = None
        self._look_at = float("-inf")

    @property
    def under_way(self) -> bool:
        """Whether there are entries that nobody has looked at yet."""
        return self._looks is not None

    def take_on(self, entries: Mapping[str, PlannedEntry]) -> None:
        """Say it anew, of these, and look only at what has changed."""
        before, self._entries = self._entries, entries
        self._ordinary = {name: why for name, why in self._ordinary.items() if before[name] is entries.get(name)}
        self._unseen = [one for one in self._unseen if entries.get(one.name) is one]
        self._unseen += [one for name, one in entries.items() if before.get(name) is not one][::-1]
        self._looks = self._look()

    def go_on(self, now: float) -> None:
        """Look at some more, if it is time; `now` is on `Clock.elapsed`."""
        if self._looks is None or now < self._look_at:
            return
        self._look_at = now + _LOOK_AGAIN_S
        until = time.perf_counter() + _LOOK_S
        while time.perf_counter() < until:
            at_once = next(self._looks, None)
            if at_once is None:
                self._looks = None
                return
            if not at_once:
                self._look_at = now + _TRY_AGAIN_S
                return

    def _look(self) -> Iterator[bool]:
        """Look at those that are unseen, and then say what was found.

        Yields:
            Whether to go on at once.
        """
        while self._unseen:
            for _ in range(min(_AT_A_TIME, len(self._unseen))):
                one = self._unseen.pop()
                try:
                    why = self._why_not(one)
                except BrokerAway:
                    if not self._connected():
                        # All of them are looked at once there is a connection again.
                        return
                    # It takes nothing for now.
                    self._unseen.append(one)
                    yield False
                    break
                if why is not None:
                    self._ordinary[one.name] = why
            if self._unseen:
                yield True
        reasons, others = Counter(self._ordinary.values()), len(self._ordinary)
        logger.info(
            "%s, for %d of %d entries, since %s%s%s",
            self._way,
            len(self._entries) - others,
            len(self._entries),
            self._since,
            "".join(f"; not for {count}, because {why}" for why, count in reasons.most_common(5)),
            f"; and {len(reasons) - 5} other reasons" if len(reasons) > 5 else "",
        )
