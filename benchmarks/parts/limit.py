"""What the machine can take: the bytes of a real message, pushed without anything that a scheduler does."""

from __future__ import annotations

import multiprocessing
import socket
import time
from io import BytesIO

import amqp
import psutil  # type: ignore[import-untyped]
from amqp.method_framing import frame_writer
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
    burst(OURS, bench.rabbit, 100, store=bench.redis_store, bound_s=10)
    with _connected(bench) as connection:
        real = connection.channel().basic_get(NAME, no_ack=True)
    rabbit = [_publish(bench, real, size_rabbit) for _ in bench.rounds()]
    rows = [
        ("nobody watches the queue", spread(alone)),
        (f"its length is asked every {POLL_S * 1000:g} ms, as in all that follows", spread(watched)),
    ]
    before = f"LPUSH of one real message ({len(message)} bytes), {_BATCH} in a pipeline, one client, one Redis."
    rows_rabbit = [
        ("nobody watches the queue", spread([rate for rate, _ in rabbit]), spread([cpu_us for _, cpu_us in rabbit]))
    ]
    before_rabbit = (
        f"Copies of one real message, persistent, {_SLICE} written at a time, two such slices on their way, all of them"
        " confirmed; one client, one RabbitMQ, on all cores of the machine."
    )
    heads_rabbit = ("", "messages/s", "RabbitMQ's CPU, us a message")
    tables = [Table(("", "messages/s"), rows, before), Table(heads_rabbit, rows_rabbit, before_rabbit)]
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


def _publish(bench: Bench, message: amqp.Message, size: int) -> tuple[float, float]:
    """Return the rate, and the server's processor time in microseconds a message."""
    bench.rabbit.empty()
    with _connected(bench) as connection:
        channel, confirmed, sent = connection.channel(), [0], 0
        channel.confirm_select()
        channel.events["basic_ack"].add(lambda tag, multiple: confirmed.append(tag))
        slice_ = _frames(channel, message) * _SLICE
        began, cpu_s = time.perf_counter(), _cpu_s(bench)
        while max(confirmed) < size:
            while sent < size and sent - max(confirmed) < 2 * _SLICE:
                connection.transport.write(slice_)
                sent += _SLICE
            connection.drain_events(timeout=10)
        found = size / (time.perf_counter() - began), (_cpu_s(bench) - cpu_s) * 1_000_000 / size
    bench.rabbit.empty()
    return found


def _connected(bench: Bench) -> amqp.Connection:
    where = parse_url(bench.rabbit.url)
    return amqp.Connection(f"{where['hostname']}:{where['port']}", where["userid"], where["password"])


def _frames(channel: amqp.Channel, message: amqp.Message) -> bytes:
    """A message to the queue, as py-amqp writes it."""
    connection, written = channel.connection, BytesIO()
    write, connection.frame_writer = connection.frame_writer, frame_writer(connection, written)
    channel._basic_publish(amqp.Message(message.body, **message.properties), exchange="", routing_key=NAME)
    connection.frame_writer = write
    return written.getvalue()


def _cpu_s(bench: Bench) -> float:
    assert bench.rabbit_server.pid is not None
    server = psutil.Process(bench.rabbit_server.pid)
    # What is started is a script; the server is what it has started.
    return sum(sum(process.cpu_times()[:2]) for process in (server, *server.children(recursive=True)))


def _address(bench: Bench) -> tuple[str, str, int]:
    return bench.redis.url, bench.redis_server.host, bench.redis_server.port


def _watch(url: str, host: str, port: int) -> None:
    watch(RedisQueue(url, host, port), 1 << 60, time.time() + 60)
