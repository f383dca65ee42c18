"""Promises 9 to 12 when the network fails."""
# ruff: noqa: S101  (these are tests: what they claim, they assert)

from __future__ import annotations

import time
import traceback
import uuid
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Protocol

from celery_distsched.drivers.base import Answer, Driver, Swap
from celery_distsched.errors import DistschedError, StoreUnavailable
from celery_distsched.testing.checks import at_once, every_call, fails_in_bounded_time, recovered, refused
from celery_distsched.testing.store import StoreUnderTest


class Wire(Protocol):
    """A hop between client and server that breaks at will."""

    def cut(self) -> None:
        """Close every connection and refuse new ones."""

    def freeze(self) -> None:
        """Take connections and pass nothing."""

    def drop_replies(self) -> None:
        """Pass what the client says and swallow what the server answers."""

    def mend(self) -> None:
        """Work again."""


class NetworkContract(StoreUnderTest):
    """Puts a wire between the nodes and the store, and breaks it."""

    #: Lies between the store and the drivers of `make_driver_through_wire`; sound at the start of each test.
    wire: Wire

    def make_driver_through_wire(self, *, namespace: str, ttl_s: float, timeout_s: float) -> Driver:
        """Return what `make_driver` does, reaching the store through `wire`."""
        raise NotImplementedError

    def far(self, *, timeout_s: float = 0.5) -> Driver:
        """Return a node behind the wire."""
        driver = self.make_driver_through_wire(namespace=self.namespace, ttl_s=60.0, timeout_s=timeout_s)
        self._opened.append(driver)
        return driver

    def test_the_constructor_needs_no_server(self) -> None:
        self.wire.cut()
        driver = self.far()
        refused(StoreUnavailable, driver.members)
        self.wire.mend()
        assert recovered(driver.members) == {}

    def test_a_cut_connection_is_an_error_and_forgotten_when_it_is_back(self) -> None:
        self._every_call_fails_and_recovers(self.wire.cut, self.far())

    def test_a_frozen_server_is_an_error_in_bounded_time_and_forgotten_when_it_is_back(self) -> None:
        self._every_call_fails_and_recovers(self.wire.freeze, self.far())

    def test_a_lost_reply_is_an_error_in_bounded_time_and_forgotten_when_it_is_back(self) -> None:
        self._every_call_fails_and_recovers(self.wire.drop_replies, self.far())

    def _every_call_fails_and_recovers(self, fail: Callable[[], None], driver: Driver) -> None:
        for call in every_call(driver):
            call()
            fail()
            fails_in_bounded_time(driver, call)
            self.wire.mend()
            recovered(call)
        assert recovered(driver.members)["me"].info == "renewed"

    def test_a_first_connection_to_a_broken_server_fails_in_bounded_time(self) -> None:
        self.node().join("me", "")
        for fail in (self.wire.cut, self.wire.freeze, self.wire.drop_replies):
            fail()
            for call in every_call(self.far(timeout_s=0.3)):
                fails_in_bounded_time(self._opened[-1], call)
            self.wire.mend()
            assert list(recovered(self._opened[-1].members)) == ["me"]

    def test_a_late_reply_is_not_taken_for_that_of_the_next_call(self) -> None:
        near, far = self.node(), self.far()
        near.swap([Swap("a", None, "a"), Swap("b", None, "b")])
        for _ in range(3):
            assert recovered(partial(far.read, ["a"])) == ["a"]
            self.wire.freeze()
            refused(StoreUnavailable, far.read, ["a"])
            self.wire.mend()
            assert recovered(partial(far.read, ["b", "none"])) == ["b", None]
            assert far.members() == {}

    def test_a_swap_of_unknown_outcome_is_answered_when_it_is_repeated(self) -> None:
        near, far = self.node(), self.far()
        near.swap([Swap("taken", None, "theirs")])
        far.join("me", "")
        for count, fail in enumerate((self.wire.drop_replies, self.wire.freeze, self.wire.cut)):
            batch = [Swap(f"entry-{count}", None, "mine"), Swap("taken", None, "mine")]
            fail()
            refused(StoreUnavailable, far.swap, batch, "me")
            self.wire.mend()
            first, second = recovered(partial(far.swap, batch, "me"))
            assert first.record == "mine", "won, or lost to itself"
            assert second == Answer(False, "theirs")
            assert near.read([swap.key for swap in batch]) == ["mine", "theirs"]

    def test_a_renewal_does_not_wait_for_a_swap_that_hangs(self) -> None:
        driver = self.far(timeout_s=1.5)
        driver.join("me", "")
        at_once(driver.members, partial(driver.read, ["entry"]))  # so that a connection is there for each
        self.wire.freeze()
        started = time.monotonic()
        at_once(
            *(partial(refused, StoreUnavailable, driver.swap, [Swap("entry", None, "x")], "me") for _ in range(2)),
            partial(refused, StoreUnavailable, driver.renew, "me", ""),
        )
        assert time.monotonic() - started < 1.5 + 1, "one waited for the other"

    def test_close_is_quiet_and_quick_when_the_server_is_gone(self) -> None:
        for fail in (self.wire.cut, self.wire.freeze):
            driver = self.far()
            driver.join("me", "")
            fail()
            started = time.monotonic()
            driver.close()
            driver.close()
            assert time.monotonic() - started < driver.timeout_s + 1
            self.wire.mend()
            recovered(partial(driver.renew, "me", ""))

    def test_a_password_is_never_shown(self) -> None:
        driver, secret = self.far(), f"secret-{uuid.uuid4().hex}"
        url = replace(driver.url, username="somebody", password=secret)
        shown = [str(url), repr(url)]
        for state in (self.wire.mend, self.wire.cut, self.wire.freeze):
            state()
            try:
                stranger = type(driver)(
                    url, namespace=self.namespace, ttl_s=60.0, timeout_s=0.5, options=driver.settings
                )
                self._opened.append(stranger)
                shown += [str(stranger), repr(stranger)]
                stranger.members()
            except DistschedError as error:
                shown += [repr(error), *traceback.format_exception(error)]
        assert secret not in "".join(shown)
