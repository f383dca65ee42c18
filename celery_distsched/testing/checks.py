"""What the tests of the contract are made of."""
# ruff: noqa: S101  (these are tests: what they claim, they assert)

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from celery_distsched.drivers.base import Driver, Swap
from celery_distsched.errors import StoreError, StoreUnavailable

T = TypeVar("T")

#: Distinct texts that a careless driver takes for one another, for a pattern, a path, an escape or an end.
ODD_TEXTS = (
    *("*", "?", "[a]", "a", "A", "/", "a/", "/a", "a/b", "a//b", "..", "a/../b", ".", ":", "a:b", "%", "%2F", "%41"),
    *("+", " ", " a", "a ", "a b", "\n", "a\nb", "\t", "'", '"', "\\", "\\n", "{a}", "{", "}", "#", "&", "=", ";"),
    *("|", "$1", "_", "-", "ü", "u\u0308", "\N{SNOWMAN}", "\N{GRINNING FACE}", "nodes", "ledger", "None", "0"),
    *("\0", "a\0", "a\0b", "\r", "\x7f", "\x1b[0m", "%00", "%s", "{0}", "~", "^", "!", "@", ","),
    *("x" * 300, "x" * 299 + "y", "x" * 3000, "x" * 2999 + "y", "\N{GRINNING FACE}" * 500, "/" * 500, "../" * 100),
)  # fmt: skip


def every_call(driver: Driver) -> list[Callable[[], Any]]:
    """Each method of a driver, to be called in this order: all work where the store does."""
    return [
        partial(driver.join, "me", "joined"),
        partial(driver.renew, "me", "renewed"),
        driver.members,
        partial(driver.swap, [Swap("entry", None, "new"), Swap("other", "old", "new")], fence="me"),
        partial(driver.read, ["entry", "other"]),
        partial(driver.remove, "nobody"),
    ]


def refused(error: type[StoreError], call: Callable[..., Any], *args: Any) -> StoreError:
    """Return the error that the call must raise; any other escapes."""
    try:
        answer = call(*args)
    except error as raised:
        return raised
    raise AssertionError(f"{call} answered {answer!r}; {error.__name__} was expected")


def fails_in_bounded_time(driver: Driver, call: Callable[[], Any]) -> None:
    """Check that the store is said to be unavailable within the driver's timeout and a second."""
    started = time.monotonic()
    error = refused(StoreUnavailable, call)
    took = time.monotonic() - started
    assert took < driver.timeout_s + 1, f"{call} took {took:.2f} s to say {error}"


def recovered(call: Callable[[], T]) -> T:
    """Return the call's first answer; there must be one within a second."""
    deadline = time.monotonic() + 1
    while True:
        try:
            return call()
        except StoreUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def poll(condition: Callable[[], bool], within_s: float) -> None:
    """Wait until the condition holds; fails after so many seconds."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s:g} s"
        time.sleep(0.002)


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Run the calls in threads that start together; their answers in order, or the first error."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        barrier.wait(10)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def forked(work: Callable[[], None]) -> int:
    """Do this in a forked process; returns its id."""
    with warnings.catch_warnings():
        # Newer Pythons warn of every fork beside threads. The driver has none, and nothing else is used there.
        warnings.simplefilter("ignore")
        child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    except BaseException:  # noqa: BLE001  (whatever it is, the forked test must not go on)
        traceback.print_exc()
    finally:
        os._exit(status)


def ended_well(child: int, within_s: float) -> None:
    """Check that a forked process has ended, and without an error."""
    deadline = time.monotonic() + within_s
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError(f"the forked process did not end within {within_s:g} s")
        time.sleep(0.01)
    assert ended[1] == 0, "the forked process failed: its output has its error"


def chunks(texts: tuple[str, ...], size: int) -> Iterator[list[str]]:
    """Cut into lists of at most this size."""
    rest = iter(texts)
    return iter(lambda: list(itertools.islice(rest, size)), [])


@contextmanager
def io_of_this_thread() -> Iterator[list[str]]:
    """Collect the files and connections that this thread opens, as the interpreter's audit events."""
    seen: list[str] = []
    watching, me = True, threading.get_ident()
    events = ("open", "socket.connect", "socket.getaddrinfo", "sqlite3.connect", "subprocess.Popen")

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if watching and event in events and threading.get_ident() == me:
            seen.append(f"{event}{args!r}")

    sys.addaudithook(hook)  # there is no taking it out again: `watching` silences it
    try:
        yield seen
    finally:
        watching = False
