"""What a seed chooses before its world begins: how large the cluster is, what it runs, and what may happen to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Literal

CALM, BUSY = "calm", "busy"


@dataclass(frozen=True)
class EntryPlan:
    every_s: int
    catch_up: Literal["latest", "all", "none"]
    jitter_s: float = 0.0


@dataclass(frozen=True)
class Plan:
    """One cluster's life."""

    #: calm: intervals of minutes to hours, and an episode of faults now and then. busy: seconds, and one long storm.
    kind: str
    nodes: int
    entries: tuple[EntryPlan, ...]
    delivery: str
    #: Claim and push in one step.
    same_redis: bool
    #: Otherwise: send what is claimed in slices, and claim the next meanwhile.
    slices: bool
    #: Whether the store has a clock to ask (as Redis has), or not (as etcd and Consul).
    store_clock: bool
    #: Whether the store says which server it is (as Redis and SQLite do), or not (as etcd and Consul).
    store_name: bool
    #: Most swaps that the store does in one step (etcd's limit); what is larger may be written in part.
    most_at_once: int
    #: The wall clocks of the hosts are wrong by up to this.
    skew_s: float
    #: Whether a deploy may change what there is to run.
    deploys: bool
    #: Whether the hosts' wall clocks may step by an hour.
    steps: bool
    #: Mean time between two episodes of faults.
    gap_s: float
    #: The nodes' TTLs, in turn: a deploy may have changed it. The first is the longest.
    ttls_s: tuple[float, ...] = (5.0,)

    @classmethod
    def of(cls, seed: int) -> Plan:
        random = Random(f"plan {seed}")
        kind = BUSY if seed % 4 == 3 else CALM
        same_redis = random.random() < 0.25
        intervals = (2, 3, 5, 17, 31) if kind == BUSY else (600, 1200, 1800, 3600, 7200, 14400)
        policies: tuple[Literal["latest", "all", "none"], ...] = ("all", "all", "latest", "none")
        entries = tuple(
            EntryPlan(
                random.choice(intervals),
                random.choice(policies),
                random.choice((0.0, 0.0, 0.0, 0.3 if kind == BUSY else 20.0)),
            )
            for _ in range(random.choice((4, 8, 12)))
        )
        return cls(
            kind=kind,
            nodes=random.choice((1, 2, 3, 3, 4, 5)),
            entries=entries,
            delivery="at_most_once" if random.random() < 0.35 else "at_least_once",
            same_redis=same_redis,
            store_clock=same_redis or random.random() < 0.6,
            skew_s=random.choice((0.0, 0.05, 0.4)),
            deploys=random.random() < 0.3,
            steps=random.random() < 0.3,
            gap_s=random.choice((900.0, 3600.0, 7200.0)),
            store_name=(store_name := same_redis or random.random() < 0.5),
            most_at_once=12 if store_name else random.choice((2, 4, 12)),
            slices=not same_redis and random.random() < 0.5,
            ttls_s=random.choice(((5.0,), (5.0,), (5.0, 2.0))),
        )

    def but(self, **changes: object) -> Plan:
        return replace(self, **changes)  # type: ignore[arg-type]
