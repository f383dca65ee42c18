"""What may be forgotten when the store loses data: only what no node in good health has been told of.

Who was told what is taken from the store's answers, not from what the code under test makes of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from celery_distsched.record import Record, node_of

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster

#: Owners remember a record for ten minutes after losing its entry; here a little less.
_REMEMBERED_S = 590.0
#: What one loss is called among the troubles: it excuses nobody from putting back.
LOSS = "store loss"

parse = lru_cache(maxsize=4096)(Record.parse)


@dataclass
class Loss:
    """One loss, and what each node could put back after it."""

    #: On `World.now`.
    at: float
    #: Whether each node notices it by itself, before it claims again.
    plain: bool
    #: Entry → node → the newest record of it that the node has been told, and until when by the calendar it remembers
    #: that if the entry is not its own.
    told: dict[str, dict[Any, tuple[Record, float]]]
    #: When somebody noticed it, or since when anybody can, on `World.now`.
    noticed_at: float | None = None


class Losses:
    """The losses of one store that may still be felt, and what is known of each entry."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.world = cluster, cluster.world
        self.felt: list[Loss] = []
        #: Entry → the latest `last` that the store has ever held, and since when, on `World.now`.
        self.upto: dict[str, tuple[int, float]] = {}
        #: Entry → each such `last` since everybody was at rest, with when it came about.
        self._steps: dict[str, list[tuple[int, float]]] = {}
        #: Entry → node → what it was told, and when by the calendar.
        self._told: dict[str, dict[Any, tuple[Record, float]]] = {}

    # What is told

    def tell(self, node: Any, name: str, text: str | None) -> None:
        """A node has been told what the record of an entry is."""
        if text is None:
            return
        record, nodes = parse(text), self._told.setdefault(name, {})
        if node not in nodes or nodes[node][0].last <= record.last:
            nodes[node] = (record, self.world.time)

    def wrote(self, name: str, last: int) -> None:
        if last > self.upto.get(name, (-1, 0.0))[0]:
            self.upto[name] = (last, self.world.now)
            self._steps.setdefault(name, []).append(self.upto[name])

    # What happens

    def happens(self, *, plain: bool, seen: bool, back_to: float) -> None:
        """Everything that was told so far may be asked for from now on."""
        for loss in self.felt:
            if loss.at > back_to:
                # It is undone, as far as anybody can see.
                loss.plain = loss.plain and plain
        told = {name: self._remembering(name) for name in self._told}
        self.felt.append(Loss(self.world.now, plain, told, self.world.now if seen else None))

    def _remembering(self, name: str) -> dict[Any, tuple[Record, float]]:
        """Who remembers an entry: its owner, and whoever was told not long ago."""
        now = self.world.time
        since = {
            node: (record, now if self._owns(node, name) else at)
            for node, (record, at) in self._told[name].items()
            if node.process.alive
        }
        return {node: (record, at + _REMEMBERED_S) for node, (record, at) in since.items() if at + _REMEMBERED_S > now}

    @staticmethod
    def _owns(node: Any, name: str) -> bool:
        """Whether an entry is in a node's share, and it has been told since of what there is."""
        records = node.dispatch.records
        return name in records.share and name not in records.unread

    def noticed(self) -> bool:
        """Somebody says that the store has lost data; returns whether it has."""
        for loss in self.felt:
            if loss.noticed_at is None:
                loss.noticed_at = self.world.now
        return bool(self.felt)

    @property
    def unnoticed(self) -> list[Loss]:
        """Losses that nobody has noticed, and that nobody notices by itself."""
        return [loss for loss in self.felt if loss.noticed_at is None and not loss.plain]

    def settle(self, ledger: Mapping[str, str]) -> list[str]:
        """Everybody is at rest: what is not back by now does not come back.

        Returns:
            The entries whose records have gone back though somebody knows better.
        """
        old = [name for name, (last, _) in self.upto.items() if name not in ledger or self._older(ledger[name], last)]
        unnoticed = self.unnoticed
        if old and unnoticed:
            # Who was in bad health until now cannot be told later.
            for loss in unnoticed:
                loss.told = {
                    name: {node: memory for node, memory in told.items() if self._well(node, loss)}
                    for name, told in loss.told.items()
                }
            self.felt = unnoticed
            return []
        lost = [name for name in old if not self.excuse(None, name, *self.upto[name])]
        for name in old:
            if name in ledger:
                self.upto[name] = (parse(ledger[name]).last, self.world.now)
            else:
                del self.upto[name]
        self._steps = {name: [step] for name, step in self.upto.items()}
        self.felt = []
        return lost

    @staticmethod
    def _older(text: str, last: int) -> bool:
        """Whether a record has gone back: at rest no mark is open."""
        record = parse(text)
        return record.last < last or bool(record.open)

    # What it excuses

    def since(self, at: float) -> bool:
        """Whether the store has lost data since then."""
        return any(loss.at >= at for loss in self.felt)

    def since_when(self, name: str, instant: int) -> float:
        """When an entry's record first came to an instant, on `World.now`."""
        return next(at for last, at in self._steps[name] if last >= instant)

    def excuse(self, node: Any, name: str, instant: int, since: float) -> bool:
        """Whether a node may take an instant for open that was settled once, and was so since then."""
        return any(not self._known(loss, node, name, instant) for loss in self.felt if loss.at >= since)

    def _known(self, loss: Loss, by: Any, name: str, instant: int) -> bool:
        """Whether somebody could tell the others in time, or `by` itself was told, that an instant is settled."""
        told = loss.told.get(name, {})
        settled = {
            node
            for node, (record, until) in told.items()
            if record.last >= instant
            and self._settled_for(node, name, instant, record)
            and (until > self.world.time or self._owns(node, name))
        }
        if by in settled:
            return not self._shows_nothing(loss, name, told[by][0])
        ttl_s = self.cluster.settings.node_ttl
        unseen = loss.noticed_at is None or self.world.now < loss.noticed_at + ttl_s + 2
        return not (unseen and not loss.plain) and any(self._well(node, loss) for node in settled)

    def _shows_nothing(self, loss: Loss, name: str, told: Record) -> bool:
        """Whether a loss cannot be seen: a store without a name went back by a confirm, and whose it was is gone."""
        text = self.cluster.store.ledger.get(name)
        return loss.noticed_at is None and not loss.plain and text is not None and parse(text).last == told.last

    def _settled_for(self, node: Any, name: str, instant: int, record: Record) -> bool:
        """Whether a node that was told this knows that an instant is settled: what is its own it has sent by now."""
        if instant not in record.open:
            return True
        run = self.cluster.promises.runs.get((name, instant))
        sent = run is None or any(sender is node and at < self.world.now for at, sender, _ in run.messages)
        return sent and node_of(record.open[instant]) == node.node_id

    def well(self, node: Any) -> bool:
        """Whether a node has been in good health since the latest loss."""
        return self._well(node, self.felt[-1])

    def _well(self, node: Any, loss: Loss) -> bool:
        end = min(self.world.now, loss.at + 3 * self.cluster.settings.node_ttl)
        if node.ended_at <= end:
            return False
        return not any(
            who in (node, None) and begins <= end and ends >= loss.at and what != LOSS
            for who, begins, ends, what in self.cluster.troubles
        )
