"""What makes one occurrence's message its own: its task id and its headers."""

from __future__ import annotations

import copy
import hashlib
import json
import marshal
from collections.abc import Callable, Mapping
from contextlib import suppress
from inspect import Parameter, signature
from json.encoder import encode_basestring_ascii
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from celery.beat import ScheduleEntry
from kombu.utils.json import dumps as as_json

from celery_distsched.clock import iso
from celery_distsched.entries import PlannedEntry

_OCCURRENCES: UUID = uuid5(NAMESPACE_URL, "urn:celery-distsched:occurrence")


def task_id(namespace: str, entry: str, instant_us: int) -> str:
    """Return the task id of an occurrence: the same on every node and at every attempt."""
    return str(uuid5(_OCCURRENCES, json.dumps([namespace, entry, instant_us])))


class TaskIds:
    """What `task_id` returns, for one namespace, at a quarter of the time."""

    def __init__(self, namespace: str) -> None:
        # What UUIDv5 hashes is begun once and gone on with from there.
        self._begun = hashlib.sha1(
            _OCCURRENCES.bytes + json.dumps([namespace])[:-1].encode() + b", ", usedforsecurity=False
        )

    def of(self, entry: str) -> Callable[[int], str]:
        """Return what gives an entry's task id by instant."""
        begun = self._begun.copy()
        begun.update(f"{encode_basestring_ascii(entry)}, ".encode())

        def task_id(instant_us: int) -> str:
            hashed = begun.copy()
            hashed.update(b"%d]" % instant_us)
            one = hashed.hexdigest()
            return f"{one[:8]}-{one[8:12]}-5{one[13:16]}-{'89ab'[int(one[16], 16) & 3]}{one[17:20]}-{one[20:32]}"

        return task_id


def message_entry(planned: PlannedEntry, instant_us: int, attempt: int, *, namespace: str, node: str) -> ScheduleEntry:
    """Return a copy of an entry that carries one occurrence's id and headers; the user's objects are not touched."""
    entry, name = planned.entry, planned.name
    occurrence = copy.copy(entry)
    occurrence.name = name
    # Celery writes its header into the dict that it finds, which entries of one configuration may share.
    headers = dict((entry.options or {}).get("headers") or {})
    # The user's own of one of these names are the user's.
    headers = {"periodic_task_name": name, "scheduled_at": iso(instant_us), **headers}
    headers.update(celery_beat_task=True, distsched_node=node)
    if attempt > 1:
        headers["distsched_attempt"] = attempt
    occurrence.options = {
        "task_id": task_id(namespace, name, instant_us),
        **(entry.options or {}),
        "headers": headers,
        # A retry inside Celery would make two messages of one lost reply; ours goes by the ledger.
        "retry": False,
    }
    return occurrence


def text_of(entry: ScheduleEntry) -> bytes:
    """Return a text that is another once somebody has changed, in place, what the entry says to send."""
    given = (entry.task, entry.args, entry.kwargs, entry.options)
    try:
        return marshal.dumps(given, 0)
    except ValueError:
        # What a signature shows of itself is not all that it says to send.
        with suppress(Exception):
            return f"{given!r}{as_json(given)}".encode()  # type: ignore[no-untyped-call]
        return repr(given).encode()


def without_unknown(
    options: dict[str, Any], given: Mapping[str, Any], apply_async: Callable[..., Any]
) -> dict[str, Any]:
    """Return the options that an ``apply_async`` of the user's takes, and all that the user has given."""
    parameters = signature(apply_async).parameters
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return options
    return {name: value for name, value in options.items() if name in given or name in parameters}
