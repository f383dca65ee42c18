"""A Celery beat scheduler that runs on every host at once.

The nodes that live form a ring, which says who tries to send an entry's run. A claim in the store says who does: an
exact swap of the entry's record, fenced by the node's membership. What was claimed is sent and then confirmed; what a
dead node has not confirmed is taken over. The words for it:

- node: one beat process. Its *membership* is its id and the number of its join: that is what dies, and what marks name.
- instant: when a run is due, in microseconds since the epoch.
- record: what the store holds of an entry: `last`, up to which everything is decided, and its open marks.
- mark: in a record, an instant with the membership that is to send it. It is open until the sending is confirmed.
- fence: "write only if this membership is still there", checked by the store in the same step.
- buried: dead, and removed from the store: its fence lets nothing through any more, so its marks can be taken over.
- anchor: the first record of an entry, from which it counts.
- ledger: all records of a namespace. Its *generation* is a mark of its own, written anew after a loss of data.
- epoch: the number of a schedule in its namespace: where versions of an entry differ, the highest runs.
- lane: how messages reach the broker: with their claim, in slices, or one by one.
"""

from celery_distsched.instants import cron
from celery_distsched.scheduler import DistributedScheduler

__version__ = "0.1.0"
__all__ = ["DistributedScheduler", "cron"]
