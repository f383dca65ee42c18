"""What somebody else wrote where our keys are: it is named once, and costs the others nothing."""

from __future__ import annotations

import base64
import json
import logging
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
import redis
from hypothesis import example, given
from hypothesis import strategies as st

from celery_distsched.drivers import Answer, Driver, StoreUrl, Swap, open_driver
from celery_distsched.drivers.parts import part, whole
from tests.servers import ConsulServer, EtcdServer, RedisServer
from tests.servers.process import ask

#: No UTF-8.
BYTES = b"\xff\xfe garbage"


@given(st.text(st.characters(exclude_categories=["Cs"])))
@example("".join(map(chr, range(256))))
def test_a_name_in_a_key_is_percent_encoded_and_leads_back(name: str) -> None:
    assert part(name) == quote(name, safe="")
    assert whole(part(name)) == (name or None)


class Store(NamedTuple):
    """A store, with ways to write past the driver."""

    url: str
    #: Write garbage where memberships are; returns a piece of what the log must name, or None where it is not told
    #: from a membership whose node wrote nonsense.
    spoil_members: Callable[[str], list[str]]
    #: Write bytes that are no text under the ledger's key "alien".
    spoil_record: Callable[[str], None]


@pytest.fixture
def namespace() -> str:
    return uuid.uuid4().hex


def _redis(server: RedisServer, scheme: str) -> Store:
    def client() -> Any:
        return redis.Redis(port=server.port)

    def members(namespace: str) -> list[str]:
        key = f"distsched:{{{namespace}}}:"
        with client() as there:
            if scheme == "redis+zset":
                there.zadd(f"{key}nodes", {BYTES: 1e300, b"inf": float("inf"), b"noinfo": 9e12})
                there.hset(f"{key}infos", BYTES, BYTES)
                return []
            there.sadd(f"{key}nodes", "bytes", "list", "word")
            there.set(f"{key}node:bytes", BYTES)
            there.set(f"{key}node:word", "word")
            there.rpush(f"{key}node:list", "x")
            return [f"{key}node:{name}" for name in ("bytes", "list", "word")]

    def record(namespace: str) -> None:
        with client() as there:
            there.hset(f"distsched:{{{namespace}}}:ledger", "alien", BYTES)

    return Store(server.url(scheme), members, record)


def _etcd(server: EtcdServer) -> Store:
    def put(key: str, value: bytes) -> None:
        body = {"key": base64.b64encode(key.encode()).decode(), "value": base64.b64encode(value).decode()}
        ask(server, "POST", "/v3/kv/put", body)

    def members(namespace: str) -> list[str]:
        place = f"/{namespace}/distsched/nodes/"
        for name in ("", "a b", "a/b", "%zz", "bytes"):
            put(f"{place}{name}", BYTES)
        return [f"'{place}'", f"{place}a b", f"{place}a/b", f"{place}%zz"]

    return Store(server.url(), members, lambda namespace: put(f"/{namespace}/distsched/ledger/alien", BYTES))


def _consul(server: ConsulServer) -> Store:
    def put(key: str, value: bytes) -> None:
        encoded = base64.b64encode(value).decode()
        ask(server, "PUT", "/v1/txn", [{"KV": {"Verb": "set", "Key": key, "Value": encoded}}])

    def members(namespace: str) -> list[str]:
        place = f"{namespace}/distsched/nodes/"
        # One of them says that it is another's.
        values = {
            "": b"",
            "bytes": BYTES,
            "list": b"[]",
            "thief": json.dumps({"membership": "me", "info": ""}).encode(),
            "nameless": json.dumps({"membership": 5, "info": "x"}).encode(),
            "deep": b"[" * 100_000,
        }
        for name, value in values.items():
            put(f"{place}{name}", value)
        put(f"{place}number", json.dumps({"membership": "number", "info": 5}).encode())
        return [f"'{place}'", *(f"{place}{name}" for name in ("bytes", "list", "thief", "nameless", "deep", "number"))]

    return Store(server.url(), members, lambda namespace: put(f"{namespace}/distsched/ledger/alien", BYTES))


def _sqlite(path: Path) -> Store:
    def members(namespace: str) -> list[str]:
        with closing(sqlite3.connect(path)) as db, db:
            for name, info in (("blob", BYTES), (BYTES, "x"), ("text", "CAST"), ("number", 5)):
                db.execute("INSERT INTO node VALUES (?, ?, 1, ?)", (namespace, name, info))
            db.execute(
                "UPDATE node SET pulse = 'no number', info = CAST(? AS TEXT) WHERE membership = 'text'", (BYTES,)
            )
        return []

    def record(namespace: str) -> None:
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("INSERT INTO ledger VALUES (?, 'alien', CAST(? AS TEXT))", (namespace, BYTES))

    return Store(f"sqlite:///{path}", members, record)


@pytest.fixture(params=["redis+scan", "redis+zset", "etcd", "consul", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "sqlite":
        return _sqlite(tmp_path / "store.sqlite3")
    server = request.getfixturevalue(f"{request.param.partition('+')[0]}_server")
    if isinstance(server, EtcdServer):
        return _etcd(server)
    return _consul(server) if isinstance(server, ConsulServer) else _redis(server, request.param)


@pytest.fixture
def node(store: Store, namespace: str) -> Iterator[Driver]:
    driver = open_driver(StoreUrl.parse(store.url), namespace=namespace, ttl_s=5.0, timeout_s=5.0, options={})
    with closing(driver):
        yield driver


def test_garbage_among_the_memberships_is_named_once_and_stops_nobody(
    store: Store, node: Driver, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "celery_distsched")
    node.join("me", "info")
    named = store.spoil_members(namespace)
    for count in range(3):
        node.renew("me", f"info {count}")
        assert node.members()["me"].info == f"info {count}"
        assert node.swap([Swap(f"entry-{count}", None, "1")], fence="me") == [Answer(True, "1")]
    node.join("another", "info")
    for name in named:
        assert caplog.text.count(name) == 1, (name, caplog.text)
    # What cannot be told from a node's own nonsense shows as a member, and anybody may remove it, as they do the dead.
    for strange in set(node.members()) - {"me", "another"}:
        assert not named or strange == "bytes"
        node.remove(strange)
    node.remove("me")
    node.remove("another")
    left = node.members()
    assert not [name for name in left if "\\x" not in name], left


def test_a_record_that_is_no_text_loses_its_swap_and_no_other(store: Store, node: Driver, namespace: str) -> None:
    node.swap([Swap("entry", None, "1")])
    store.spoil_record(namespace)
    (alien, record) = node.read(["alien", "entry"])
    assert isinstance(alien, str)
    assert record == "1"
    answers = node.swap([Swap("alien", None, "x"), Swap("entry", "1", "2"), Swap("alien 2", alien, "x")])
    assert answers == [Answer(False, alien), Answer(True, "2"), Answer(False, None)]
    assert node.swap([Swap("alien", "\ufffd garbage", "x")]) == [Answer(False, alien)]
