"""What the ways to make messages from templates have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol
from uuid import uuid4

#: What may be a message's own; all else it has in common with the others of its kind.
FIELDS = ("task_id", "delivery_tag", "scheduled_at", "name", "expires", "body", "argsrepr", "kwargsrepr")


class OrdinaryWay(Exception):
    """This entry is sent by `apply_async`; the text says why."""


def new_marks() -> dict[str, str]:
    """Return what stands in a message where its own values go: as long as a task id, and free of what gets escaped."""
    return {field: str(uuid4()) for field in FIELDS}


class Caught(ABC):
    """A message on kombu's last step before the broker."""

    headers: dict[str, Any]
    properties: dict[str, Any]
    content_type: str | None
    exchange: str

    @abstractmethod
    def generated(self) -> dict[str, Any]:
        """Return what kombu and Celery put in anew for each message: of FIELDS, those whose value nobody gave."""

    @abstractmethod
    def mark(self, field: str, mark: str) -> None:
        """Put a mark in a field's place."""

    @abstractmethod
    def written(self) -> Any:
        """Return what would be written to the broker."""


class Template(Protocol):
    """One kind of message."""

    def fill(self, values: Mapping[str, Any]) -> Any:
        """Return what is to be written for a message with these values."""


class Messages(Protocol):
    """How kombu writes messages to one broker."""

    #: Whether the broker itself knows which queues an exchange leads to.
    routed_by_broker: ClassVar[bool]
    #: Where messages are caught, and no other.
    channel: Any

    @property
    def marks(self) -> Mapping[str, str]:
        """What `Caught.mark` is given."""

    def template(self, marked: Any) -> Template:
        """Make a template of what was written with marks in it."""

    def hooks(self) -> str | None:
        """Say what is not the libraries' own about the last step; None: all is."""

    def catching(self) -> AbstractContextManager[list[Caught]]:
        """Catch what kombu would write, with all that leads up to it done."""

    def encoded(self, field: str, value: Any) -> Any:
        """Return a field's value as it is written."""
