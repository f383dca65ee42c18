"""The servers of a test run, wires to them, and the rule that a test leaves no thread behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from typing import Any
from weakref import WeakSet

import hypothesis
import pytest

from tests.figures import Figure, figures_file
from tests.servers import ConsulServer, EtcdServer, RabbitServer, RedisServer, Server
from tests.wire import Wire

# How long an example takes is the machine's affair: another process beside it must not redden a test.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

#: Seconds that a thread gets to end after the test.
GRACE_S = 2.0
# Started by a fixture that outlives the test.
_lasting: WeakSet[threading.Thread] = WeakSet()

# One server of each kind serves the whole run. A test that breaks it puts it back; one that needs it otherwise starts
# its own.


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def etcd_server() -> Iterator[EtcdServer]:
    with EtcdServer() as server:
        yield server


@pytest.fixture(scope="session")
def consul_server() -> Iterator[ConsulServer]:
    with ConsulServer() as server:
        yield server


@pytest.fixture(scope="session")
def rabbit_server() -> Iterator[RabbitServer]:
    with RabbitServer() as server:
        yield server


@pytest.fixture
def wire_to() -> Iterator[Callable[[Server], Wire]]:
    """Make wires to servers: ``server.url(port=wire_to(server).port)``. They end with the test."""
    with ExitStack() as wires:
        yield lambda server: wires.enter_context(Wire(server.port, server.host))


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Iterator[Figure]:
    """Takes what the test measures of a promise, and keeps it if the test passes."""
    failed, figure = request.session.testsfailed, Figure(request.node.nodeid)
    yield figure
    if request.session.testsfailed == failed:
        figure.keep()


#: They take long, wait most of the time, and are collected last: begun last, they would keep all the others waiting.
_FIRST = "tests/workers/"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the longest wait first; where figures are asked for, run the tests that measure something, and no others."""
    items.sort(key=lambda item: not item.nodeid.startswith(_FIRST))
    if figures_file() is None:
        return
    measuring: dict[bool, list[pytest.Item]] = {True: [], False: []}
    for item in items:
        measuring["figure" in getattr(item, "fixturenames", ())].append(item)
    config.hook.pytest_deselected(items=measuring[False])
    items[:] = measuring[True]


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
    if fixturedef.scope == "function":
        return (yield)
    before = set(threading.enumerate())
    try:
        return (yield)
    finally:
        _lasting.update(set(threading.enumerate()) - before)


@pytest.fixture(autouse=True)
def leaves_no_thread() -> Iterator[None]:
    """Fail a test whose threads, daemons too, go on after it."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + GRACE_S
    while left := _left_behind(before):
        if time.monotonic() > deadline:
            pytest.fail(f"the test left threads behind: {', '.join(thread.name for thread in left)}")
        time.sleep(0.01)


def _left_behind(before: set[threading.Thread]) -> list[threading.Thread]:
    return [
        thread
        for thread in threading.enumerate()
        # A thread that Python did not start (a C library's) shows up for good once it has called into Python.
        if thread not in before and thread not in _lasting and not isinstance(thread, threading._DummyThread)
    ]
