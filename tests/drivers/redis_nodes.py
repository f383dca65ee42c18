"""Fixtures that open Redis drivers by URL, and what the tests ask of their errors."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from celery_distsched.drivers import Driver, StoreUrl, open_driver
from celery_distsched.errors import StoreUnavailable

Open = Callable[..., Driver]


@pytest.fixture
def namespace() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def opened(namespace: str) -> Iterator[Open]:
    """Open drivers by URL, closed with the test."""
    with ExitStack() as stack:

        def open_(url: str, *, ttl_s: float = 60.0, timeout_s: float = 5.0, **options: Any) -> Driver:
            driver = open_driver(
                StoreUrl.parse(url), namespace=namespace, ttl_s=max(ttl_s, 1.0), timeout_s=timeout_s, options=options
            )
            if ttl_s < 1.0:  # less than is allowed, so that expiry need not be waited for
                driver = type(driver)(driver.url, namespace=namespace, ttl_s=ttl_s, timeout_s=timeout_s)
            stack.callback(driver.close)
            return driver

        yield open_


def said(call: Callable[..., Any], *args: Any) -> str:
    """Return the text of the `StoreUnavailable` that the call must raise."""
    with pytest.raises(StoreUnavailable) as caught:
        call(*args)
    return str(caught.value)


def until(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def answers(call: Callable[[], Any], within_s: float) -> Any:
    """Return the first answer; until then the call may say that the store is unavailable, and nothing else."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            return call()
        except StoreUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
