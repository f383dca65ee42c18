"""One node's two ways to its broker, fast and ordinary, tried on the same occurrence, and what each leaves in Redis."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import redis
from celery import Celery
from celery.exceptions import CDeprecationWarning

from celery_distsched import DistributedScheduler
from celery_distsched.drivers.base import Answer, Claim
from celery_distsched.entries import PlannedEntry
from celery_distsched.fast_way import FastWay
from celery_distsched.outcome import Outcome
from celery_distsched.same_redis import SameRedis

#: Any moment; its text has microseconds in it, as that of a real one nearly always has.
INSTANT_US = 1_700_000_000_123_456
_OURS = b"distsched:"


@dataclass
class Left:
    """What one message has left in the broker's database."""

    #: Redis key → texts in that list, the newest first.
    lists: dict[bytes, list[bytes]] = field(default_factory=dict)
    #: Redis key → seconds until it expires, for those that do.
    expiring: dict[bytes, int] = field(default_factory=dict)


class TwoWays:
    """A scheduler, the way that claims and pushes in one call, and the way through `apply_async`."""

    def __init__(self, app: Celery, url: str) -> None:
        app.conf.update(broker_url=url, distsched_url=url, distsched_namespace="two ways", result_expires=None)
        self.app = app
        self.scheduler = DistributedScheduler(app)
        self.way = FastWay(self.scheduler, self.scheduler.node_id)
        self.client: Any = redis.Redis.from_url(url)
        self._ends = ExitStack()
        for end in (self.client.close, app.close, self.scheduler.close, self.scheduler.driver.close):
            self._ends.callback(end)
        self.client.flushdb()
        self.scheduler.driver.join("me#1", "{}")
        self._looks = 0

    def close(self) -> None:
        self._ends.close()

    def __enter__(self) -> TwoWays:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def planned(self) -> dict[str, PlannedEntry]:
        """Return the entries of the app that can work at all."""
        return self.scheduler._plan()

    def ready(self) -> SameRedis | None:
        """Return the fast way, if there is one; looked at anew."""
        self._looks += 60
        return self.way.same_redis(self._looks)

    def fast(self, planned: PlannedEntry, instant_us: int = INSTANT_US) -> Left | None:
        """Claim and push; None where the entry goes the ordinary way."""
        same = self.ready()
        assert same is not None, "there is no fast way"
        self.way.set_entries({planned.name: planned})
        pushes = self.way.messages({planned.name: [instant_us]}).get(planned.name)
        if pushes is None:
            return None
        claim = Claim(planned.name, None, "pushed", pushes[0].key, tuple(push.text for push in pushes))
        (answer,) = same.claim_and_push([claim], "me#1")()
        assert answer == Answer(True, "pushed")
        return self._take()

    def ordinary(self, planned: PlannedEntry, instant_us: int = INSTANT_US) -> Left:
        """Send by `apply_async`."""
        assert self.scheduler._send(planned, instant_us, 1) is Outcome.ACCEPTED
        return self._take()

    def _take(self) -> Left:
        """Return what is in the queues, and empty them and the ledger."""
        left = Left()
        for key in sorted(self.client.keys("*")):
            if key.startswith(_OURS):
                if key.endswith(b"ledger"):
                    self.client.delete(key)
            elif self.client.type(key) == b"list":
                left.lists[key] = self.client.lrange(key, 0, -1)
                if (ttl := self.client.ttl(key)) >= 0:
                    left.expiring[key] = ttl
                self.client.delete(key)
        return left


def same(fast: Left, ordinary: Left) -> None:
    """Fail unless both are the same, byte for byte, but for the delivery tag and the moment from which times count."""
    assert fast.expiring == ordinary.expiring
    assert list(fast.lists) == list(ordinary.lists)
    for key, texts in fast.lists.items():
        for mine, theirs in zip(texts, ordinary.lists[key], strict=True):
            assert _timeless(mine, theirs) == _timeless(theirs, theirs)


def _timeless(text: bytes, other: bytes) -> str:
    """Return a text with what may differ from the other's taken from that one."""
    message, model = json.loads(text), json.loads(other)
    result = text.decode()
    result = result.replace(message["properties"]["delivery_tag"], model["properties"]["delivery_tag"])
    for name in ("expires", "eta"):
        mine, theirs = message["headers"].get(name), model["headers"].get(name)
        if mine and theirs and mine != theirs:
            apart = datetime.fromisoformat(mine) - datetime.fromisoformat(theirs)
            assert abs(apart) < timedelta(seconds=20), (name, mine, theirs)
            assert mine[-6:] == theirs[-6:], f"{name}: {mine} and {theirs} are not of one timezone"
            result = result.replace(mine, theirs)
    return result


def timeless(sent: Any, other: Any) -> Any:
    """Return what was sent without what may differ: a text of Redis, or body and properties of RabbitMQ."""
    if isinstance(sent, bytes):
        return _timeless(sent, other)
    body, properties = sent
    headers = dict(properties["application_headers"])
    if headers["expires"] is not None:
        apart = datetime.fromisoformat(headers["expires"]) - datetime.fromisoformat(
            other[1]["application_headers"]["expires"]
        )
        assert abs(apart) < timedelta(seconds=20)
        headers["expires"] = "then"
    return body, {**properties, "application_headers": headers}


def app_of(schedule: Mapping[str, Mapping[str, Any]], **conf: Any) -> Celery:
    """Return an app with these entries, hourly unless they say otherwise, and some tasks to send."""
    app = Celery("two ways", set_as_current=False)
    app.conf.update(
        **conf,
        beat_schedule={name: {"task": UNKNOWN, "schedule": 3600.0, **entry} for name, entry in schedule.items()},
    )

    def plain(*args: Any, **kwargs: Any) -> None: ...

    def typed(left: Any, right: Any = 0) -> None: ...

    # `shared`: a task would else belong to the apps of all tests.
    app.task(plain, name="plain", shared=False)
    app.task(typed, name="typed", shared=False)
    app.task(typed, name="untyped", typing=False, shared=False)
    app.task(plain, name="own", expires=90, priority=6, queue="its own", ignore_result=True, shared=False)
    app.task(plain, name="limited", soft_time_limit=5, time_limit=9, delivery_mode=1, shared=False)
    app.task(plain, name="packed", serializer="pickle", compression="zlib", shared=False)
    with warnings.catch_warnings():
        # Celery would have a task's queue and priority written as a route; many are not.
        warnings.simplefilter("ignore", CDeprecationWarning)
        app.finalize()
    return app


#: No worker knows it, and beat need not.
UNKNOWN = "nobody.runs.it"
