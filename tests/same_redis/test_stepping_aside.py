"""An entry whose sending somebody hooks into goes the ordinary way, the others stay fast, and the log says why."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import redis
from celery import Celery, Task
from celery.beat import BeatLazyFunc
from kombu import entity
from kombu.transport import redis as kombu_redis

from celery_distsched import message_kinds, publisher
from tests.same_redis.sending import run
from tests.same_redis.watched import FAST, ORDINARY, Watch
from tests.scheduler.cluster import HOURLY, Beat, Cluster

# Any: kombu's calls have no types.
Exchange: Any = entity.Exchange
Queue: Any = entity.Queue

HOOKED, OTHER = "hooked into", "left alone"


class OwnWay(Task):  # type: ignore[misc]
    """A task class with an `apply_async` of its own."""

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        return super().apply_async(args, kwargs, **{**options, "shadow": "own way"})


class OwnName(Task):  # type: ignore[misc]
    """A task class that gives each message a name of its own."""

    def shadow_name(self, args: Any, kwargs: Any, options: Any) -> str:
        return "own name"


def _register(app: Celery) -> None:
    def plain(*args: Any, **kwargs: Any) -> None: ...

    for name, base in (("plain", None), ("own way", OwnWay), ("own name", OwnName)):
        app.task(plain, name=name, shared=False, **({"base": base} if base else {}))
    patched = app.task(plain, name="patched", shared=False)
    app.finalize()
    send = patched.apply_async
    patched.apply_async = lambda *args, **kwargs: send(*args, **{**kwargs, "shadow": "patched"})


ENTRIES: dict[str, tuple[dict[str, Any], str]] = {
    "an argument that is made at each run": ({"args": (1, BeatLazyFunc(lambda: "made"))}, "made at each run"),
    "a keyword argument that is made at each run": ({"kwargs": {"x": BeatLazyFunc(lambda: "made")}}, "made at each"),
    "a task class with its own apply_async": ({"task": "own way"}, "apply_async of its own"),
    "a task whose apply_async is patched": ({"task": "patched"}, "apply_async of its own"),
    "a task class that names its messages": ({"task": "own name"}, "shadow_name of its own"),
    "a task id of its own": ({"options": {"task_id": "chosen"}}, "task id of its own"),
    "a connection of its own": ({"options": {"connection": None}}, "connection of its own"),
    "a router of its own": ({"options": {"router": None}}, "router of its own"),
    "a countdown": ({"options": {"countdown": 30}}, "countdown"),
    "another serializer": ({"options": {"serializer": "pickle"}}, "application/x-python-serialize"),
    "compression": ({"options": {"compression": "gzip"}}, "compress"),
    "a queue that expires": ({"options": {"queue": Queue("expiring", expires=60)}}, "expires"),
    "a queue that goes with its last worker": (
        {"options": {"queue": Queue("passing", auto_delete=True)}},
        "declared anew",
    ),
    "a named direct exchange": ({"options": {"exchange": "named", "routing_key": "one"}}, "exchange"),
    "a topic exchange": ({"options": {"queue": "topic", "routing_key": "one.two"}}, "exchange"),
    "a fanout exchange": ({"options": {"queue": "all"}}, "one queue"),
}
QUEUES = [
    Queue("celery"),
    Queue("direct", Exchange("named", type="direct"), routing_key="one"),
    Queue("topic", Exchange("topics", type="topic"), routing_key="one.*"),
    Queue("all", Exchange("everybody", type="fanout")),
]


if not hasattr(kombu_redis.Channel, "_get_queue_expire"):
    # To this kombu a queue in Redis never expires.
    del ENTRIES["a queue that expires"]


@pytest.mark.parametrize(("entry", "why"), ENTRIES.values(), ids=ENTRIES)
def test_an_entry_that_is_hooked_into_goes_the_ordinary_way(
    cluster: Cluster, watch: Watch, log: Callable[[], list[str]], entry: dict[str, Any], why: str
) -> None:
    app = cluster.app({HOOKED: {**HOURLY, **entry}, OTHER: HOURLY}, task_queues=QUEUES, task_default_queue="celery")
    _register(app)
    with app.connection_for_write() as connection:
        for queue in QUEUES:
            queue(connection.default_channel).declare()
    run(cluster, app)
    ways = watch.ways()
    # What is published to an exchange of that kind is in no list.
    assert ways.get(HOOKED, [ORDINARY]) == [ORDINARY]
    assert ways[OTHER] == [FAST]
    (reason,) = (line for line in log() if line.startswith(f"entry {HOOKED!r} goes the ordinary way: "))
    assert why in reason
    assert "Error(" not in reason
    assert [line for line in log() if line.startswith(f"entry {OTHER!r} goes the fast way")]


def test_a_router_is_asked_for_each_message(cluster: Cluster, watch: Watch, log: Callable[[], list[str]]) -> None:
    asked = []

    def route(name: str, args: Any, kwargs: Any, options: Any, task: Any = None) -> dict[str, Any]:
        asked.append(name)
        return {"queue": f"{cluster.queue}-{len(asked) % 2}"}

    names = [f"entry {number}" for number in range(4)]
    run(cluster, cluster.app(dict.fromkeys(names, HOURLY), task_routes=route))
    assert watch.ways() == {name: [ORDINARY] for name in names}
    assert [line for line in log() if line.startswith(f"entry {names[0]!r} goes the ordinary way: ") and "rout" in line]


def test_many_entries_may_step_aside_at_once(cluster: Cluster, watch: Watch) -> None:
    lazy = {**HOURLY, "args": (BeatLazyFunc(lambda: "made"),)}
    schedule = {f"entry {number}": lazy if number % 4 else HOURLY for number in range(400)}
    run(cluster, cluster.app(schedule))
    assert watch.ways() == {name: [FAST if schedule[name] is HOURLY else ORDINARY] for name in schedule}


def test_a_message_of_the_older_protocol_goes_the_ordinary_way(
    cluster: Cluster, watch: Watch, log: Callable[[], list[str]]
) -> None:
    # Those messages have no headers to know them by.
    run(cluster, cluster.app({HOOKED: HOURLY}, task_protocol=1))
    assert watch.ways() in ({}, {HOOKED: [ORDINARY]})
    (reason,) = (line for line in log() if line.startswith(f"entry {HOOKED!r} goes the ordinary way: "))
    assert "protocol" in reason


# While the beat runs


@pytest.fixture
def often(cluster: Cluster, watch: Watch) -> Iterator[Often]:
    app = cluster.app({"often": {"task": "plain", "schedule": 0.2}})
    _register(app)
    beat = Beat(app)
    try:
        beat.tick_until(lambda: FAST in watch.ways().get("often", ()))
        yield Often(app, beat, watch)
    finally:
        beat.close()


class Often(NamedTuple):
    """A beat that sends an entry the fast way, again and again."""

    app: Celery
    beat: Beat
    watch: Watch

    def goes(self, way: str) -> None:
        """Wait until its messages take this way."""
        self.beat.tick_until(lambda: self.watch.ways()["often"][-1] == way)


def test_a_router_that_comes_later_is_asked_for_the_next_message(often: Often, cluster: Cluster) -> None:
    asked = []

    def route(name: str, args: Any, kwargs: Any, options: Any, task: Any = None) -> dict[str, Any]:
        asked.append(name)
        return {"queue": cluster.queue}

    often.app.conf.update(task_routes=route)
    often.goes(ORDINARY)
    assert asked


def test_a_route_that_is_changed_later_holds_for_the_next_message(often: Often, url: str) -> None:
    often.app.conf.update(task_routes={"plain": {"queue": "another one"}})
    with redis.Redis.from_url(url) as client:
        often.beat.tick_until(lambda: client.llen("another one"))
        client.delete("another one")
    often.goes(FAST)


def test_a_default_queue_that_is_changed_later_holds_for_the_next_message(often: Often, url: str) -> None:
    often.app.conf.task_default_queue = "another one"
    with redis.Redis.from_url(url) as client:
        often.beat.tick_until(lambda: client.llen("another one"))
        client.delete("another one")


def test_a_task_that_is_patched_later_is_called_for_the_next_message(often: Often) -> None:
    task, calls = often.app.tasks["plain"], list[int]()
    send = task.apply_async

    def patched(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return send(*args, **kwargs)

    task.apply_async = patched
    often.beat.tick_until(lambda: calls)
    often.goes(ORDINARY)


def test_a_task_that_stores_no_results_any_more_says_so_in_the_next_message(often: Often, url: str) -> None:
    often.app.tasks["plain"].ignore_result = True
    with redis.Redis.from_url(url) as client:
        queue = often.app.conf.task_default_queue
        often.beat.tick_until(lambda: json.loads(client.lindex(queue, 0))["headers"]["ignore_result"])
    often.goes(FAST)


def test_an_entry_whose_list_was_none_is_fast_again_in_the_end(
    often: Often, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "_REST_S", 1.0)
    queue = often.app.conf.task_default_queue
    with redis.Redis.from_url(url) as client:
        client.delete(queue)
        client.set(queue, "taken")
        often.beat.tick_until(lambda: often.beat.counts["rejected"])
        client.delete(queue)
    often.goes(ORDINARY)
    often.goes(FAST)


def test_an_error_that_is_the_entrys_own_says_nothing_of_the_broker(
    cluster: Cluster, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its arguments fail as a broker that has gone away does, each time that they are looked at."""
    catch = message_kinds.MessageKinds._catch

    def raising(self: message_kinds.MessageKinds, entry: Any) -> Any:
        if entry.name == HOOKED:
            raise redis.ConnectionError("reset by peer")
        return catch(self, entry)

    monkeypatch.setattr(message_kinds.MessageKinds, "_catch", raising)
    run(cluster, cluster.app({HOOKED: {**HOURLY, "kwargs": {"n": 1}, "options": {"priority": 3}}, OTHER: HOURLY}))
    assert watch.ways() == {HOOKED: [ORDINARY], OTHER: [FAST]}
