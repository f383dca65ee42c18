from __future__ import annotations

import gc
from contextlib import closing, suppress

import psutil  # type: ignore[import-untyped]
import pytest
import redis
from celery import Celery
from celery.beat import SchedulingError

from celery_distsched.broker import Broker
from celery_distsched.outcome import takes_nothing
from celery_distsched.testing.checks import ended_well, forked
from tests.servers import RabbitServer, RedisServer, free_port


@pytest.mark.parametrize(
    "urls",
    [
        "redis://:p%40ss@localhost:1/0",
        "amqp://me:p%40ss@one//;amqp://me:other@two//",
        ["redis://localhost:1/0", "redis://me:p%40ss@localhost:2/0"],
    ],
    ids=str,
)
def test_what_a_broker_says_is_repeated_without_its_passwords(urls: str | list[str]) -> None:
    app = Celery(set_as_current=False, broker=urls)
    says = Broker(app, None, 1.0).says(OSError("unknown command 'AUTH' with p@ss, or p%40ss"))
    assert says == "unknown command 'AUTH' with **, or **"


def test_a_redis_that_takes_nothing_is_told_from_what_is_wrong_with_one_message() -> None:
    with RedisServer() as server, redis.Redis(server.host, server.port) as client:

        def says(*, in_a_pipeline: bool) -> BaseException:
            with pytest.raises(redis.RedisError) as refused:
                client.pipeline().sadd("set", "member").execute() if in_a_pipeline else client.sadd("set", "member")
            return refused.value

        for setting, on, off in (("maxmemory", "1", "0"), ("min-replicas-to-write", "1", "0")):
            client.config_set(setting, on)
            assert takes_nothing(says(in_a_pipeline=False))
            assert takes_nothing(says(in_a_pipeline=True))
            client.config_set(setting, off)
        client.set("set", "a text")
        assert not takes_nothing(says(in_a_pipeline=False))
    # What is the user's own may be called as it likes.
    assert not takes_nothing(SchedulingError("NOREPLICAS check: MISCONF of an argument"))
    assert not takes_nothing(type("OutOfMemoryError", (RuntimeError,), {})("of a GPU"))


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_broker_that_is_away_costs_no_file_descriptors(scheme: str) -> None:
    app = Celery(set_as_current=False, broker=f"{scheme}://127.0.0.1:{free_port()}")
    broker, process = Broker(app, app.amqp.Producer, 1.0), psutil.Process()
    gc.disable()
    try:
        counts = []
        for _ in range(20):
            with suppress(Exception):  # each transport has one of its own
                broker.connect()
            counts.append(process.num_fds())
    finally:
        gc.enable()
    assert counts[-1] == counts[2]


@pytest.mark.parametrize("end", ["close", "drop", "connect"])
def test_a_forked_process_leaves_the_parents_connection_alone(rabbit_server: RabbitServer, end: str) -> None:
    app = Celery(set_as_current=False, broker=rabbit_server.url())
    broker = Broker(app, app.amqp.Producer, 5.0)
    with closing(broker):
        connection = broker.connection

        def child() -> None:
            getattr(broker, end)()
            assert broker.current is not connection

        ended_well(forked(child), within_s=10.0)
        assert broker.answers()
        assert broker.connection is connection
