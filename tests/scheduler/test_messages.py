"""A message is what `apply_async` makes of the entry, as with Celery's own beat, and carries our headers beside."""

from __future__ import annotations

import base64
import copy
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from celery import signals
from celery.beat import BeatLazyFunc

from celery_distsched.clock import iso
from celery_distsched.message import task_id
from tests.scheduler.cluster import Cluster
from tests.scheduler.message_cases import CASES, ORDINARY, UNKNOWN, Case, register
from tests.scheduler.messages import NAME, NewPair, Pair, Reader, Written
from tests.servers import RedisServer


@pytest.fixture
def new_pair(redis_server: RedisServer) -> Iterator[Callable[..., Pair]]:
    """Make an app whose broker is a Redis database that nobody else uses; `fast`: the ledger is there too."""
    broker = redis_server.url(path="/9")
    with ExitStack() as ends:

        def new(*, fast: bool, **conf: Any) -> Pair:
            reader = Reader(broker)
            ends.callback(reader.close)
            cluster = Cluster(broker if fast else "memory://messages", broker=broker)
            ends.callback(cluster.close)
            app = cluster.app({}, **{"task_default_queue": "celery", **conf})
            ends.callback(app.close)
            register(app)
            return Pair(cluster, reader, app, listens=not fast)

        yield new


@pytest.fixture
def pair(new_pair: Callable[..., Pair]) -> NewPair:
    return partial(new_pair, fast=False)


#: Headers that only ours have, and, before Celery 5.7, its own of that name.
_ADDED = ("periodic_task_name", "scheduled_at", "distsched_node", "celery_beat_task")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_message_is_what_celerys_own_beat_sends(pair: NewPair, case: Case) -> None:
    both = pair(**case.conf)
    ours = both.ours(_fresh(case.entry))
    is_like(ours, both.stock(_fresh(case.entry)))
    is_marked(ours, both)


@pytest.mark.parametrize("name", CASES)
def test_a_message_that_is_pushed_by_its_claim_is_the_same(
    new_pair: Callable[..., Pair], caplog: pytest.LogCaptureFixture, name: str
) -> None:
    case = CASES[name]
    caplog.set_level("DEBUG", "celery_distsched")
    both = new_pair(fast=True, **case.conf)
    ours = both.ours(_fresh(case.entry))
    assert (f"entry {NAME!r} goes the fast way" in caplog.text) == (name not in ORDINARY)
    is_like(ours, both.stock(_fresh(case.entry)))
    is_marked(ours, both)


def test_messages_of_one_kind_differ_by_what_is_their_own(
    new_pair: Callable[..., Pair], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "celery_distsched")
    arguments: list[tuple[list[Any], dict[str, Any]]] = [
        ([], {}),
        ([1, "zwei", None], {}),
        ([], {"a": 'quoted "text"', "b": "back\\slash"}),
        (["<task_id>", "%s {} \\u00e9 é \n"], {"ключ": [1.5, {"x": True}]}),
        (["long" * 1000], {"long": ["list"] * 500}),
        ([[]], {"args": []}),
        ([datetime(2030, 1, 2, tzinfo=timezone.utc), Decimal("1.50")], {"id": UUID(int=7)}),
    ]
    for task in (UNKNOWN, "plain"):
        entries = [
            {
                "task": task,
                "args": args,
                "kwargs": kwargs,
                "options": {"expires": 60, "priority": 3, "headers": {"a": 1}},
            }
            for args, kwargs in arguments
        ]
        both = new_pair(fast=True)
        ours = both.ours(*entries)
        assert caplog.text.count("goes the fast way") == len(entries)
        caplog.clear()
        is_like(ours, both.stock(*entries), in_order=False)
        is_marked(ours, both)


def test_a_message_from_a_template_expires_so_long_after_it_was_sent(new_pair: Callable[..., Pair]) -> None:
    both = new_pair(fast=True)
    # Two runs, a second apart.
    messages = both.ours({"task": UNKNOWN, "schedule": 1.0, "options": {"expires": 60}}, runs=2).messages
    expires = [datetime.fromisoformat(message["headers"]["expires"]) for message in messages]
    assert max(expires) - min(expires) > timedelta(seconds=0.8)


def _fresh(entry: dict[str, Any]) -> dict[str, Any]:
    """Return a copy whose options Celery's own beat may write to."""
    copied = dict(entry, options=dict(entry.get("options", {})))
    if "headers" in copied["options"]:
        copied["options"]["headers"] = dict(copied["options"]["headers"])
    return copied


def is_like(ours: Written, stock: Written, *, in_order: bool = True) -> None:
    """Fail if our run is anything but what Celery's is, with our headers added."""
    assert list(ours.lists) == list(stock.lists)
    assert ours.bindings == stock.bindings
    assert [channel for channel, _ in ours.published] == [channel for channel, _ in stock.published]
    assert ours.messages
    pairs = [list(map(_comparable, written.messages)) for written in (ours, stock)]
    if not in_order:
        pairs = [sorted(messages, key=lambda message: str(message["body"])) for messages in pairs]
    for mine, theirs in zip(*pairs, strict=True):
        _same(mine, theirs)
    assert [name for name, _ in ours.signals] == [name for name, _ in stock.signals]
    for (_, mine), (_, theirs) in zip(ours.signals, stock.signals, strict=True):
        _same(_told(mine), _told(theirs))


def is_marked(written: Written, pair: Pair) -> None:
    """Fail if one of our messages does not name its entry, its instant, its node, or has not the id that follows."""
    for message in written.messages:
        headers = message["headers"]
        if "hostname" in headers:
            # An event.
            continue
        name = headers["periodic_task_name"]
        record = pair.cluster.record(name)
        assert record is not None
        expected = task_id(pair.cluster.namespace, name, record.last)
        assert headers["scheduled_at"] == iso(record.last)
        assert headers["distsched_node"].startswith(f"{socket.gethostname()}-{os.getpid()}-")
        assert headers["celery_beat_task"] is True
        assert "distsched_attempt" not in headers
        assert message["properties"]["correlation_id"] == expected
        assert headers.get("id", expected) == expected


def _comparable(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message without its number, its body as text."""
    message = copy.deepcopy(message)
    assert message["properties"].pop("delivery_tag")
    body = base64.b64decode(message["body"])
    if "task" in message["headers"]:
        return _anonymous({**message, "body": body.decode("latin-1")}, message["headers"]["id"])
    # An event, or a message of the older protocol: what it is about is in its body.
    told = json.loads(body)
    told = {key: value for key, value in told.items() if key not in ("timestamp", "clock")}
    return _anonymous({**message, "body": told}, told["uuid"] if "uuid" in told else told["id"])


def _told(given: dict[str, Any]) -> dict[str, Any]:
    """Return what a signal's receiver was given, objects by their `repr`."""
    task = given["headers"].get("id") or given["body"]["id"]
    return _anonymous({key: value if isinstance(value, dict) else repr(value) for key, value in given.items()}, task)


def _anonymous(given: dict[str, Any], task: str) -> dict[str, Any]:
    """Take out the headers that only ours have, and put the same word for the task id wherever it stands."""
    given["headers"] = {name: value for name, value in given["headers"].items() if name not in _ADDED}

    def replaced(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: replaced(part) for key, part in value.items()}
        return value.replace(task, "TASK") if isinstance(value, str) else value

    result: dict[str, Any] = replaced(given)
    return result


def _same(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    for name in ("eta", "expires"):
        one, other = mine["headers"].get(name), theirs["headers"].get(name)
        if one and other:
            # Where the entry gives seconds, both count from the moment of sending.
            apart = datetime.fromisoformat(one) - datetime.fromisoformat(other)
            assert abs(apart) < timedelta(seconds=20), (name, one, other)
            mine["headers"][name] = other
    left, other_left = (side.get("properties", {}).get("expiration") for side in (mine, theirs))
    if left and other_left:
        # Milliseconds until a date.
        assert abs(int(left) - int(other_left)) < 20_000
        mine["properties"]["expiration"] = other_left
    assert mine == theirs


def test_an_instant_is_shown_in_utc(pair: NewPair) -> None:
    headers = pair(timezone="Asia/Tokyo").ours({"task": UNKNOWN}).message["headers"]
    assert headers["periodic_task_name"] == NAME
    assert datetime.fromisoformat(headers["scheduled_at"]).tzinfo == timezone.utc


def test_the_task_id_of_an_occurrence_is_the_same_in_every_release() -> None:
    # Nodes of two releases share a cluster during a deploy: another id would be another run.
    assert task_id("celery", "reports: daily", 1_700_000_000_000_000) == "5b6cd4ce-7593-5c01-9c35-e1b2670a3d28"
    assert task_id("a", "b", 1) != task_id("a", "b", 2) != task_id("b", "a", 2) != task_id("b", "a,2", 2)


def test_a_task_id_of_the_users_own_is_kept(pair: NewPair) -> None:
    entry = {"task": UNKNOWN, "options": {"task_id": "chosen"}}
    assert pair().ours(entry).message["headers"]["id"] == "chosen"


def test_entries_that_share_a_dict_share_no_headers(pair: NewPair) -> None:
    shared = {"tenant": "acme"}
    options = {"headers": shared, "queue": "reports"}
    written = pair().ours(
        {"task": UNKNOWN, "options": options}, {"task": "plain", "options": options}, {"task": "own way"}
    )
    names = [message["headers"]["periodic_task_name"] for message in written.messages]
    assert sorted(names) == [NAME, f"{NAME} too 1", f"{NAME} too 2"]
    assert [message["headers"]["tenant"] for message in written.messages] == ["acme"] * 3
    assert shared == {"tenant": "acme"}
    assert options == {"headers": {"tenant": "acme"}, "queue": "reports"}


def test_lazy_arguments_are_made_once_for_each_message(pair: NewPair) -> None:
    made: list[int] = []

    def make() -> int:
        made.append(1)
        return len(made)

    lazy = {"task": UNKNOWN, "args": (BeatLazyFunc(make),)}
    both = pair()
    assert json.loads(base64.b64decode(both.ours(lazy).message["body"]))[0] == [1]
    assert made == [1]


def test_what_a_receiver_changes_before_publishing_is_sent(pair: NewPair) -> None:
    def receive(headers: dict[str, Any], properties: dict[str, Any], **given: Any) -> None:
        headers["trace"] = "0af7"
        properties["correlation_id"] = "changed"

    signals.before_task_publish.connect(receive, weak=False)
    try:
        message = pair().ours({"task": UNKNOWN}).message
    finally:
        signals.before_task_publish.disconnect(receive)
    assert message["headers"]["trace"] == "0af7"
    assert message["properties"]["correlation_id"] == "changed"
