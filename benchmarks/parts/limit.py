"""What the machine can take: the bytes of a real message, pushed without anything that a scheduler does."""

from __future__ import annotations

import multiprocessing
import socket
import struct
import time

import amqp
from kombu.utils.url import parse_url

from benchmarks.bench import Bench
from benchmarks.contenders import OURS
from benchmarks.queues import NAME, POLL_S, RedisQueue, watch
from benchmarks.report import Section, Table, spread
from benchmarks.runs import burst

_BATCH = 1000
_SLICE = 500


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
    size_rabbit = bench.choose(50_000, 10_000)
    rabbit = [_publish(bench, len(message), size_rabbit) for _ in bench.rounds()]
    rows = [
        ("nobody watches the queue", spread(alone)),
        (f"its length is asked every {POLL_S * 1000:g} ms, as in all that follows", spread(watched)),
    ]
    before = f"LPUSH of one real message ({len(message)} bytes), {_BATCH} in a pipeline, one client, one Redis."
    rows_rabbit = [("nobody watches the queue", spread(rabbit))]
    before_rabbit = (
        f"Persistent messages of as many bytes, {_SLICE} written at a time, two such slices on their way, all of them"
        " confirmed; one client, one RabbitMQ."
    )
    tables = [Table(("", "messages/s"), rows, before), Table(("", "messages/s"), rows_rabbit, before_rabbit)]
    return Section("The limit of the machine", tables)


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


def _publish(bench: Bench, length: int, size: int) -> float:
    bench.rabbit.empty()
    where = parse_url(bench.rabbit.url)
    connection = amqp.Connection(f"{where['hostname']}:{where['port']}", where["userid"], where["password"])
    connection.connect()
    channel, confirmed = connection.channel(), [0]
    channel.confirm_select()
    channel.events["basic_ack"].add(lambda tag, multiple: confirmed.append(tag))
    slice_ = _frames(channel.channel_id, length) * _SLICE
    began, sent = time.perf_counter(), 0
    while max(confirmed) < size:
        while sent < size and sent - max(confirmed) < 2 * _SLICE:
            connection.transport.write(slice_)
            sent += _SLICE
        connection.drain_events(timeout=10)
    rate = size / (time.perf_counter() - began)
    connection.close()
    bench.rabbit.empty()
    return rate


def _frames(channel: int, length: int) -> bytes:
    """One persistent message to the queue, as AMQP 0-9-1 writes it: Basic.Publish, header, body."""
    publish = struct.pack(">HHHB", 60, 40, 0, 0) + bytes([len(NAME)]) + NAME.encode() + b"\0"
    persistent = struct.pack(">HHQHB", 60, 0, length, 1 << 12, 2)
    payloads = ((1, publish), (2, persistent), (3, b"x" * length))
    return b"".join(struct.pack(">BHI", kind, channel, len(it)) + it + b"\xce" for kind, it in payloads)


def _address(bench: Bench) -> tuple[str, str, int]:
    return bench.redis.url, bench.redis_server.host, bench.redis_server.port


def _watch(url: str, host: str, port: int) -> None:
    watch(RedisQueue(url, host, port), 1 << 60, time.time() + 60)
