"""The first draft of the protocol, for comparison: a claim wins iff the stored instant is smaller than the new one.

All else is the package's own. The store compares nothing but the last instant, and what it holds beyond that (whose
claim is open) is for the invariants only: no node is shown the marks of others, so nobody takes over or confirms. Each
node remembers its own claims, for as long as it lives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from celery_distsched.drivers import Answer, Swap
from celery_distsched.record import Record, node_of
from celery_distsched.schedule_epoch import RESERVED
from tests.simulation.node import Node
from tests.simulation.store import SimulatedDriver


class DraftDriver(SimulatedDriver):
    """A ledger of last instants."""

    def read(self, keys: Sequence[str]) -> list[str | None]:
        return [self._shown(key, text) for key, text in zip(keys, super().read(keys), strict=True)]

    def _shown(self, key: str, text: str | None) -> str | None:
        """What is stored is the last instant; the rest is what this node remembers of itself."""
        if text is None or key.startswith(RESERVED):
            return text
        record = Record.parse(text)
        won = self.__dict__.setdefault("won", set())
        mine = {at: mark for at, mark in record.open.items() if node_of(mark) == self.node.node_id and (key, at) in won}
        return record._replace(open=mine).text()

    def swap(self, swaps: Sequence[Swap], fence: str | None = None) -> list[Answer]:
        own = [swap for swap in swaps if not self._is_claim(swap)]
        claims = [swap for swap in swaps if self._is_claim(swap)]
        answers = {swap.key: self._noted(swap, fence) for swap in own if not swap.key.startswith(RESERVED)}
        exact = [swap for swap in own if swap.key.startswith(RESERVED)]
        answers |= dict(zip((swap.key for swap in exact), super().swap(exact, fence), strict=True))
        if claims:
            answers |= self._claimed(claims, fence)
        return [answers[swap.key] for swap in swaps]

    def _is_claim(self, swap: Swap) -> bool:
        if swap.key.startswith(RESERVED):
            return False
        return swap.expected is None or Record.parse(swap.expected).last < Record.parse(swap.new).last

    def _claimed(self, swaps: Sequence[Swap], fence: str | None) -> dict[str, Answer]:
        began = {swap.key: self._since(swap.key, swap.new) for swap in swaps}
        self.cluster.promises.acts(self.node, "claims")

        def step() -> dict[str, Answer]:
            self.store.check(fence, self.incarnation)
            return {swap.key: self._compared(swap, fence, began[swap.key]) for swap in swaps}

        answers: dict[str, Answer] = self._call(step, write=True)
        for swap in swaps:
            self._issued.pop((swap.key, swap.new), None)
            if answers[swap.key].won:
                self.__dict__.setdefault("won", set()).update((swap.key, at) for at in Record.parse(swap.new).open)
        return answers

    def _compared(self, swap: Swap, fence: str | None, since: int) -> Answer:
        found, new = self.store.ledger.get(swap.key), Record.parse(swap.new)
        if found is not None:
            old = Record.parse(found)
            if new.last <= old.last:
                return Answer(False, self._shown(swap.key, found))
            new = new._replace(
                open=self._kept(old, swap) | {at: mark for at, mark in new.open.items() if at > old.last}
            )
        self.store.write(self.store.ledger, swap.key, new.text())
        self.cluster.promises.wrote(self.node, fence, swap.key, found, new.text(), since, {})
        return Answer(True, swap.new)

    def _noted(self, swap: Swap, fence: str | None) -> Answer:
        """A confirm, or a new name for what is this node's own: it costs no call, since there is nothing to write."""
        found = self.store.ledger[swap.key]
        old = Record.parse(found)
        record = old._replace(open=self._kept(old, swap)).text()
        if record != found:
            self.store.write(self.store.ledger, swap.key, record)
            self.cluster.promises.wrote(self.node, fence, swap.key, found, record, self.world.time_us, {})
        return Answer(True, swap.new)

    def _kept(self, old: Record, swap: Swap) -> dict[int, str]:
        """What stays open: all but what this node knew as its own and closes now."""
        before, new = Record.parse(swap.expected or swap.new), Record.parse(swap.new)
        return {at: new.open.get(at, mark) for at, mark in old.open.items() if at in new.open or at not in before.open}


class DraftNode(Node):
    """A beat of the first draft."""

    driver_class: ClassVar[type[SimulatedDriver]] = DraftDriver

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # What it is shown of marks says nothing of what is open.
        self.dispatch.records._reopened = lambda *_: None  # type: ignore[method-assign]
