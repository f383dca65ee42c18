"""Where claim and push cannot be one step, what is claimed is sent in slices: the same messages, each answered for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import amqp.channel
import pytest
import redis
from celery import Celery
from kombu import entity
from kombu.connection import Connection

from celery_distsched import DistributedScheduler, message_kinds, survey
from celery_distsched.entries import PlannedEntry
from celery_distsched.fast_way import FastWay
from celery_distsched.outcome import Outcome
from celery_distsched.record import Record
from tests.same_redis.sending import run
from tests.same_redis.test_messages import ENTRIES
from tests.same_redis.two_ways import INSTANT_US, app_of, timeless
from tests.same_redis.watched import ORDINARY, Watch
from tests.scheduler.cluster import HOURLY, Beat, Cluster, now_us
from tests.servers import RabbitServer, RedisServer
from tests.servers.process import free_port

# Any: kombu's calls have no types.
Exchange: Any = entity.Exchange
Queue: Any = entity.Queue
IN_SLICES = "claimed, sent and confirmed one after the other, in slices"
OTHER = {"nightly": HOURLY, "hourly": HOURLY}


class Sending:
    """A scheduler whose ledger is somewhere else than its broker, and what it leaves in the broker's queues."""

    def __init__(self, app: Celery, broker: str) -> None:
        app.conf.update(
            broker_url=broker, distsched_url="memory://slices", distsched_namespace="slices", result_expires=None
        )
        self.app = app
        self.scheduler = DistributedScheduler(app)
        self.way = FastWay(self.scheduler, self.scheduler.node_id)
        self.planned = self.scheduler._plan()
        self.way.set_entries(self.planned)

    def slice(self, *names: str) -> dict[str, list[Outcome]]:
        """Send one occurrence of each in a slice."""
        self.scheduler.broker.connect()
        assert self.way.slices(1e6) is not None, self.way._why_no_lane
        due = dict.fromkeys(names, (INSTANT_US,))
        messages = self.way.messages(due)
        assert messages.keys() == due.keys(), self.way._publisher
        return self.way.send({name: (due[name], messages[name]) for name in names})()

    def ordinary(self, planned: PlannedEntry) -> None:
        assert self.scheduler._send(planned, INSTANT_US, 1) is Outcome.ACCEPTED

    def close(self) -> None:
        self.app.close()
        self.scheduler.close()
        self.scheduler.driver.close()


NewSending = Callable[..., Sending]


@pytest.fixture
def sending(request: pytest.FixtureRequest) -> Iterator[NewSending]:
    made: list[Sending] = []

    def new(broker: str, schedule: dict[str, Any], **conf: Any) -> Sending:
        made.append(Sending(app_of(schedule, **conf), broker))
        return made[-1]

    yield new
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def rabbit(rabbit_server: RabbitServer) -> str:
    return rabbit_server.url()


def _from_rabbit(url: str, queue: str) -> tuple[bytes, dict[str, Any]]:
    """Take the one message that is in a queue: its body and all its properties."""
    with Connection(url) as connection:  # type: ignore[no-untyped-call]
        channel = connection.default_channel
        message = channel.basic_get(queue, no_ack=True)
        assert message is not None, "nothing was sent"
        assert channel.basic_get(queue, no_ack=True) is None, "more than one was sent"
        return message.body, {**message.properties, "routing": message.delivery_info["routing_key"]}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_a_message_in_a_slice_to_rabbitmq_is_what_apply_async_sends(
    rabbit: str, sending: NewSending, entry: dict[str, Any]
) -> None:
    queue = "reports" if entry.get("options", {}).get("queue") else "its own" if entry.get("task") == "own" else "mine"
    both = sending(rabbit, {"größe %s": entry}, task_default_queue="mine")
    assert both.slice("größe %s") == {"größe %s": [Outcome.ACCEPTED]}
    sliced = _from_rabbit(rabbit, queue)
    both.ordinary(both.planned["größe %s"])
    assert timeless(sliced, ordinary := _from_rabbit(rabbit, queue)) == timeless(ordinary, ordinary)


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_a_message_in_a_slice_to_redis_is_what_apply_async_pushes(
    redis_server: RedisServer, sending: NewSending, entry: dict[str, Any]
) -> None:
    with redis.Redis.from_url(redis_server.url(path="/6")) as client:
        client.flushdb()
        both = sending(
            redis_server.url(path="/6"), {"größe %s": entry}, broker_transport_options={"global_keyprefix": "mine:"}
        )
        assert both.slice("größe %s") == {"größe %s": [Outcome.ACCEPTED]}
        left = []
        for _ in range(2):
            (key,) = (key for key in client.keys("mine:*") if client.type(key) == b"list")
            left.append((key, client.lrange(key, 0, -1)))
            client.delete(key)
            both.ordinary(both.planned["größe %s"])
        (key, (sliced,)), (other, (ordinary,)) = left
        assert key == other
        assert timeless(sliced, ordinary) == timeless(ordinary, ordinary)


def test_a_body_of_many_frames_arrives_whole(rabbit: str, sending: NewSending) -> None:
    both = sending(rabbit, {"large": {"args": ["x" * 400_000]}}, task_default_queue="large")
    assert both.slice("large") == {"large": [Outcome.ACCEPTED]}
    body, _ = _from_rabbit(rabbit, "large")
    assert len(body) > 400_000
    assert len(set(body[20:300_000])) == 1


def test_a_connection_that_is_lost_before_templates_are_made_costs_no_message_of_its_own(
    rabbit: str, sending: NewSending, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is caught to make a template of is of no occurrence: on a new connection it would leave."""
    monkeypatch.setattr(survey, "_LOOK_S", 0.0)
    both = sending(rabbit, {"one": {}, "two": {"options": {"priority": 3}}}, task_default_queue="lost")
    both.scheduler.broker.connect()
    assert both.way.slices(1e6) is not None
    both.scheduler.broker.drop()
    assert both.way.messages({"one": (INSTANT_US,), "two": (INSTANT_US,)}) == {}
    assert both.slice("one", "two") == {"one": [Outcome.ACCEPTED], "two": [Outcome.ACCEPTED]}
    with Connection(rabbit) as connection:  # type: ignore[no-untyped-call]
        channel = connection.default_channel
        sent = [channel.basic_get("lost", no_ack=True) for _ in range(3)]
    assert [message.headers["periodic_task_name"] for message in sent if message] == ["one", "two"]


def test_a_list_that_refuses_costs_no_other(redis_server: RedisServer, sending: NewSending) -> None:
    with redis.Redis.from_url(redis_server.url(path="/6")) as client:
        client.flushdb()
        schedule = {"barred": {"options": {"queue": "taken"}}, "free": {}, "too": {}}
        both = sending(redis_server.url(path="/6"), schedule)
        both.slice(*schedule)
        client.flushdb()
        client.set("taken", "by somebody")
        assert both.slice(*schedule) == {
            "barred": [Outcome.REJECTED],
            "free": [Outcome.ACCEPTED],
            "too": [Outcome.ACCEPTED],
        }
        assert client.llen("celery") == 2


@pytest.mark.parametrize("in_slices", [True, False], ids=["in a slice", "one by one"])
def test_a_queue_that_is_full_rejects_its_message_alone(rabbit: str, sending: NewSending, in_slices: bool) -> None:
    with Connection(rabbit) as connection:  # type: ignore[no-untyped-call]
        full = {"x-max-length": 1, "x-overflow": "reject-publish"}
        channel = connection.default_channel
        channel.queue_delete("full")
        channel.queue_declare("full", durable=True, auto_delete=False, arguments=full)
        channel.basic_publish(channel.prepare_message(b"there"), exchange="", routing_key="full")
    # Declared by somebody else, and so not by Celery.
    both = sending(rabbit, {"rejected": {"options": {"queue": "full", "declare": []}}, "free": {}})
    if in_slices:
        both.scheduler.broker.connect()
        slices: Any = both.way.slices(1e6)
        made = both.way.messages(dict.fromkeys(("rejected", "free"), (INSTANT_US,)))
        # The second is on its way before the first is answered.
        first, second = slices.send([*made["rejected"], *made["free"]]), slices.send(made["free"])
        assert second() == [Outcome.ACCEPTED]
        assert first() == [Outcome.REJECTED, Outcome.ACCEPTED]
    else:
        assert both.scheduler._send(both.planned["rejected"], INSTANT_US, 1) is Outcome.REJECTED


def test_a_channel_that_the_broker_closes_leaves_unknown_what_it_had_not_confirmed(
    rabbit: str, sending: NewSending, log: Callable[[], list[str]]
) -> None:
    with Connection(rabbit) as connection:  # type: ignore[no-untyped-call]
        connection.default_channel.exchange_declare("gone", "direct", durable=True, auto_delete=False)
    both = sending(rabbit, {"free": {}})
    both.scheduler.broker.connect()
    slices: Any = both.way.slices(1e6)
    (message,) = both.way.messages({"free": (INSTANT_US,)})["free"]
    # As when an exchange is deleted behind our back.
    astray = message.replace(b"\x00\x06celery\x00", b"\x04gone\x02xx\x00") if b"\x00\x06celery\x00" in message else b""
    assert astray
    with Connection(rabbit) as connection:  # type: ignore[no-untyped-call]
        connection.default_channel.exchange_delete("gone")
    before, after = slices.send([message]), slices.send([astray, message])
    assert before() in ([Outcome.ACCEPTED], [Outcome.UNKNOWN])
    assert Outcome.ACCEPTED not in after()[:1]
    # It is said once, of both.
    assert sum(Outcome.UNKNOWN.meaning in line or Outcome.REJECTED.meaning in line for line in log()) == 1
    # The next slice has another connection.
    assert both.slice("free") == {"free": [Outcome.ACCEPTED]}


def test_a_queue_that_goes_with_its_last_worker_is_declared_for_each_message(rabbit: str, sending: NewSending) -> None:
    passing = Queue("passing", auto_delete=True, durable=False)
    both = sending(rabbit, {"passing": {"options": {"queue": passing}}, "free": {}})
    both.scheduler.broker.connect()
    assert both.way.slices(1e6) is not None
    assert both.way.messages(dict.fromkeys(("passing", "free"), (INSTANT_US,))).keys() == {"free"}
    for _ in range(2):
        both.ordinary(both.planned["passing"])
        with Connection(rabbit) as connection:  # type: ignore[no-untyped-call]
            channel = connection.default_channel
            assert channel.basic_get("passing", no_ack=True) is not None
            channel.queue_delete("passing")


@pytest.mark.parametrize(("bound", "fast"), [(True, True), (False, False)], ids=["declared", "not declared"])
def test_an_exchange_is_left_to_the_broker_where_the_message_itself_declares_it(
    rabbit: str, sending: NewSending, bound: bool, fast: bool
) -> None:
    queue = Queue("by name", Exchange("named"), routing_key="one")
    options = {"queue": queue} if bound else {"exchange": "named", "routing_key": "one"}
    both = sending(rabbit, {"named": {"options": options}}, task_queues=[queue, Queue("celery")])
    both.scheduler.broker.connect()
    assert both.way.slices(1e6) is not None
    made = both.way.messages({"named": (INSTANT_US,)})
    assert bool(made) is fast
    if fast:
        assert both.slice("named") == {"named": [Outcome.ACCEPTED]}
        sliced = _from_rabbit(rabbit, "by name")
        both.ordinary(both.planned["named"])
        assert timeless(sliced, ordinary := _from_rabbit(rabbit, "by name")) == timeless(ordinary, ordinary)


def test_a_channel_that_somebody_hooks_into_is_looked_at_again_and_again_over_no_other(
    rabbit: str, sending: NewSending, monkeypatch: pytest.MonkeyPatch
) -> None:
    confirmed = amqp.channel.Channel.basic_publish_confirm
    monkeypatch.setattr(amqp.channel.Channel, "basic_publish_confirm", lambda *args, **how: confirmed(*args, **how))
    both = sending(rabbit, {"free": {}})
    both.scheduler.broker.connect()
    opened = set()
    for now in range(0, 20, 2):
        assert both.way.slices(float(now)) is None
        opened.add(len(both.scheduler.broker.current.connection.channels))
    assert both.way._why_no_lane == "Channel.basic_publish is not its own"
    assert len(opened) == 1


def test_a_broker_that_is_gone_has_taken_nothing_that_is_called_accepted(sending: NewSending) -> None:
    with RedisServer() as server:
        both = sending(server.url(path="/0"), {"one": {}, "two": {}})
        both.slice("one")
        server.kill()
        assert both.way.slices(2e6) is not None
        outcomes = both.slice("one", "two")
        assert {outcome for some in outcomes.values() for outcome in some} <= {Outcome.UNKNOWN, Outcome.REFUSED}


@pytest.mark.parametrize("how", ["come and go", "change"])
def test_the_kinds_of_entries_that_there_were_leave_room_for_those_of_others(
    redis_server: RedisServer, sending: NewSending, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(message_kinds, "_MOST_KINDS", 4)
    both = sending(redis_server.url(path="/6"), {})
    for number in range(10):
        # One that stays, and one more.
        name = "changing" if how == "change" else f"tenant {number}"
        one = {"task": "nobody.runs.it", "schedule": 3600.0, "options": {"headers": {"tenant": number}}}
        both.scheduler.merge_inplace({"staying": {**HOURLY}, name: one})
        both.way.set_entries(both.scheduler._plan())
        both.slice("staying", name)


@pytest.mark.parametrize("broker", ["redis", "rabbit"])
def test_a_beat_sends_its_slices_and_confirms_them(
    redis_server: RedisServer, rabbit: str, log: Callable[[], list[str]], broker: str
) -> None:
    cluster = Cluster("memory://beat", broker=rabbit if broker == "rabbit" else redis_server.url(path="/6"), ttl_s=5.0)
    names = [f"entry {number}" for number in range(1200)]
    cluster.seed(*names)
    beat = Beat(cluster.app(dict.fromkeys(names, HOURLY)))
    in_force = f"{IN_SLICES}, for 1200 of 1200 entries"
    try:
        beat.tick_until(lambda: cluster.settled(*names), within_s=30)
        # Of many entries it is found out and said a few at a time.
        beat.tick_until(lambda: any(line.startswith(in_force) for line in log()))
    finally:
        beat.close()
    sent = cluster.sent()
    cluster.close()
    assert sorted(message.entry for message in sent) == sorted(names)
    assert all(message.attempt == 1 for message in sent)
    assert beat.counts["accepted"] == len(names)


@pytest.mark.parametrize("broker", ["redis", "rabbit"])
def test_which_way_messages_go_is_known_before_the_first_is_due(
    redis_server: RedisServer, rabbit: str, log: Callable[[], list[str]], broker: str
) -> None:
    cluster = Cluster("memory://idle", broker=rabbit if broker == "rabbit" else redis_server.url(path="/6"), ttl_s=5.0)
    cluster.seed(*OTHER, record=Record(now_us()))
    beat = Beat(cluster.app(OTHER))
    try:
        beat.tick_until(lambda: any(line.startswith(f"{IN_SLICES}, for 2 of 2 entries") for line in log()))
    finally:
        beat.close()
    assert beat.counts["accepted"] == 0
    cluster.close()


def test_while_nothing_is_due_a_broker_that_is_away_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster("memory://away", broker=f"redis://127.0.0.1:{free_port()}/0", ttl_s=5.0)
    cluster.seed(*OTHER, record=Record(now_us()))
    beat = Beat(cluster.app(OTHER))
    tried, connect = list[float](), beat.scheduler.broker.connect

    def trying() -> None:
        tried.append(time.monotonic())
        connect()

    monkeypatch.setattr(beat.scheduler.broker, "connect", trying)
    try:
        beat.tick_until(lambda: tried)
        # It looks once a second.
        beat.tick_until(lambda: time.monotonic() > tried[0] + 2.5)
    finally:
        beat.close()
        cluster.close()
    assert len(tried) == 1


def test_switched_off_no_slice_is_made(redis_server: RedisServer, log: Callable[[], list[str]]) -> None:
    cluster = Cluster("memory://off", broker=redis_server.url(path="/6"), ttl_s=5.0)
    watch = Watch(redis_server.url(path="/6"))
    run(cluster, cluster.app(OTHER, distsched_fast_publish=False))
    assert watch.ways() == {name: [ORDINARY] for name in OTHER}
    watch.close()
    cluster.close()
    assert not [line for line in log() if line.startswith(IN_SLICES)]
