"""What the machine can take: the bytes of a real message, pushed without anything that a scheduler does."""

from __future__ import annotations

import multiprocessing
import socket
import time

from benchmarks.bench import Bench
from benchmarks.contenders import OURS
from benchmarks.queues import NAME, POLL_S, RedisQueue, watch
from benchmarks.report import Section, Table, spread
from benchmarks.runs import burst

_BATCH = 1000


def run(bench: Bench) -> Section:
    """Push copies of a message in a pipeline, with somebody watching the queue, and without."""
    burst(OURS, bench.redis, 100, bound_s=10)
    message = bench.redis.messages()[0]
    size = bench.choose(200_000, 50_000)
    alone: list[float] = []
    watched: list[float] = []
    for number in bench.rounds():
        bench.say(f"limit: round {number + 1}")
        alone.append(_push(bench, message, size))
        # In a process of its own, as in all other parts: two threads would get in each other's way.
        watcher = multiprocessing.get_context("spawn").Process(target=_watch, args=_address(bench), daemon=True)
        watcher.start()
        try:
            time.sleep(1)
            watched.append(_push(bench, message, size))
        finally:
            watcher.kill()
            watcher.join()
    rows = [
        ("nobody watches the queue", spread(alone)),
        (f"its length is asked every {POLL_S * 1000:g} ms, as in all that follows", spread(watched)),
    ]
    before = f"LPUSH of one real message ({len(message)} bytes), {_BATCH} in a pipeline, one client, one Redis."
    return Section("The limit of the machine", [Table(("", "messages/s"), rows, before)])


def _push(bench: Bench, message: bytes, size: int) -> float:
    bench.redis.empty()
    one = b"*3\r\n$5\r\nLPUSH\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % (len(NAME), NAME.encode(), len(message), message)
    server = bench.redis_server
    with socket.create_connection((server.host, server.port)) as connection, connection.makefile("rb") as answers:
        began = time.perf_counter()
        for _ in range(size // _BATCH):
            connection.sendall(one * _BATCH)
            for _ in range(_BATCH):
                answers.readline()
        return size / (time.perf_counter() - began)


def _address(bench: Bench) -> tuple[str, str, int]:
    return bench.redis.url, bench.redis_server.host, bench.redis_server.port


def _watch(url: str, host: str, port: int) -> None:
    watch(RedisQueue(url, host, port), 1 << 60, time.time() + 60)
