"""What may happen to a cluster, each by its name; a seed chooses which, when and for how long."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from celery_distsched.schedule_epoch import RESERVED
from tests.simulation.cluster import Cluster
from tests.simulation.losses import LOSS, parse
from tests.simulation.store import GENERATION

Fault = Callable[[Cluster, Any], None]

_HOUR_S = 3600.0


def _unless_kept(fault: Fault) -> Fault:
    """Nobody comes or goes while the right clocks have to stay in the majority."""

    @wraps(fault)
    def happen(cluster: Cluster, node: Any) -> None:
        if cluster.world.now >= cluster.keep_until:
            fault(cluster, node)

    return happen


@_unless_kept
def crash(cluster: Cluster, node: Any) -> None:
    """kill -9; another is started by and by."""
    node.crash()
    cluster.trouble(None, 0.0, "crash", settle_s=cluster.settings.node_ttl + 1)
    _replace(cluster)


@_unless_kept
def leave(cluster: Cluster, node: Any) -> None:
    """SIGTERM, and another is started."""
    if cluster.world.random.random() < 0.5:
        cluster.add()
    node.leave()
    cluster.trouble(node, 1.5, "leave", settle_s=0.5)
    _replace(cluster)


@_unless_kept
def join(cluster: Cluster, node: Any) -> None:
    if len(cluster.serving) < 6:
        cluster.add()


@_unless_kept
def restart_all(cluster: Cluster, node: Any) -> None:
    """Every beat ends, in one way or the other, and after a while there are some again."""
    random = cluster.world.random
    for each in cluster.serving:
        random.choice((each.leave, each.crash))()
    silence_s = random.choice((0.0, random.uniform(0, 8), random.uniform(0, 60)))
    cluster.trouble(None, silence_s + 1, "restart of all")
    for _ in range(cluster.plan.nodes):
        cluster.world.after(1 + silence_s + random.random(), cluster.add)


def freeze(cluster: Cluster, node: Any) -> None:
    """SIGSTOP and SIGCONT, or a long pause of the host."""
    seconds = _how_long(cluster)
    node.freeze(seconds)
    cluster.trouble(node, seconds, "freeze")


def hang(cluster: Cluster, node: Any) -> None:
    """The loop stands still, the heartbeat's thread goes on."""
    seconds = _how_long(cluster)
    node.hang(seconds)
    cluster.trouble(node, seconds, "hang")


def cut(cluster: Cluster, node: Any) -> None:
    """A partition between one node and the store."""
    seconds = _how_long(cluster)
    node.driver.network.cut_until = cluster.world.now + seconds
    cluster.trouble(node, seconds, "cut")


def cut_writes(cluster: Cluster, node: Any) -> None:
    seconds = _how_long(cluster)
    node.driver.network.write_cut_until = cluster.world.now + seconds
    cluster.trouble(node, seconds, "writes cut")


def deafen(cluster: Cluster, node: Any) -> None:
    """What the node asks for is done, and it never hears of it."""
    seconds = _how_long(cluster)
    node.driver.network.deaf_until = cluster.world.now + seconds
    cluster.trouble(node, seconds, "deaf")


def slow_down(cluster: Cluster, node: Any) -> None:
    """Answers take about as long as anybody waits for them, for one node or for all."""
    random, seconds = cluster.world.random, _how_long(cluster)
    slow_s = random.choice((0.05, 0.3, 0.9, 2.0))
    all_of_them = random.random() < 0.3
    for each in cluster.serving if all_of_them else [node]:
        each.driver.network.slow_until = cluster.world.now + seconds
        each.driver.network.slow_s = slow_s
    cluster.trouble(None if all_of_them else node, seconds + 3, "slow store")


def stop_store(cluster: Cluster, node: Any) -> None:
    seconds = _how_long(cluster)
    cluster.store.down_until = cluster.world.now + seconds
    cluster.trouble(None, seconds, "store down")


def flaky_store(cluster: Cluster, node: Any) -> None:
    """Each call may be lost, or its answer, or it may arrive long after its caller gave up."""
    random, seconds = cluster.world.random, _how_long(cluster)
    cluster.store.flakiness = random.choice((0.02, 0.2, 0.5))
    cluster.store.flaky_until = cluster.world.now + seconds
    cluster.trouble(None, seconds, "flaky store")


@_unless_kept
def evict(cluster: Cluster, node: Any) -> None:
    """A membership vanishes from the store, under a node that is well."""
    if cluster.store.nodes:
        gone = cluster.world.random.choice(sorted(cluster.store.nodes))
        cluster.store.write(cluster.store.nodes, gone, None)
        cluster.trouble(None, 1.5, "evicted", settle_s=cluster.settings.node_ttl + 2)


def wipe(cluster: Cluster, node: Any) -> None:
    """FLUSHALL, or a server without its disk."""
    store = cluster.store
    if cluster.world.random.random() < 0.5:
        store.another_server()
    store.clear(store.nodes)
    store.clear(store.ledger)
    _lost(cluster, plain=True)


def lose_ledger(cluster: Cluster, node: Any) -> None:
    """The ledger is one key, and it is evicted."""
    cluster.store.clear(cluster.store.ledger)
    _lost(cluster, plain=True)


def lose_key(cluster: Cluster, node: Any) -> None:
    """Each record is a key of its own, and one of them is gone: an entry's, the generation or the register."""
    ledger = cluster.store.ledger
    if ledger:
        cluster.store.write(ledger, cluster.world.random.choice(sorted(ledger)), None)
        _lost(cluster, plain=False)


def roll_back(cluster: Cluster, node: Any) -> None:
    """A replica that lagged takes over, or a snapshot is restored."""
    random, store = cluster.world.random, cluster.store
    lag_s = random.choice((0.0, random.uniform(0, 0.1), random.uniform(0, 2), random.uniform(0, 30)))
    store.another_server()
    store.go_back(cluster.world.now - lag_s)
    for name, text in store.ledger.items():
        if not name.startswith(RESERVED):
            # It may have gone back to a time before another loss, and hold more than it did just now.
            cluster.promises.losses.wrote(name, parse(text).last)
    # Who knows the mark that is back sees nothing in it.
    mark = store.ledger.get(GENERATION)
    seen = mark is not None and not any(each.knows_mark(mark) for each in cluster.nodes if each.process.alive)
    _lost(cluster, plain=bool(store.name), seen=seen, back_to=cluster.world.now - lag_s)


def _lost(cluster: Cluster, *, plain: bool, seen: bool = False, back_to: float = float("inf")) -> None:
    """The store has lost data.

    Args:
        cluster: Whose.
        plain: Nobody acts on what is left before having noticed.
        seen: The ledger has a generation that is no live node's: to notice that nobody needs to write one.
        back_to: What has happened since that time, on `World.now`, is undone.
    """
    cluster.promises.losses.happens(plain=plain, seen=seen, back_to=back_to)
    cluster.trouble(None, 0.0, LOSS, settle_s=3 * cluster.settings.node_ttl + 2)


def stop_broker(cluster: Cluster, node: Any) -> None:
    seconds = _how_long(cluster)
    cluster.broker.down_until = cluster.world.now + seconds
    cluster.trouble(None, seconds + 3, "broker down")


def cut_broker(cluster: Cluster, node: Any) -> None:
    """One node does not reach the broker."""
    seconds = _how_long(cluster)
    cluster.broker.cut_until[node.node_id] = cluster.world.now + seconds
    cluster.trouble(node, seconds + 3, "broker cut")


def shaky_broker(cluster: Cluster, node: Any) -> None:
    random, seconds = cluster.world.random, _how_long(cluster)
    cluster.broker.refused, cluster.broker.unknown = random.choice(((0.3, 0.0), (0.0, 0.3), (0.1, 0.1)))
    cluster.broker.shaky_until = cluster.world.now + seconds
    cluster.trouble(None, seconds + 3, "shaky broker")


def step_clock(cluster: Cluster, node: Any) -> None:
    """The wall clock of one host jumps by an hour, and is put right later."""
    if not cluster.plan.steps or cluster.world.now < cluster.unsettled_until:
        return
    random = cluster.world.random
    seconds, step_s = _how_long(cluster), random.choice((-_HOUR_S, _HOUR_S))
    there = sum(each.host == node.host for each in cluster.serving)
    if not cluster.plan.store_clock:
        if 2 * there >= len(cluster.serving):
            return  # what most clocks say is the time
        cluster.keep_until = cluster.world.now + seconds + cluster.settings.node_ttl
    cluster.step_clock(node.host, step_s)
    cluster.world.after(seconds, cluster.step_clock, node.host, -step_s)
    cluster.trouble(None, seconds, f"clock step of {node.host}")


def step_store_clock(cluster: Cluster, node: Any) -> None:
    """The clock of the store's host jumps by an hour, and is put right later; the hosts of the nodes know better."""
    if not (cluster.plan.steps and cluster.plan.store_clock) or cluster.world.now < cluster.unsettled_until:
        return
    # Somebody has to be there who remembers what time it is.
    seconds = _how_long(cluster)
    cluster.keep_until = cluster.world.now + seconds
    cluster.store.clock_error_s = cluster.world.random.choice((-_HOUR_S, _HOUR_S))
    cluster.world.after(seconds, setattr, cluster.store, "clock_error_s", 0.0)
    cluster.trouble(None, seconds, "clock step of the store")


@_unless_kept
def deploy(cluster: Cluster, node: Any) -> None:
    """A rolling deploy: one after the other is replaced by one that knows other entries."""
    if not cluster.plan.deploys:
        return
    random = cluster.world.random
    cluster.version += 1
    pace_s = random.choice((0.2, 2.0, 6.0))
    cluster.trouble(None, pace_s * len(cluster.serving) + 1, "deploy")
    for place, old in enumerate(cluster.serving):
        cluster.world.after(place * pace_s, _redeploy, cluster, old)


def _redeploy(cluster: Cluster, old: Any) -> None:
    cluster.add()
    if old.serves:
        old.leave()


def _replace(cluster: Cluster) -> None:
    random = cluster.world.random
    if len(cluster.serving) < cluster.plan.nodes:
        if cluster.serving and random.random() < 0.7:
            cluster.world.after(random.uniform(0.1, 9), cluster.add)
        else:
            cluster.add()


def _how_long(cluster: Cluster) -> float:
    """Return a length in seconds: shorter than a TTL, about one, or well beyond the hand-over gap."""
    random = cluster.world.random
    return random.choice((random.uniform(0.05, 2), random.uniform(3.5, 7), random.uniform(2, 30)))


FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        crash, leave, join, restart_all, freeze, hang, cut, cut_writes, deafen, slow_down, stop_store, flaky_store,
        evict, wipe, lose_ledger, lose_key, roll_back, stop_broker, cut_broker, shaky_broker, step_clock,
        step_store_clock, deploy,
    )
}  # fmt: skip
