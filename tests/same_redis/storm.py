"""Whole `celery beat` processes on a Redis that is store and broker, and what can befall them."""

from __future__ import annotations

import json
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import redis

from tests.acceptance import queue as acceptance
from tests.acceptance.cluster import Cluster as AcceptanceCluster
from tests.acceptance.cluster import wait_for_a_burst
from tests.servers import ServerFailed

TTL_S = 2.0
#: What a beat says of its way to send.
IN_FORCE, NOT_IN_FORCE = "exactly once enqueued", "claimed, sent and confirmed one after the other"


class ConsumedQueue(acceptance.RedisQueue):
    """The queue as a worker leaves it, empty; what has been in it survives a restart of the server."""

    def _watch(self, over: threading.Event) -> None:
        with self._client() as client:
            while not over.wait(0.003):
                with suppress(redis.RedisError):
                    while client.lmove("celery", "consumed", "RIGHT", "LEFT"):
                        pass
                    new = client.lrange("consumed", 0, -len(self.messages) - 1)
                    seen_at = time.time()
                    self.messages += [
                        acceptance.message_of(json.loads(text)["headers"], seen_at) for text in reversed(new)
                    ]


class Cluster(AcceptanceCluster):
    """Beats that send every run, however late, so that whatever is missing is lost."""

    def __init__(
        self, queue: acceptance.Queue, *, entries: int = 60, store: str | None = None, **settings: Any
    ) -> None:
        super().__init__(store or queue.url, queue, entries=entries, ttl_s=TTL_S)
        self.change(distsched_catch_up="all", **settings)

    def change(self, **settings: Any) -> None:
        """Let beats that are started from now on have these settings."""
        given = json.loads(self.environment["ACCEPTANCE"])
        given["settings"].update(settings)
        self.environment = {"ACCEPTANCE": json.dumps(given)}

    def storm(self, kills: int, chance: random.Random) -> None:
        """Kill one beat after the other, those too that are only starting, and start another for each."""
        alive = sum(beat.pid is not None for beat in self.beats)
        with ThreadPoolExecutor(alive) as starters:
            for _ in range(kills):
                if chance.random() < 0.5:
                    wait_for_a_burst()
                else:
                    time.sleep(chance.uniform(0.5, 2))
                living = [beat for beat in self.beats if beat.pid is not None]
                if living:
                    self.kill(chance.choice(living))
                starters.submit(self._start_one)

    def _start_one(self) -> None:
        # It may be killed before it has sent anything.
        with suppress(ServerFailed):
            self.start()

    def judge_exactly_once(self, began: float) -> int:
        """Say of all since a moment that nothing was lost and nothing came twice; return how much there was."""
        ended = time.time() - 1
        self.settle(began, ended)
        sent, story = self.sent, self.story()
        lost, doubled = sent.lost(began, ended), sent.doubled()
        assert not lost, f"{len(lost)} lost: {', '.join(map(str, lost[:20]))}{story}"
        assert not doubled, f"{len(doubled)} doubled: {dict(list(doubled.items())[:20])}{story}"
        assert not sent.strays(), f"for no instant: {sent.strays()}{story}"
        assert not sent.confused(), f"task ids: {sent.confused()}{story}"
        assert IN_FORCE in story
        return len(sent.messages)
