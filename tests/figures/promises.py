"""The rows and the columns: what is promised, and on which stores."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

STORES = {
    "redis+zset": "Redis (zset)",
    "redis+scan": "Redis (scan)",
    "sqlite": "SQLite",
    "consul": "Consul",
    "etcd": "etcd",
}
#: The README has one column for both ways of Redis.
COLUMNS = {"Redis": ("redis+zset", "redis+scan"), "SQLite": ("sqlite",), "Consul": ("consul",), "etcd": ("etcd",)}

RUNS, SECONDS, ALSO = "runs", "seconds", "also"


class Promise(NamedTuple):
    """One row."""

    title: str
    #: What may happen at most, as the README's table has it.
    bound: str
    #: Which of its figures stands in the README's table; every store must have one of this kind.
    kind: str
    #: Stores of which it is not said, and why.
    unsaid: Mapping[str, str] = MappingProxyType({})


_NO_QUEUE = "no broker keeps its queue there"
_ON_THE_HOST = "no beat alone is cut off from a file on its host; one that all cannot write to is under Store outage"

#: In the order of the README.
PROMISES = {
    "one claim": Promise("One claim", "none claimed twice", RUNS),
    "at least once": Promise("Delivery, at least once", "none lost", RUNS),
    "at most once": Promise("Delivery, at most once", "none twice", RUNS),
    "exactly once": Promise(
        "Exactly once enqueued",
        "none lost or twice",
        RUNS,
        dict.fromkeys(("sqlite", "consul", "etcd"), _NO_QUEUE),
    ),
    "failover": Promise("Failover after a crash", "TTL + 1 s (etcd: + 1.5)", SECONDS),
    "hand-over": Promise("Hand-over after SIGTERM", "1 s", SECONDS),
    "store outage": Promise("Store outage", "none lost or twice", RUNS),
    "store loss": Promise("Store loss", "2 × TTL", SECONDS),
    "broker outage": Promise("Broker outage", "none lost", RUNS),
    "trust": Promise("Trust: a node that hangs", "TTL + 1 s (etcd: + 1.5)", SECONDS),
    "no store": Promise("… is cut off from the store", "TTL + 1 s (etcd: + 1.5)", SECONDS, {"sqlite": _ON_THE_HOST}),
    "no broker": Promise("… or from the broker", "TTL + 1 s (etcd: + 1.5)", SECONDS),
    "clocks": Promise("Clocks", "none lost or twice", RUNS),
    "versions": Promise("Mixed versions", "none lost or twice", RUNS),
    "state": Promise("State survives", "none moved or repeated", RUNS),
    "nothing local": Promise("Nothing local", "no file of ours", RUNS),
    "bad entry": Promise("One bad entry", "none held up or unsaid", RUNS),
}
