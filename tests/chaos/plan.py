"""What is done to whom, and when: all of it follows from the seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

#: Beats at the start; the plan keeps their number between these.
FEWEST, MOST = 2, 5
FIRST = 3
#: How often each is chosen.
_WEIGHTS = {"kill": 3, "terminate": 2, "stop": 3, "hang": 1, "step": 2, "join": 2, "store": 2, "broker": 2}
_OUTAGES_S = (0.3, 1.0, 2.5, 6.0, 9.0)
_PAUSES_S = (0.3, 2.0, 6.0, 8.0)
#: Of the schedule, as a rolling deploy brings it, or takes it back; the first beats have none of these.
_VERSIONS = ("first", "second", "third")
_STEPS_S = (3600.0, -3600.0, 90.0, -90.0, 0.0)
#: Seconds of a broker's longest outage, and of the shortest run that has one.
_LONG_S, _WITH_LONG_S = 30.0, 150.0
#: Seconds in which a server starts, and beats come back to it.
_BACK_S = 8.0
#: Seconds before a store loses its data, and after, without another fault: what a node has in hand that dies with the
#: store's data nobody knows any more.
_CALM_S = 12.0
#: Seconds at the end in which nothing new is done.
QUIET_S = 8.0


class Event(NamedTuple):
    """One fault."""

    at_s: float
    what: str
    #: Which beat, counted from the first that was ever started.
    beat: int = -1
    #: Seconds, for what does not last.
    lasts_s: float = 0.0
    #: Which way of being away, or which version of the schedule.
    way: str = ""
    ahead_s: float = 0.0


@dataclass
class Plan:
    """The faults of one lane in order of time."""

    events: list[Event]
    #: Seconds from the first to the last moment that is planned.
    seconds: float


def has_own_clock(beat: int) -> bool:
    """Whether this beat runs on a clock that can be set."""
    return beat % 3 == 0


@dataclass
class _Planner:
    rng: random.Random
    seconds: float
    store_ways: Sequence[str]
    broker_ways: Sequence[str]
    clocks: bool
    hangs: bool
    alive: list[int] = field(default_factory=lambda: list(range(FIRST)))
    born: int = FIRST
    busy_until: dict[str, float] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    def between(self, first_s: float, last_s: float) -> None:
        """Plan faults that begin and end in this time."""
        at_s = first_s
        while at_s < last_s:
            self.add(at_s, last_s - at_s)
            at_s += 0.3 + self.rng.expovariate(1 / 1.7)

    def free_beats(self, at_s: float) -> list[int]:
        return [beat for beat in self.alive if self.busy_until.get(f"beat {beat}", 0.0) < at_s]

    def possible(self, at_s: float) -> list[str]:
        free, many = self.free_beats(at_s), len(self.alive)
        can = {
            "kill": bool(free) and many > FEWEST,
            "terminate": bool(free) and many > FEWEST,
            "stop": bool(free),
            "hang": bool(free) and self.hangs,
            "step": self.clocks and any(map(has_own_clock, free)),
            "join": many < MOST,
            "store": bool(self.store_ways) and self.busy_until.get("store", 0.0) < at_s,
            "broker": bool(self.broker_ways) and self.busy_until.get("broker", 0.0) < at_s,
        }
        return [what for what, may in can.items() if may]

    def add(self, at_s: float, left_s: float) -> None:
        possible = self.possible(at_s)
        if not possible:
            return
        what = self.rng.choices(possible, [_WEIGHTS[one] for one in possible])[0]
        if what in ("store", "broker"):
            way = self.rng.choice(self.store_ways if what == "store" else self.broker_ways)
            lasts_s = min(self.rng.choice(_OUTAGES_S), left_s)
            first = what == "broker" and not any(event.what == "broker" for event in self.events)
            if first and self.seconds >= _WITH_LONG_S:
                way, lasts_s = self.broker_ways[0], min(_LONG_S, left_s)
            # A server takes its time to start, and beats to come back.
            self.busy_until[what] = at_s + lasts_s + _BACK_S
            self.events.append(Event(at_s, what, lasts_s=lasts_s, way=way))
        elif what == "join":
            self.alive.append(self.born)
            self.busy_until[f"beat {self.born}"] = at_s + 5
            self.events.append(Event(at_s, what, self.born, way=self.rng.choice(_VERSIONS)))
            self.born += 1
        elif what == "step":
            beat = self.rng.choice([one for one in self.free_beats(at_s) if has_own_clock(one)])
            self.events.append(Event(at_s, what, beat, ahead_s=self.rng.choice(_STEPS_S)))
        elif what in ("stop", "hang"):
            beat, lasts_s = self.rng.choice(self.free_beats(at_s)), min(self.rng.choice(_PAUSES_S), left_s)
            self.busy_until[f"beat {beat}"] = at_s + lasts_s + 1
            self.events.append(Event(at_s, what, beat, lasts_s=lasts_s))
        else:
            beat = self.rng.choice(self.free_beats(at_s))
            self.alive.remove(beat)
            self.events.append(Event(at_s, what, beat))


def plan(
    seed: str,
    seconds: float,
    *,
    store_ways: Sequence[str],
    broker_ways: Sequence[str],
    clocks: bool,
    hangs: bool,
) -> Plan:
    """Return the faults that follow from a seed.

    Args:
        seed: Any text.
        seconds: Length of the run.
        store_ways: Ways in which the store can be away.
        broker_ways: The same of the broker, killing it first; none where it is the store.
        clocks: Whether the beats' clocks may be set.
        hangs: Whether loops may be made to hang.
    """
    planner = _Planner(random.Random(seed), seconds, store_ways, broker_ways, clocks, hangs)
    first_s, last_s = 0.5, seconds - QUIET_S
    if seconds >= _WITH_LONG_S:
        lost_s = planner.rng.uniform(0.45, 0.65) * seconds
        planner.between(first_s, lost_s - _CALM_S)
        planner.events.append(Event(lost_s, "lose"))
        first_s = lost_s + _CALM_S
    planner.between(first_s, last_s)
    return Plan(planner.events, seconds)
