"""The store is cut off at the very confirm between two slices, for longer than a membership lasts."""

from __future__ import annotations

from typing import Any

import pytest

from tests.simulation.cluster import Cluster
from tests.simulation.life import live
from tests.simulation.node import Node
from tests.simulation.plan import BUSY, EntryPlan, Plan

_CUT_S = 8.0


class CutAtConfirm(Node):
    """It loses the store while the last of a burst is on its way to the broker, once."""

    def __init__(self, cluster: Cluster, *args: Any) -> None:
        super().__init__(cluster, *args)
        self.cut = False
        burst, outbox = self.dispatch._burst, self.dispatch._outbox
        confirm = burst.confirm

        def confirm_into_the_cut() -> None:
            last = burst._claiming is None
            if outbox._flights and last and not self.cut and self.world.now > 10:
                self.cut = True
                self.driver.network.cut_until = self.world.now + _CUT_S
                cluster.trouble(self, _CUT_S, "cut")
                # As etcd does with a lease.
                self.world.after(6, cluster.store.write, cluster.store.nodes, self.pool.view.me, None)
            confirm()

        burst.confirm = confirm_into_the_cut  # type: ignore[method-assign]


@pytest.mark.parametrize("delivery", ["at_most_once", "at_least_once"])
@pytest.mark.parametrize("nodes", [1, 2])
def test_slices_on_their_way_do_not_outlive_the_outage_that_cut_their_confirm(delivery: str, nodes: int) -> None:
    """Otherwise what the broker has taken is sent again, or looked for among entries that others have by then."""
    entries = tuple(EntryPlan(20, "all") for _ in range(24))
    plan = Plan.of(3).but(
        kind=BUSY, nodes=nodes, entries=entries, delivery=delivery, same_redis=False, slices=True, deploys=False,
        store_name=True, most_at_once=12, skew_s=0.0,
    )  # fmt: skip
    cluster = live(4, plan=plan, faults=("deploy",), node_class=CutAtConfirm)
    assert any(node.cut for node in cluster.nodes)
    assert not cluster.promises.counts["sent again"]
