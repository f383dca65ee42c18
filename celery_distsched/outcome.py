"""What may become of an attempt to send a message, and what errors say of it, whoever's they are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum

#: What a Redis says, for which its client has no class of errors; that of a pipeline names the command before it.
_TAKES_NOTHING = re.compile(r"(^|caused error: )(MISCONF|NOREPLICAS|MASTERDOWN) ")


class Outcome(Enum):
    """What became of one attempt to send a message."""

    ACCEPTED = "accepted"  #: the broker has it
    REFUSED = "refused"  #: the broker could not be reached, or takes nothing from anybody: nothing can have left
    UNKNOWN = "unknown"  #: it was written, and no answer came
    REJECTED = "rejected"  #: the broker is well but will not take this message, or not now
    POSTPONED = "postponed"  #: the broker is well, and something else that the sending needs was out of reach
    FAILED = "failed"  #: no message could be made of the entry, and trying again would not help

    @property
    def meaning(self) -> str:
        """What is said to the user of an attempt that ended like this."""
        return _MEANING[self]


_MEANING = {
    Outcome.ACCEPTED: "the broker has it",
    Outcome.REFUSED: "the broker cannot be reached, or takes nothing, and this run is sent when it does",
    Outcome.UNKNOWN: "the broker did not answer",
    Outcome.REJECTED: "the broker will not take this message; it is tried again, and other entries run meanwhile",
    Outcome.POSTPONED: "its sending needs what cannot be reached; it is tried again, and other entries run meanwhile",
    Outcome.FAILED: "no message could be made of it",
}


def takes_nothing(error: BaseException) -> bool:
    """Whether the broker says that it takes nothing for now, from whomever: a Redis without room, or a replica."""
    # By their names, since the library is that of one transport; and only its own: what an entry's name, its
    # arguments or their classes are called must not hold up the others.
    return any(
        type(exc).__name__ in ("OutOfMemoryError", "ReadOnlyError", "MasterDownError")
        or _TAKES_NOTHING.search(str(exc))
        for exc in chain(error)
        if type(exc).__module__ == "redis.exceptions"
    )


def any_of(errors: list[BaseException], kinds: tuple[type[BaseException], ...]) -> bool:
    """Whether one of these is of one of these kinds."""
    return any(isinstance(exc, tuple(kinds)) for exc in errors)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it was raised from, or in the handling of, the outermost first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
