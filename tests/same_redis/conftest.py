"""The database that is broker and store at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import pytest

from tests.same_redis.two_ways import TwoWays, app_of
from tests.same_redis.watched import Watch
from tests.scheduler.cluster import Cluster
from tests.servers import RedisServer


@pytest.fixture(scope="session")
def url(redis_server: RedisServer) -> str:
    """A database that no other test uses."""
    return redis_server.url(path="/7")


NewTwoWays = Callable[..., TwoWays]


@pytest.fixture
def two_ways(url: str) -> Iterator[NewTwoWays]:
    """Make an app and its two ways; call with a schedule and settings."""
    with ExitStack() as ends:

        def new(schedule: Mapping[str, Mapping[str, Any]], **conf: Any) -> TwoWays:
            return ends.enter_context(TwoWays(app_of(schedule, **conf), url))

        yield new


@pytest.fixture
def watch(url: str) -> Iterator[Watch]:
    """Listens to the server."""
    watch = Watch(url)
    yield watch
    watch.close()


@pytest.fixture
def cluster(url: str) -> Iterator[Cluster]:
    """Beats whose broker is their ledger's Redis."""
    cluster = Cluster(url, broker=url, ttl_s=5.0)
    yield cluster
    cluster.close()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return what the package has said so far, debug lines too."""
    caplog.set_level(logging.DEBUG, "celery_distsched")
    return lambda: [record.getMessage() for record in caplog.records if record.name.startswith("celery_distsched")]
