"""What is sent for the instants since the last one: all that is fresh, and of what was missed what the policy says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal, NamedTuple

from celery_distsched.clock import microseconds
from celery_distsched.instants.rule import Rule

#: `Due.skipped` is at most this.
MOST_SKIPPED = 10_000


@dataclass(frozen=True)
class CatchUp:
    """What becomes of missed instants: those that are older than a hand-over takes."""

    #: One run for all that was missed, each one, or none.
    policy: Literal["latest", "all", "none"] = "latest"
    #: Nothing that was missed longer ago is sent, in seconds.
    window_s: float | None = None
    #: Most instants that ``all`` sends.
    limit: int = 1000
    #: ``beat_cron_starting_deadline`` in seconds, for the rules that it is for.
    deadline_s: float | None = None

    def reaches_s(self) -> float:
        """Return how old a missed instant may be, in seconds."""
        bounds = [bound for bound in (self.window_s, self.deadline_s) if bound is not None]
        return min(bounds, default=float("inf"))


class Due(NamedTuple):
    """What is due of one entry; instants are microseconds since the epoch, in UTC."""

    #: What is to be sent, oldest first.
    send: tuple[int, ...]
    #: The newest instant that is settled by this; the last one again if nothing is due.
    upto: int
    #: How many due instants are not sent, up to `MOST_SKIPPED`.
    skipped: int


def due(
    rule: Rule,
    last_us: int,
    now_us: int,
    catch_up: CatchUp,
    hand_over_s: float,
    delay: Callable[[int], int] | None = None,
) -> Due:
    """Say which instants in (last, now] are to be sent.

    Args:
        rule: When the entry is due.
        last_us: The newest instant that is settled.
        now_us: The time.
        catch_up: What becomes of missed instants.
        hand_over_s: An instant that has been due for no longer is fresh: it is sent, whatever the policy.
        delay: How long after an instant it becomes due, in microseconds; less than the distance to the next one.
    """
    send: list[int] = []
    upto, skipped = last_us, 0
    fresh_us = microseconds(hand_over_s)
    reaches_us = catch_up.reaches_s() * 1_000_000
    for instant in rule.newest_first(last_us, now_us):
        age_us = now_us - instant - (delay(instant) if delay else 0)
        if age_us < 0:
            continue
        upto = max(upto, instant)
        if age_us > fresh_us and (age_us > reaches_us or not _wants_more(catch_up, len(send))):
            skipped = min(rule.count(last_us, upto) - len(send), MOST_SKIPPED)
            break
        send.append(instant)
    return Due(tuple(reversed(send)), upto, skipped)


def _wants_more(catch_up: CatchUp, taken: int) -> bool:
    """Say whether one more missed instant is to be sent, besides the newer ones that were taken already."""
    most = {"none": 0, "latest": 1, "all": catch_up.limit}[catch_up.policy]
    return taken < most


def jitter(key: str, instant_us: int, spread_s: float, next_us: int | None) -> int:
    """Return how long after its instant an occurrence is due, in microseconds: from 0 until just before the spread.

    Every node computes the same. It stays below the distance to the next instant (None: there is none),
    so that occurrences keep their order.
    """
    spread_us = microseconds(spread_s)
    if next_us is not None:
        spread_us = min(spread_us, next_us - instant_us)
    digest = blake2b(json.dumps([key, instant_us]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") * max(spread_us, 0) >> 64
