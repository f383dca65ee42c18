"""A sender is killed again and again, at random moments of its bursts: each run is in the queue once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from celery_distsched.drivers import StoreUrl, Swap, open_driver
from celery_distsched.record import Record
from tests.figures import Figure
from tests.same_redis.senders import QUEUE
from tests.servers import RedisServer

ROOT = Path(__file__).parents[2]
ENTRIES, INTERVAL_S = 300, 0.1
#: From the moment that a burst is due: before it, in the middle of it, and after it.
MOMENTS_S = (-0.005, 0.03)


class Killing:
    """Senders one after the other on a schedule whose entries are all due at the same instants."""

    def __init__(self, url: str) -> None:
        self.namespace = "kills"
        self.client: Any = redis.Redis.from_url(url, decode_responses=True)
        self.client.flushdb()
        self.driver = open_driver(StoreUrl.parse(url), namespace=self.namespace, ttl_s=2.0, timeout_s=5.0, options={})
        self.names = [f"entry {number}" for number in range(ENTRIES)]
        self.first_us = time.time_ns() // 1000 + 1_000_000
        self.driver.swap([Swap(name, None, Record(self.first_us).text()) for name in self.names])
        self.seen: Counter[tuple[str, str]] = Counter()
        self.senders = subprocess.Popen(
            [sys.executable, "-m", "tests.same_redis.senders", url, self.namespace, str(ENTRIES), str(INTERVAL_S)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def start(self) -> int:
        assert self.senders.stdin is not None
        assert self.senders.stdout is not None
        self.senders.stdin.write("\n")
        self.senders.stdin.flush()
        return int(self.senders.stdout.readline())

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        # As the others would, a TTL later: its fence is void from here on.
        for membership in self.driver.members():
            self.driver.remove(membership)

    def wait_until_sending(self) -> None:
        """A burst later it is in its stride, and has caught up."""
        before, deadline = self.take(), time.monotonic() + 20
        while self.take() == before:
            assert time.monotonic() < deadline, "nothing is sent"
            time.sleep(0.002)

    def wait_for_burst(self, chance: random.Random) -> None:
        now = time.time()
        since = (now - self.first_us / 1e6) % INTERVAL_S
        wait_s = INTERVAL_S - since + chance.uniform(*MOMENTS_S)
        time.sleep(wait_s if wait_s > 0.01 else wait_s + INTERVAL_S)

    def take(self) -> int:
        while messages := self.client.rpop(QUEUE, 1000):
            for text in messages:
                headers = json.loads(text)["headers"]
                self.seen[headers["periodic_task_name"], headers["scheduled_at"]] += 1
        return self.seen.total()

    def judge(self) -> tuple[int, int, int]:
        """Return how many runs were claimed, and of these how many are missing and how many came more than once."""
        due = 0
        for text in self.driver.read(self.names):
            assert text is not None
            record = Record.parse(text)
            assert not record.open
            due += round((record.last - self.first_us) / 1e6 / INTERVAL_S)
        self.take()
        doubled = sum(count > 1 for count in self.seen.values())
        return due, due - len(self.seen), doubled

    def close(self) -> None:
        assert self.senders.stdin is not None
        self.senders.stdin.close()
        self.senders.wait(10)
        assert self.senders.stdout is not None
        self.senders.stdout.close()
        with suppress(redis.RedisError):
            self.client.flushdb()
        self.client.close()
        self.driver.close()


def _kill(url: str, kills: int, figure: Figure) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    killing = Killing(url)
    try:
        for _ in range(kills):
            pid = killing.start()
            killing.wait_until_sending()
            killing.wait_for_burst(chance)
            killing.kill(pid)
        # Whoever comes last sends what all of them have left.
        last = killing.start()
        killing.wait_until_sending()
        time.sleep(2 * INTERVAL_S)
        killing.kill(last)
        due, lost, doubled = killing.judge()
    finally:
        killing.close()
    print(f"{kills} kills, {due} runs, {lost} lost, {doubled} doubled; seed {seed}")
    what = f"runs lost or sent twice; {kills:,} senders killed in the middle of bursts, one after the other"
    figure.runs("exactly once", "redis+zset", lost + doubled, due, what)
    assert due >= kills * ENTRIES, "it was killed before it sent"
    assert (lost, doubled) == (0, 0), f"seed {seed}"


def test_a_sender_that_is_killed_forty_times_loses_nothing_and_doubles_nothing(url: str, figure: Figure) -> None:
    _kill(url, 40, figure)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_sender_that_is_killed_a_thousand_times_loses_nothing_and_doubles_nothing(figure: Figure) -> None:
    with RedisServer() as server:
        _kill(server.url(path="/0"), 1000, figure)
