"""The simulated broker: it takes a message, refuses it, or leaves its sender without an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from celery_distsched.outcome import Outcome
from tests.simulation.world import World


@dataclass
class Broker:
    """The simulated broker; each time is on `World.now`."""

    down_until: float = 0.0
    #: Until then an attempt is refused, or ends without an answer, with these likelihoods.
    shaky_until: float = 0.0
    refused: float = 0.0
    unknown: float = 0.0
    #: How often a push in the same Redis is refused.
    refusals: float = 0.0
    #: Nodes for which it is out of reach, and until when.
    cut_until: dict[str, float] = field(default_factory=dict)

    def reachable(self, world: World, node_id: str) -> bool:
        return world.now >= max(self.down_until, self.cut_until.get(node_id, 0.0))

    def send_slice(self, node: Any, slice_: Mapping[str, Sequence[int]]) -> Callable[[], dict[str, list[Outcome]]]:
        """Let a node write a slice of first attempts at once; returns what waits for the answers.

        Where the connection breaks, the broker has answered for some of them, and of the others has some.
        """
        world, random, promises = node.world, node.world.random, node.cluster.promises
        messages = [(name, instant) for name, instants in slice_.items() for instant in instants]
        outcomes = dict.fromkeys(messages, Outcome.ACCEPTED)
        for name, instant in messages:
            promises.sends(node, name, instant)
        fate = random.random() if world.now < self.shaky_until else 1.0
        reachable = self.reachable(world, node.node_id)
        trip, answered_in_s = random.expovariate(1 / 0.001), 0.01
        if fate < self.refused or (not reachable and random.random() < 0.8):
            outcomes = dict.fromkeys(messages, Outcome.REFUSED)
        else:
            answered, answered_in_s = len(messages), 2 * trip
            if not reachable or fate < self.refused + self.unknown:
                answered = random.randrange(len(messages)) if reachable else 0
                answered_in_s = node.settings.node_ttl / 2
            for number, (name, instant) in enumerate(messages):
                if number >= answered:
                    outcomes[name, instant] = Outcome.UNKNOWN
                    promises.unanswered(name, instant)
                elif random.random() < self.refusals:
                    outcomes[name, instant] = Outcome.REJECTED
                    continue
                if number < answered or (reachable and random.random() < 0.6):
                    world.after(trip, promises.delivered, node, name, instant, 1)
        at = world.now + answered_in_s

        def answers() -> dict[str, list[Outcome]]:
            node.process.sleep(max(at - world.now, 0.0))
            return {name: [outcomes[name, instant] for instant in instants] for name, instants in slice_.items()}

        return answers

    def send(self, node: Any, name: str, instant: int, attempt: int) -> Outcome:
        """Let a node try once to bring a message here."""
        world, random, promises = node.world, node.world.random, node.cluster.promises
        ttl_s = node.settings.node_ttl
        promises.sends(node, name, instant)
        if not self.reachable(world, node.node_id):
            if random.random() < 0.8:
                node.process.sleep(0.01)
                return Outcome.REFUSED
            node.process.sleep(ttl_s / 2)
            promises.unanswered(name, instant)
            return Outcome.UNKNOWN
        fate = random.random() if world.now < self.shaky_until else 1.0
        if fate < self.refused:
            node.process.sleep(0.01)
            return Outcome.REFUSED
        node.process.sleep(random.expovariate(1 / 0.0003))
        trip = random.expovariate(1 / 0.001)
        unknown = fate < self.refused + self.unknown
        if unknown:
            promises.unanswered(name, instant)
        if not unknown or random.random() < 0.6:
            # Once it is written, it arrives, whatever becomes of this process.
            world.after(trip, promises.delivered, node, name, instant, attempt)
        node.process.sleep(ttl_s / 2 if unknown else 2 * trip)
        return Outcome.UNKNOWN if unknown else Outcome.ACCEPTED
