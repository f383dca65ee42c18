"""The store under test, and the drivers that one test opens on it."""

from __future__ import annotations

import uuid

from celery_distsched.drivers.base import Driver


class StoreUnderTest:
    """Makes the nodes of a test: drivers with a client each, in a namespace that no other test has."""

    def make_driver(self, *, namespace: str, ttl_s: float, timeout_s: float) -> Driver:
        """Return a new driver, with a client of its own, on the store under test."""
        raise NotImplementedError

    def setup_method(self) -> None:
        self.namespace = f"contract-{uuid.uuid4().hex}"
        self._opened: list[Driver] = []

    def teardown_method(self) -> None:
        for driver in self._opened:
            driver.close()

    def node(self, namespace: str | None = None, *, ttl_s: float = 60.0, timeout_s: float = 5.0) -> Driver:
        """Return another node of this test's namespace, closed when the test is over."""
        driver = self.make_driver(namespace=namespace or self.namespace, ttl_s=ttl_s, timeout_s=timeout_s)
        self._opened.append(driver)
        return driver
