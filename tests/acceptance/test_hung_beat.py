"""Hung beat: one whose loop is stuck costs its share a TTL and a second, does not answer ping, and says so."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import celery

from tests.acceptance.beat import command_line
from tests.acceptance.cluster import Cluster
from tests.acceptance.outages import silent
from tests.acceptance.queue import Queue
from tests.figures import Figure
from tests.servers import RedisServer, Server
from tests.wire import Wire

TTL_S = 2.0
#: Seconds for which a share may be missed.
BOUND_S = TTL_S + 1.0
ANSWERS_PING = celery.VERSION >= (5, 7)


def test_a_stuck_loop_costs_its_share_a_ttl_and_a_second(
    store_url: Callable[[str], str], queue: Queue, tmp_path: Path, figure: Figure
) -> None:
    with Cluster(store_url("redis+zset"), queue, entries=60, ttl_s=TTL_S, hangs=True) as cluster:
        words = ("beat", "-l", "INFO", *(("--enable-remote-control", "-n", "{name}@%h") if ANSWERS_PING else ()))
        stuck, healthy = cluster.start(2, words)
        began = time.time()
        cluster.wait_until_sending(stuck)
        with cluster.hung(stuck):
            time.sleep(2 * TTL_S + 1)
            if ANSWERS_PING:
                answers = pinged(healthy.environment(), tmp_path)
                assert [node for node in answers if healthy.name in node], f"{answers}{cluster.story()}"
                assert not [node for node in answers if stuck.name in node], f"{answers}{cluster.story()}"
        cluster.wait_until_each_sends([stuck, healthy], within_s=15)
        ended = time.time()
        cluster.settle(began, ended)
        cluster.judge(began, ended)
        (hung,) = cluster.hurts
        worst_s = max(cluster.sent.delays(hung.at, upto=hung.at + BOUND_S).values())
        figure.seconds("trust", "redis+zset", worst_s, BOUND_S, "the latest run of what a stuck loop held up")
        assert worst_s <= BOUND_S, f"{worst_s:.2f} s{cluster.story()}"
        assert len(stuck.lines("the scheduler loop has stood still")) == 1, cluster.story()
        assert len(stuck.lines("the scheduler loop moves again")) == 1, cluster.story()
        if ANSWERS_PING:
            answers = pinged(healthy.environment(), tmp_path)
            assert len(answers) == 2, f"{answers}{cluster.story()}"


def test_a_broker_that_is_silent_to_one_beat_costs_its_share_a_ttl_and_a_second(
    store_url: Callable[[str], str],
    queue: Queue,
    redis_server: RedisServer,
    wire_to: Callable[[Server], Wire],
    figure: Figure,
) -> None:
    wire = wire_to(redis_server)
    through_wire = redis_server.url(port=wire.port, path="/9")
    with Cluster(store_url("redis+zset"), queue, entries=60, ttl_s=TTL_S, broker=through_wire) as cluster:
        deaf, healthy = cluster.start(2)
        began = time.time()
        cluster.wait_until_sending(deaf)
        with cluster.during(silent("broker", wire, only=deaf)):
            time.sleep(2 * TTL_S)
        cluster.wait_until_each_sends([deaf, healthy], within_s=15)
        ended = time.time()
        cluster.settle(began, ended)
        cluster.judge(began, ended)
        (away,) = cluster.outages
        worst_s = max(cluster.sent.delays(away.at, upto=away.at + BOUND_S).values())
        figure.seconds("no broker", "redis+zset", worst_s, BOUND_S, "the broker is silent to one beat of two")
        assert worst_s <= BOUND_S, f"{worst_s:.2f} s{cluster.story()}"


def pinged(environment: dict[str, str], folder: Path) -> dict[str, object]:
    """Return what ``celery inspect ping`` is answered, by node."""
    asked = subprocess.run(
        command_line("inspect", "ping", "--json", "--timeout", "2"),
        env={**os.environ, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    answers: dict[str, object] = json.loads(asked.stdout) if asked.returncode == 0 else {}
    return answers
