"""What is particular to Consul: its indexes, its keys, contention, and its two client libraries."""
# ruff: noqa: F811  (fixtures are imported by their names)

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import subprocess
import sys
import uuid
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from celery_distsched.drivers import Answer, Swap
from celery_distsched.drivers.consul import ConsulDriver, _Seen
from celery_distsched.drivers.consul_client import Reply
from celery_distsched.errors import LeaseLost
from celery_distsched.testing.checks import at_once, chunks, fails_in_bounded_time
from tests.drivers.consul_nodes import Opener, namespace, node, open_at  # noqa: F401
from tests.servers import ConsulServer
from tests.servers.process import ask

_ROOT = Path(__file__).resolve().parents[2]


def _stored(server: ConsulServer, prefix: str) -> dict[str, dict[str, Any]]:
    return {entry["Key"]: entry for entry in ask(server, "GET", f"/v1/kv/{prefix}/?recurse&consistent")}


def _entry(server: ConsulServer, key: str) -> dict[str, Any]:
    (entry,) = ask(server, "GET", f"/v1/kv/{key}?consistent")
    assert isinstance(entry, dict)
    return entry


def _place(driver: ConsulDriver, key: str) -> str:
    return f"{driver.namespace}/distsched/ledger/{key}"


def _count_transactions(driver: ConsulDriver) -> list[int]:
    """Collect how many operations each transaction of the driver has from now on."""
    sizes: list[int] = []
    transact = driver._agents.transact

    def counted(operations: Any, deadline: float, **how: Any) -> Reply:
        sizes.append(len(operations))
        return transact(operations, deadline, **how)

    driver._agents.transact = counted  # type: ignore[method-assign]
    return sizes


# Indexes


def test_the_pulse_is_the_index_of_the_memberships_key(
    node: Opener, consul_server: ConsulServer, namespace: str
) -> None:
    driver = node()
    driver.join("me", "info")
    for _ in range(3):
        driver.renew("me", "info")
        stored = _stored(consul_server, namespace)[f"{namespace}/distsched/nodes/me"]
        assert driver.members()["me"].pulse == str(stored["ModifyIndex"])
        assert json.loads(base64.b64decode(stored["Value"])) == {"membership": "me", "info": "info"}


def test_a_full_fenced_batch_is_one_transaction_when_its_records_are_remembered(
    node: Opener, consul_server: ConsulServer, namespace: str
) -> None:
    driver = node()
    driver.join("me", "")
    sizes = _count_transactions(driver)
    keys = [f"entry-{n}" for n in range(driver.max_batch)]
    for expected, new in ((None, "1"), ("1", "2"), ("2", "3")):
        swaps = [Swap(key, expected, new) for key in keys]
        assert driver.swap(swaps, fence="me") == [Answer(True, new)] * 63
    assert sizes == [64, 64, 64]
    stored = _stored(consul_server, f"{namespace}/distsched/ledger")
    assert len(stored) == 63
    assert len({entry["ModifyIndex"] for entry in stored.values()}) == 1


def test_a_record_that_is_not_remembered_is_read_before_it_is_swapped(node: Opener) -> None:
    writer, forgetful = node(), node()
    keys = [f"entry-{n}" for n in range(5)]
    writer.swap([Swap(key, None, "old") for key in keys])
    forgetful.join("me", "")
    forgetful._era = ("me", _Seen(limit=1))
    sizes = _count_transactions(forgetful)
    # With each write goes the question whether the membership is there.
    assert forgetful.swap([Swap(key, "old", "new") for key in keys]) == [Answer(True, "new")] * 5
    assert sizes == [5, 6]
    sizes.clear()
    assert forgetful.swap([Swap(key, "new", "newer") for key in keys]) == [Answer(True, "newer")] * 5
    assert sizes == [4, 6]


def test_the_index_of_a_consul_that_has_lost_its_data_is_not_taken_for_that_of_the_record(open_at: Opener) -> None:
    with ConsulServer() as server:
        driver, other = open_at(server.url()), open_at(server.url())
        driver.join("me", "")
        for count in range(100):  # more than a server writes by itself as it starts
            other.swap([Swap("filler", str(count - 1) if count else None, str(count))])
        keys = [f"entry-{n}" for n in range(20)]
        for key in keys:
            driver.swap([Swap(key, None, "claimed")])
        before = [_entry(server, _place(driver, key)) for key in keys]

        server.restart(empty=True)
        index = 0
        while index < before[0]["ModifyIndex"] - 1:
            ask(server, "PUT", "/v1/kv/filler", index)
            index = _entry(server, "filler")["ModifyIndex"]
        restored = open_at(server.url())
        for key in keys:
            restored.swap([Swap(key, None, "another")])
        after = [_entry(server, _place(driver, key)) for key in keys]
        fitting = [
            old["Key"] for old, new in zip(before, after, strict=True) if old["ModifyIndex"] == new["ModifyIndex"]
        ]
        assert fitting, "no index came twice: the test shows nothing"

        with pytest.raises(LeaseLost):
            driver.swap([Swap(key, "claimed", "confirmed") for key in keys], fence="me")
        assert driver.swap([Swap(key, "claimed", "confirmed") for key in keys]) == [Answer(False, "another")] * 20
        driver.join("me", "")
        assert driver.swap([Swap(key, "claimed", "confirmed") for key in keys]) == [Answer(False, "another")] * 20


def test_an_index_that_moved_under_the_same_record_is_no_loss(node: Opener) -> None:
    driver, other = node(), node()
    driver.swap([Swap("moved", None, "a"), Swap("lost", None, "a"), Swap("still", None, "a")])
    other.swap([Swap("moved", "a", "b"), Swap("lost", "a", "b")])
    other.swap([Swap("moved", "b", "a")])
    batch = [Swap("moved", "a", "c"), Swap("lost", "a", "c"), Swap("still", "a", "c"), Swap("none", "a", "c")]
    won = Answer(True, "c")
    assert driver.swap(batch) == [won, Answer(False, "b"), won, Answer(False, None)]
    assert other.read(["moved", "lost", "still", "none"]) == ["c", "b", "c", None]


def test_a_record_that_moves_for_ever_ends_a_swap_in_bounded_time(node: Opener) -> None:
    driver, other = node(timeout_s=0.5), node()
    driver.swap([Swap("restless", None, "a"), Swap("still", None, "a")])
    transact = driver._agents.transact

    def disturbed(operations: Any, deadline: float, *, reading: bool = False) -> Reply:
        if not reading:
            other.swap([Swap("restless", "a", "b")])
            other.swap([Swap("restless", "b", "a")])
        return transact(operations, deadline, reading=reading)

    driver._agents.transact = disturbed  # type: ignore[method-assign]
    fails_in_bounded_time(driver, partial(driver.swap, [Swap("restless", "a", "c"), Swap("still", "a", "c")]))
    assert other.read(["restless", "still"]) == ["a", "a"]


def test_a_renewal_goes_on_where_an_unheard_one_left_the_index(node: Opener) -> None:
    driver, unheard = node(), node()
    driver.join("me", "1")
    unheard.renew("me", "2")
    driver.renew("me", "3")
    assert unheard.members()["me"].info == "3"
    driver.remove("me")
    with pytest.raises(LeaseLost, match="'me'"):
        unheard.renew("me", "4")
    assert driver.members() == {}


def test_of_nodes_that_contend_for_many_entries_each_entry_is_won_once(node: Opener) -> None:
    keys = tuple(f"entry-{n}" for n in range(200))

    def claim(who: str) -> list[str]:
        driver, won = node(), []
        for batch in chunks(tuple(random.Random(who).sample(keys, len(keys))), driver.max_batch):
            answers = driver.swap([Swap(key, None, who) for key in batch])
            won += [key for key, answer in zip(batch, answers, strict=True) if answer.won]
        return won

    names = ("a", "b", "c")
    claims = at_once(*(partial(claim, who) for who in names))
    assert Counter(key for won in claims for key in won) == Counter(keys)
    reader = node()
    for who, won in zip(names, claims, strict=True):
        for batch in chunks(tuple(won), reader.max_batch):
            assert reader.read(batch) == [who] * len(batch)


# Keys


def test_no_key_is_longer_than_consul_allows(node: Opener, consul_server: ConsulServer) -> None:
    long = "é/" * 2000
    driver = node(namespace=f"{uuid.uuid4().hex}{long}")
    names = [f"{long}{end}" for end in ("a", "b")]
    for name in names:
        driver.join(name, name)
    assert driver.swap([Swap(name, None, name) for name in names], fence=names[0])[1].won
    assert {name: member.info for name, member in driver.members().items()} == {name: name for name in names}
    assert driver.read(names) == names
    stored = [key for key in _stored(consul_server, "") if key.startswith(driver.namespace[:32])]
    assert len(stored) == 4
    assert max(len(key.encode()) for key in stored) <= 512


def test_a_namespace_named_like_a_key_of_another_stays_outside_it(node: Opener, namespace: str) -> None:
    outer = node()
    for inside in (f"{namespace}/distsched/nodes", f"{namespace}/distsched/ledger"):
        node(namespace=inside).join("me", "")
        assert node(namespace=inside).swap([Swap("entry", None, "1")], fence="me") == [Answer(True, "1")]
    assert outer.members() == {}
    assert outer.read(["distsched/ledger/entry", "entry"]) == [None, None]


# The other client library


@pytest.fixture(scope="session")
def python_consul() -> Path:
    """A folder that holds python-consul 1.1.0, which has the module name of py-consul and so hides it."""
    folder = _ROOT / ".cache" / "python-consul-1.1.0"
    if not folder.exists():
        unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
        subprocess.run([*pip, "--target", str(unfinished), "python-consul==1.1.0"], check=True)
        shutil.move(unfinished, folder)
    return folder


@pytest.mark.timeout(300)
def test_python_consul_keeps_the_same_promises(python_consul: Path) -> None:
    run = (
        "import consul, sys, pytest; assert consul.__version__ == '1.1.0', consul.__file__; sys.exit(pytest.main(["
        "'-q', '-p', 'no:cacheprovider', 'tests/drivers/test_contract.py::TestConsul', '-k', "
        "'frozen or lost or unknown or history or largest or pulse or renewal or close'"
        "]))"
    )
    path = os.pathsep.join([str(python_consul), str(_ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", run],
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
