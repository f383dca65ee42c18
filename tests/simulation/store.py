"""The simulated store, and the ways of the nodes to it: slow, deaf, cut in one direction or both, or down for all."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from celery_distsched import store_loss
from celery_distsched.drivers import Answer, Driver, Member, StoreUrl, Swap
from celery_distsched.drivers.base import Claim, Elsewhere, Pushing, PushRefused
from celery_distsched.errors import LeaseLost, StoreUnavailable
from celery_distsched.record import node_of
from celery_distsched.schedule_epoch import RESERVED
from celery_distsched.store_loss import Generation
from tests.simulation.world import EPOCH_S, World

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster

#: Where the ledger's own mark is kept.
GENERATION = store_loss._KEY
#: How many writes a store can go back by.
_UNDONE = 20_000


@dataclass
class Network:
    """What becomes of the calls of one node; each time is on `World.now`."""

    cut_until: float = 0.0
    #: Reads are answered, and writes are not.
    write_cut_until: float = 0.0
    #: Calls arrive, and no answer comes back.
    deaf_until: float = 0.0
    #: Round trips take about this long on average, in seconds.
    slow_until: float = 0.0
    slow_s: float = 0.0


class Store:
    """What the store holds; each of its methods is one atomic step."""

    def __init__(self, world: World, *, has_clock: bool, has_name: bool) -> None:
        self.world, self.has_clock = world, has_clock
        self.nodes: dict[str, Member] = {}
        self.ledger: dict[str, str] = {}
        #: Which server this is, where it has a name.
        self.name = "server1" if has_name else ""
        #: (when, in what, key, what was there before) of each write, the last ones: to go back by.
        self._before: deque[tuple[float, dict[str, Any], str, Any]] = deque(maxlen=_UNDONE)
        #: When each membership last showed life, on `World.now`; kept after it has gone. A store that goes back forgets
        #: renewals too: the others cannot know of what they have not seen, and its node goes by them all the same.
        self.renewed_at: dict[str, float] = {}
        #: Memberships that their own nodes have given up: nothing is done under them any more.
        self.left: set[str] = set()
        self.down_until = 0.0
        #: Until then each call is lost with this likelihood.
        self.flaky_until = 0.0
        self.flakiness = 0.0
        self.clock_error_s = 0.0

    @property
    def generation(self) -> str:
        """The name of the ledger's generation; empty where there is none."""
        known = Generation.parse(self.ledger.get(GENERATION))
        return known.name if known else ""

    def clock_us(self) -> int | None:
        return round((EPOCH_S + self.world.time + self.clock_error_s) * 1e6) if self.has_clock else None

    def join(self, membership: str, info: str) -> int | None:
        self.write(self.nodes, membership, Member("1", info))
        self.write(self.renewed_at, membership, self.world.now)
        return self.clock_us()

    def renew(self, membership: str, info: str, name: str) -> int | None:
        if membership not in self.nodes or name != self.name:
            raise LeaseLost(membership)
        self.write(self.nodes, membership, Member(str(int(self.nodes[membership].pulse) + 1), info))
        self.write(self.renewed_at, membership, self.world.now)
        return self.clock_us()

    def check(self, fence: str | None, name: str) -> None:
        if fence is not None and (fence not in self.nodes or name != self.name):
            raise LeaseLost(fence)

    def write(self, what: dict[str, Any], key: str, value: Any) -> None:
        self._before.append((self.world.now, what, key, what.get(key)))
        if value is None:
            what.pop(key, None)
        else:
            what[key] = value

    # What it may come to

    def another_server(self) -> None:
        """Let another server answer from now on."""
        if self.name:
            self.name = f"server{int(self.name.removeprefix('server')) + 1}"

    def clear(self, what: dict[str, Any]) -> None:
        for key in list(what):
            self.write(what, key, None)

    def go_back(self, to: float) -> None:
        """Hold again what was held at that time, on `World.now`, or as far back as is known."""
        while self._before and self._before[-1][0] > to:
            _, what, key, value = self._before.pop()
            if value is None:
                what.pop(key, None)
            else:
                what[key] = value


_Step = Callable[[Sequence[Swap]], list[Answer]]
_HaveDone = Callable[[_Step, Sequence[Swap]], Callable[[], list[Answer]]]


@dataclass
class _Reply:
    """What a call has come to by now."""

    value: Any = None
    error: LeaseLost | Elsewhere | None = None


class SimulatedDriver(Driver):
    """The way of one node to the store."""

    def __init__(self, cluster: Cluster, node: Any, ttl_s: float) -> None:
        super().__init__(StoreUrl("sim"), namespace="sim", ttl_s=ttl_s, timeout_s=min(ttl_s / 5, 1.0))
        self.cluster, self.node, self.store, self.world = cluster, node, cluster.store, cluster.world
        self.network = Network()
        #: When the renewal began that was answered last: what this node may trust in, by the book.
        self.renewal_began = float("-inf")
        self._issued: dict[tuple[str, str], int] = {}

    def _call(self, step: Callable[[], Any], *, write: bool) -> Any:
        """Have one atomic step done in the store; or lose it, lose its answer, or have it arrive late."""
        return self._begin(step, write=write)()

    def _begin(self, step: Callable[[], Any], *, write: bool) -> Callable[[], Any]:
        """Send a call; returns what waits for its answer."""
        world, network, random = self.world, self.network, self.world.random
        now, timeout = world.now, self.timeout_s
        if random.random() < 0.001 or now >= network.slow_until:
            trip = random.expovariate(1 / 0.004)
        else:
            trip = random.expovariate(1 / network.slow_s)
        there = trip * random.random()
        arrives = answered = True
        if now < network.cut_until or now < self.store.down_until or (write and now < network.write_cut_until):
            arrives = answered = False
        elif now < network.deaf_until:
            answered = False
        elif now < self.store.flaky_until and random.random() < self.store.flakiness:
            answered = False
            arrives = random.random() < 0.6
            if arrives and random.random() < 0.5:
                there = random.uniform(0.3, 6.0)  # on its way for longer than anybody waits
                self.cluster.trouble(None, there, "a late call")
        reply = _Reply()
        if arrives:
            if write or not answered or trip > timeout:
                # It arrives whatever becomes of the caller meanwhile.
                world.after(there, self._arrive, step, reply)
            elif random.random() < 0.5:
                self._arrive(step, reply)
            else:
                self.node.process.sleep(trip)
                self._arrive(step, reply)
                trip = 0.0
        lost = not answered or trip > timeout
        if lost:
            trip = timeout if arrives or random.random() < 0.7 else 0.001
        until = world.now + trip

        def answer() -> Any:
            if trip:
                self.node.process.sleep(max(until - world.now, 0.0))
            if lost:
                raise StoreUnavailable("lost")
            if reply.error is not None:
                raise reply.error
            return reply.value

        return answer

    @staticmethod
    def _arrive(step: Callable[[], Any], reply: _Reply) -> None:
        try:
            reply.value = step()
        except (LeaseLost, Elsewhere) as exc:
            reply.error = exc

    # Membership

    def join(self, membership: str, info: str) -> int | None:
        return self._show(lambda: self.store.join(membership, info))

    def renew(self, membership: str, info: str) -> int | None:
        known = self.incarnation
        return self._show(lambda: self.store.renew(membership, info, known))

    def _show(self, show: Callable[[], int | None]) -> int | None:
        began = self.world.now
        clock_us, self.incarnation = self._call(lambda: (show(), self.store.name), write=True)
        self.renewal_began = began
        return clock_us  # type: ignore[no-any-return]

    def members(self) -> dict[str, Member]:
        members: dict[str, Member] = self._call(lambda: dict(self.store.nodes), write=False)
        return members

    def remove(self, membership: str, pulse: str | None = None) -> bool:
        def step() -> bool:
            member = self.store.nodes.get(membership)
            if member is not None and pulse not in (None, member.pulse):
                return False
            self.store.write(self.store.nodes, membership, None)
            if node_of(membership) == self.node.node_id:
                self.store.left.add(membership)
            return True

        return bool(self._call(step, write=True))

    # Ledger

    def read(self, keys: Sequence[str]) -> list[str | None]:
        records: list[str | None] = self._call(lambda: [self.store.ledger.get(key) for key in keys], write=False)
        if not self.node.putting_back:
            # Who puts back reads everything, and keeps but what is its own.
            self._told(zip(keys, records, strict=True))
        return records

    def _told(self, records: Iterable[tuple[str, str | None]]) -> None:
        for key, text in records:
            if not key.startswith(RESERVED):
                self.cluster.promises.losses.tell(self.node, key, text)

    def _since(self, key: str, new: str) -> int:
        """When this node first tried to write this."""
        return self._issued.setdefault((key, new), self.world.time_us)

    def swap(self, swaps: Sequence[Swap], fence: str | None = None) -> list[Answer]:
        return self._swapping(swaps, fence, self._in_parts)()

    def swapping(self, swaps: Sequence[Swap], fence: str | None = None) -> Callable[[], list[Answer]]:
        if self.store.name:
            return super().swapping(swaps, fence)
        return self._swapping(swaps, fence, self._all_at_once)

    def _swapping(self, swaps: Sequence[Swap], fence: str | None, have_done: _HaveDone) -> Callable[[], list[Answer]]:
        if not swaps:
            return list
        promises, known = self.cluster.promises, self.incarnation
        began = {swap: self._since(swap.key, swap.new) for swap in swaps}
        if fence is not None:
            promises.acts(self.node, "claims")

        def step(some: Sequence[Swap]) -> list[Answer]:
            self.store.check(fence, known)
            answers = []
            for swap in some:
                found = self.store.ledger.get(swap.key)
                if found == swap.expected:
                    self.store.write(self.store.ledger, swap.key, swap.new)
                    if swap.key == GENERATION:
                        promises.wrote_generation(self.node, swap.new)
                    elif not swap.key.startswith(RESERVED):
                        promises.wrote(self.node, fence, swap.key, found, swap.new, began[swap], {})
                    found = swap.new
                    answers.append(Answer(True, found))
                else:
                    answers.append(Answer(False, found))
            return answers

        waiting = have_done(step, swaps)

        def answers() -> list[Answer]:
            try:
                found = waiting()
            except LeaseLost:
                self._issued.clear()
                raise
            for swap in swaps:
                self._issued.pop((swap.key, swap.new), None)
            self._told((swap.key, answer.record) for swap, answer in zip(swaps, found, strict=True))
            return found

        return answers

    def _in_parts(self, step: _Step, swaps: Sequence[Swap]) -> Callable[[], list[Answer]]:
        """Have as much done in each step as the store takes at once: a fault between two leaves the batch half done."""

        def answers() -> list[Answer]:
            found, began, most = list[Answer](), self.world.now, self.cluster.plan.most_at_once
            for at in range(0, len(swaps), most):
                if self.world.now - began > self.timeout_s:
                    raise StoreUnavailable("the rest was not written in time")
                found += self._call(partial(step, swaps[at : at + most]), write=True)
            return found

        return answers

    def _all_at_once(self, step: _Step, swaps: Sequence[Swap]) -> Callable[[], list[Answer]]:
        """The same, with all steps on their way at a time: they arrive in any order, each or not."""
        most = self.cluster.plan.most_at_once
        parts = [self._begin(partial(step, swaps[at : at + most]), write=True) for at in range(0, len(swaps), most)]
        return lambda: [answer for part in parts for answer in part()]

    def claim_and_push(self, claims: Sequence[Claim], fence: str) -> Pushing:
        """Claim, and put the messages into the broker's queue, in one step."""
        promises, now_us, known = self.cluster.promises, self.world.time_us, self.incarnation
        promises.acts(self.node, "claims")

        def step() -> list[Answer | PushRefused]:
            self.store.check(fence, self.store.name)
            if known != self.store.name:
                raise Elsewhere
            answers: list[Answer | PushRefused] = []
            for claim in claims:
                found = self.store.ledger.get(claim.key)
                if found != claim.expected:
                    answers.append(Answer(False, found))
                    continue
                if self.world.random.random() < self.cluster.broker.refusals:
                    answers.append(PushRefused("the list is of another kind"))
                    continue
                self.store.write(self.store.ledger, claim.key, claim.new)
                pushed = {int(message): "" for message in claim.messages}
                promises.wrote(self.node, fence, claim.key, found, claim.new, now_us, pushed)
                for instant in pushed:
                    promises.delivered(self.node, claim.key, instant, 1)
                answers.append(Answer(True, claim.new))
            return answers

        def answers() -> list[Answer | PushRefused]:
            found: list[Answer | PushRefused] = self._call(step, write=True)
            self._told((c.key, a.record) for c, a in zip(claims, found, strict=True) if isinstance(a, Answer))
            return found

        return answers

    def close(self) -> None:
        self._issued.clear()
