"""Fixtures that open Consul drivers, each with a client of its own, and close them after the test."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from celery_distsched.drivers import StoreUrl, open_driver
from celery_distsched.drivers.consul import ConsulDriver
from tests.servers import ConsulServer

Opener = Callable[..., ConsulDriver]


@pytest.fixture
def namespace() -> str:
    return f"test-{uuid.uuid4().hex}"


@pytest.fixture
def open_at(namespace: str) -> Iterator[Opener]:
    opened: list[ConsulDriver] = []

    def opener(url: str, *, namespace: str = namespace, timeout_s: float = 5.0, **options: Any) -> ConsulDriver:
        driver = open_driver(StoreUrl.parse(url), namespace=namespace, ttl_s=5.0, timeout_s=timeout_s, options=options)
        assert isinstance(driver, ConsulDriver)
        opened.append(driver)
        return driver

    yield opener
    for driver in opened:
        driver.close()


@pytest.fixture
def node(open_at: Opener, consul_server: ConsulServer) -> Callable[..., ConsulDriver]:
    return partial(open_at, consul_server.url())
