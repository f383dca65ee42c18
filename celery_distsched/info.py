"""What a node says of itself in each heartbeat."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from celery_distsched.record import MAX_CHARACTERS, NO_DATE_US
from celery_distsched.settings import LONGEST_TTL_S


@dataclass(frozen=True)
class Info:
    """What a node says of itself in each heartbeat."""

    host: str
    #: Number of the node among those of its host: with the host its place on the ring, stable over restarts.
    ordinal: int
    #: Digest of its schedule, names and fingerprints: a ring is shared by nodes with the same one.
    digest: str
    #: App and broker, to tell strangers in one namespace apart.
    cluster: str
    #: False while it loads the records of its coming share, and once it is about to leave.
    active: bool
    #: The node's wall clock at the renewal, and the cluster time that it goes by (0: none yet), microseconds.
    wall_us: int
    cluster_us: int = 0
    #: Its own `distsched_node_ttl`, for so long it trusts in a renewal; that of another may be another in a deploy.
    ttl_us: int = 0
    #: The newest schedule wins where two versions of an entry are alive; 0: not known yet.
    epoch: int = 0
    #: The generation of the ledger for which this node has put back what it remembers.
    generation: str = ""

    def text(self) -> str:
        """Return the info as it is stored."""
        return json.dumps(self.__dict__, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> Info | None:
        """Read what a node wrote; None if it is not of this form."""
        if len(text) > MAX_CHARACTERS:
            return None
        try:
            stored = json.loads(text)
            # What a later release adds is left out, and what an earlier one did not know is as if it were not said.
            info = cls(**{name: stored[name] for name in cls.__dataclass_fields__ if name in stored})
        except (TypeError, ValueError, RecursionError):
            return None
        # `from __future__ import annotations` makes the annotations the names of the types.
        right = all(
            type(getattr(info, name)).__name__ == field.type for name, field in cls.__dataclass_fields__.items()
        )
        if not right or any(abs(number) >= NO_DATE_US for number in (info.wall_us, info.cluster_us, info.epoch)):
            return None
        if not 0 <= info.ttl_us <= LONGEST_TTL_S * 1e6:
            return None
        return info


def live_epochs(infos: Iterable[Info]) -> dict[str, int]:
    """Return the newest epoch that live nodes give each schedule, by its digest; those without one have none yet."""
    epochs: dict[str, int] = {}
    for info in infos:
        if info.epoch > epochs.get(info.digest, 0):
            epochs[info.digest] = info.epoch
    return epochs
