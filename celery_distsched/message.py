"""What makes one occurrence's message its own: its task id and its headers."""

from __future__ import annotations

import copy
import json
from uuid import NAMESPACE_URL, UUID, uuid5

from celery.beat import ScheduleEntry

from celery_distsched.clock import iso

_OCCURRENCES: UUID = uuid5(NAMESPACE_URL, "urn:celery-distsched:occurrence")


def task_id(namespace: str, entry: str, instant_us: int) -> str:
    """Return the task id of an occurrence: the same on every node and at every attempt."""
    return str(uuid5(_OCCURRENCES, json.dumps([namespace, entry, instant_us])))


def message_entry(entry: ScheduleEntry, instant_us: int, attempt: int, *, namespace: str, node: str) -> ScheduleEntry:
    """Return a copy of an entry that carries one occurrence's id and headers; the user's objects are not touched."""
    occurrence = copy.copy(entry)
    # Celery writes its header into the dict that it finds, which entries of one configuration may share.
    headers = dict((entry.options or {}).get("headers") or {})
    headers.update(
        celery_beat_task=True,
        periodic_task_name=entry.name,
        scheduled_at=iso(instant_us),
        distsched_node=node,
    )
    if attempt > 1:
        headers["distsched_attempt"] = attempt
    occurrence.options = {
        "task_id": task_id(namespace, entry.name, instant_us),
        **(entry.options or {}),
        "headers": headers,
        # A retry inside Celery would make two messages of one lost reply; ours goes by the ledger.
        "retry": False,
    }
    return occurrence
