"""What a store must do, and nothing more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from celery_distsched.drivers.url import StoreUrl


class Member(NamedTuple):
    """One membership as the store shows it."""

    #: Differs after each renewal; compared for equality only (a counter, a revision).
    pulse: str
    #: What the node wrote at its last renewal.
    info: str


class Swap(NamedTuple):
    """Write `new` under `key` if and only if what is stored there is exactly `expected`."""

    key: str
    #: None: there must be no record yet.
    expected: str | None
    new: str


class Answer(NamedTuple):
    """What became of one swap."""

    won: bool
    #: What is stored after the call: `new` if won, else what stood in the way (None: nothing).
    record: str | None


class Push(NamedTuple):
    """A message as the broker's client would push it: to this list, this text."""

    key: str
    text: str


class Claim(NamedTuple):
    """A swap, and the messages that are pushed if it is won."""

    key: str
    expected: str | None
    new: str
    list_key: str
    messages: tuple[str, ...]


class PushRefused(NamedTuple):
    """The server would not push: nothing of this claim was done."""

    error: str


#: Waits for what became of claims that are on their way.
Pushing = Callable[[], Sequence["Answer | PushRefused"]]


class Elsewhere(Exception):
    """The broker is not this server: nothing was done."""


class Driver(ABC):
    """The membership of nodes in one store, and the ledger of what has run.

    A driver is passive: it owns connections and no thread, no timer, no retry loop and no policy.
    Each method makes one attempt, bounded by ``timeout_s`` seconds, and says what happened.

    Every driver promises (`celery_distsched.testing.DriverContract` checks all but 9 and 10, `WireContract` these too):

    1.  The constructor does no I/O; the first call connects.
    2.  After `join` or `renew` returns, the membership is in every reader's `members`, and its pulse differs
        from the one before.
    3.  A membership stays for at least ``ttl_s`` seconds after the start of its last renewal. What the store does by
        itself after that only cleans up: whether a node is dead is for the observer to say, on its own clock.
    4.  `renew` of a membership that is not there raises `LeaseLost` and does not bring it back.
    5.  `remove` takes a membership out at once, whoever calls it, and does nothing where there is none. With a pulse
        it does so, in one atomic step, only if that has not changed.
    6.  `swap` is exact: of two swaps with the same `expected` at most one wins, ever. The swaps of a batch stand alone:
        one that loses costs no other. A swap that loses answers with the record that stood in its way.
    7.  With a `fence`, each write happens in the same atomic step as the check that this membership is there; where
        it is not, nothing is written and `LeaseLost` is raised. Of a large batch a part may have been written before.
    8.  `read` answers in the order of its keys, None for those without a record.
    9.  Errors are `LeaseLost` or `StoreUnavailable`, never the client's own, and never show a password.
        Silence is never an empty answer: a failed read raises, within about ``timeout_s`` seconds.
    10. After an error the next call stands on its own feet: it connects again by itself, without penalty.
    11. Methods may be called from two threads at a time; a renewal does not wait for a swap's network.
    12. `close` may be called twice, and does not raise.
    13. Keys, memberships and namespaces are any non-empty text; nothing of another namespace is read or touched.
    14. A forked process may go on with a driver: it gets connections of its own and leaves the parent's alone.
    """

    #: Smallest ``ttl_s`` that the store honours, in seconds.
    min_ttl_s: ClassVar[float] = 1.0
    #: Most swaps in one `swap`, and most keys in one `read`.
    max_batch: ClassVar[int] = 1000
    #: The server behind the address, as of the last join: another after a failover, or where the data were replaced.
    #: Empty where the store cannot tell. A store that comes back as it was some time ago is known by it.
    incarnation: str = ""
    #: What a URL's query and ``distsched_driver_options`` may hold, each with what makes its value from text.
    options: ClassVar[Mapping[str, Any]] = {}

    def __init__(
        self, url: StoreUrl, *, namespace: str, ttl_s: float, timeout_s: float, options: Mapping[str, Any] | None = None
    ) -> None:
        """Keep what is needed to connect later.

        Args:
            url: Where the store is.
            namespace: Prefix of every key.
            ttl_s: Seconds without a renewal after which a node counts as dead.
            timeout_s: Bound of one call, in seconds.
            options: Those of the URL's query and of ``distsched_driver_options``, already converted.
        """
        self.url = url
        self.namespace = namespace
        self.ttl_s = ttl_s
        self.timeout_s = timeout_s
        self.settings = dict(options or {})

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url.masked} namespace={self.namespace!r}>"

    # Membership

    @abstractmethod
    def join(self, membership: str, info: str) -> int | None:
        """Make this membership a member; doing it again is no error.

        Returns:
            The store's own clock in microseconds since the epoch, or None where the store has none to ask.
        """

    @abstractmethod
    def renew(self, membership: str, info: str) -> int | None:
        """Show that the node lives. Raises `LeaseLost` if the membership is gone. Returns what `join` returns."""

    @abstractmethod
    def members(self) -> dict[str, Member]:
        """Return every membership that the store holds, the dead among them until somebody removes them."""

    @abstractmethod
    def remove(self, membership: str, pulse: str | None = None) -> bool:
        """Take a membership out: one's own to leave, a dead node's to void its fence.

        Args:
            membership: Which.
            pulse: Only as long as this is its pulse: a node that has just renewed is not dead.

        Returns:
            Whether it is out; False if it has another pulse by now.
        """

    # Ledger

    @abstractmethod
    def read(self, keys: Sequence[str]) -> list[str | None]:
        """Return the records under these keys (at most `max_batch`)."""

    @abstractmethod
    def swap(self, swaps: Sequence[Swap], fence: str | None = None) -> list[Answer]:
        """Try each swap (at most `max_batch`, no key twice).

        Args:
            swaps: What to write.
            fence: The membership that must be there for anything to be written; None: no condition.

        Raises:
            LeaseLost: The fence is not there; nothing is written any more.
            StoreUnavailable: What was written is unknown. Repeat the same batch, unchanged, until it is answered.
        """

    def swapping(self, swaps: Sequence[Swap], fence: str | None = None) -> Callable[[], list[Answer]]:
        """Begin a `swap`; done by then, unless the store's client can go on without its answers.

        Returns:
            What waits for them, to be called once; it returns and raises what `swap` does.
        """
        answers = self.swap(swaps, fence)
        return lambda: answers

    def warnings(self) -> list[str]:
        """Return what the operator should know of this store, each with its mend; asked once, after the first join."""
        return []

    @abstractmethod
    def close(self) -> None:
        """Let go of the connections. A later call connects again."""
