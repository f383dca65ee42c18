"""Messages from templates: what `apply_async` makes, byte for byte, at a tenth of the price.

`apply_async` takes a quarter of a millisecond to make a message of which only ids, times, name and arguments are new.
Here it makes two of each kind, and the others are cut from the same cloth (`message_kinds`).

What is the same for all messages of a kind, and what the two cannot show, is not guessed: such an entry goes the
ordinary way, as do those that somebody hooks into.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from celery_distsched.broker import BrokerAway
from celery_distsched.clock import iso
from celery_distsched.entries import PlannedEntry
from celery_distsched.message import TaskIds, text_of
from celery_distsched.message_kinds import MessageKinds, Recipe
from celery_distsched.outcome import Outcome, takes_nothing
from celery_distsched.template import Messages, OrdinaryWay

logger = logging.getLogger(__name__)

#: Seconds for which an entry goes the ordinary way after something went wrong that need not go wrong again.
_REST_S = 60.0


class Publisher:
    """Makes the messages of those entries that nobody hooks into."""

    def __init__(self, scheduler: Any, node: str, messages: Messages) -> None:
        """Keep what is needed.

        Args:
            scheduler: The scheduler, for its app, its settings and its way to `apply_async`.
            node: The node id, for the headers.
            messages: How the broker's connection of now writes messages; another one needs another publisher.
        """
        self._scheduler = scheduler
        self._task_ids = TaskIds(scheduler.settings.namespace)
        self._messages = messages
        self._kinds = MessageKinds(scheduler, node, messages)
        #: Entry → how its messages are made, or why not here.
        self._recipes: dict[str, tuple[PlannedEntry, Recipe | str]] = {}
        #: Entry → until when it goes the ordinary way, by the monotonic clock; of those that may come back from it.
        self._resting: dict[str, float] = {}

    def rest(self, planned: PlannedEntry, why: str) -> None:
        """Send this entry the ordinary way for some time."""
        self._resting[planned.name] = time.monotonic() + _REST_S
        self._avoid(planned, why)

    def _avoid(self, planned: PlannedEntry, why: str) -> None:
        self._recipes[planned.name] = (planned, why)
        logger.debug("entry %r goes the ordinary way: %s", planned.name, why)

    def look_again(self) -> None:
        """Forget of those that have rested for long enough why they do."""
        if self._resting:
            now = time.monotonic()
            for name in [name for name, until in self._resting.items() if until <= now]:
                del self._resting[name]
                self._recipes.pop(name, None)

    def why_not(self, planned: PlannedEntry) -> str | None:
        """Say why an entry goes the ordinary way; None: it does not.

        Raises:
            BrokerAway: That is not known.
        """
        recipe = self._recipe(planned)
        return recipe if isinstance(recipe, str) else None

    def messages(self, due: Sequence[tuple[PlannedEntry, Sequence[int]]]) -> list[list[Any] | None]:
        """Return the messages of each entry's instants; None for an entry that goes the ordinary way.

        Raises:
            BrokerAway: None was made.
        """
        made: list[list[Any] | None] = []
        # One moment for all: they are sent together. Many are of one instant.
        expiries, moments = dict[float, Any](), dict[int, str]()
        tags = _random_ids(sum(len(instants) for _, instants in due))
        encoded = self._messages.encoded
        tasks = dict[str, Any]()
        for planned, instants in due:
            recipe = self._recipe(planned)
            if not isinstance(recipe, str):
                if (task := planned.entry.task) not in tasks:
                    tasks[task] = self._kinds.seen(task)
                if recipe.kind.task is not tasks[task] or recipe.made_of != text_of(planned.entry):
                    recipe = self._new_recipe(planned)
            if isinstance(recipe, str):
                made.append(None)
                continue
            name, kind = planned.name, recipe.kind
            values = {**recipe.common, "name": encoded("name", name)}
            expires_s, fill, task_id_of = kind.expires_s, kind.template.fill, self._task_ids.of(name)
            if expires_s is not None:
                if expires_s not in expiries:
                    expiries[expires_s] = encoded("expires", self._kinds.expires(expires_s))
                values["expires"] = expiries[expires_s]
            pushes = []
            for instant in instants:
                if instant not in moments:
                    moments[instant] = iso(instant)
                values["task_id"] = task_id_of(instant)
                values["scheduled_at"] = moments[instant]
                values["delivery_tag"] = next(tags)
                pushes.append(fill(values))
            made.append(pushes)
        return made

    def task_id(self, name: str, instant: int) -> str:
        """Return the task id of an entry's occurrence."""
        return self._task_ids.of(name)(instant)

    def keep(self, entries: Mapping[str, PlannedEntry]) -> None:
        """Forget all other entries, and these where they have changed."""
        self._recipes = {name: known for name, known in self._recipes.items() if entries.get(name) is known[0]}
        self._kinds.keep(recipe.kind for _, recipe in self._recipes.values() if not isinstance(recipe, str))

    # Which way

    def _recipe(self, planned: PlannedEntry) -> Recipe | str:
        known, recipe = self._recipes.get(planned.name, (None, ""))
        return recipe if known is planned else self._new_recipe(planned)

    def _new_recipe(self, planned: PlannedEntry) -> Recipe | str:
        try:
            recipe = self._made_recipe(planned)
        except OrdinaryWay as why:
            self._avoid(planned, str(why))
        except BrokerAway:
            raise
        except Exception as exc:  # noqa: BLE001  (whatever is wrong with it, the ordinary way reports it)
            self.rest(planned, repr(exc))
        else:
            self._recipes[planned.name] = (planned, recipe)
            logger.debug("entry %r goes the fast way", planned.name)
        return self._recipes[planned.name][1]

    def _made_recipe(self, planned: PlannedEntry, *, once_more: bool = True) -> Recipe:
        self._scheduler.broker.begin()
        try:
            return self._kinds.recipe_of(planned)
        except (OrdinaryWay, BrokerAway):
            # What many entries may have in common: nobody is to ask the broker for each.
            raise
        except Exception as exc:
            broker = self._scheduler.broker
            if takes_nothing(exc):
                # Declaring a queue is refused too, which says nothing of the entry.
                raise BrokerAway(broker.says(exc)) from exc
            if broker.outcome_of_attempt(exc) not in (Outcome.REFUSED, Outcome.UNKNOWN, Outcome.POSTPONED):
                raise
            if not broker.answers():
                raise BrokerAway(broker.says(exc)) from exc
            if not once_more:
                raise
        # It was away for a moment, which says nothing of the entry; twice in a row the error is the entry's own.
        return self._made_recipe(planned, once_more=False)


def _random_ids(count: int) -> Any:
    """As many UUIDs (version 4), for the price of one call."""
    digits = os.urandom(16 * count).hex()
    for at in range(0, 32 * count, 32):
        one = digits[at : at + 32]
        yield f"{one[:8]}-{one[8:12]}-4{one[13:16]}-{'89ab'[int(one[16], 16) & 3]}{one[17:20]}-{one[20:]}"
