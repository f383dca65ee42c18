"""Whatever is wrong with the configuration, an entry or the store: one clear message that names the thing and the mend.

Never a password in it; and what is wrong with one entry costs no other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import pytest
import redis
from celery.schedules import schedule

from celery_distsched.drivers import Swap
from celery_distsched.errors import ConfigError
from celery_distsched.info import Info
from celery_distsched.record import Record
from tests.scheduler.cluster import HOUR_US, HOURLY, Beat, Cluster, now_us, until
from tests.servers import RedisServer, free_port

SECRET = "hunter2"
# The settings' own URL, for cases in which it is not what is wrong.
HERE = "redis://localhost/0"


class Case(NamedTuple):
    """Something wrong, and what the one message about it must say."""

    given: Any
    words: tuple[str, ...]


def case(given: Any, *words: str) -> Any:
    return pytest.param(Case(given, words), id=str(given)[:70])


def url(text: str, *words: str) -> Any:
    return case({"distsched_url": text}, *words)


# Settings: beat does not start

SETTINGS = [
    case({"distsched_node_tll": 3}, "distsched_node_tll", "did you mean distsched_node_ttl?"),
    case({"distsched_urls": HERE}, "distsched_urls", "did you mean distsched_url?"),
    case({"distsched_colour": "red"}, "distsched_colour", "known:", "distsched_url"),
    case({"distsched_catch_up": "lastest"}, "distsched_catch_up", "'lastest'", "did you mean 'latest'?", "'none'"),
    case({"distsched_delivery": "at_lest_once"}, "distsched_delivery", "did you mean 'at_least_once'?"),
    case({"distsched_delivery": True}, "distsched_delivery", "at_most_once"),
    case({"distsched_node_ttl": "soon"}, "distsched_node_ttl", "'soon'", "number of seconds"),
    case({"distsched_node_ttl": 0}, "distsched_node_ttl", "above 0"),
    case({"distsched_node_ttl": True}, "distsched_node_ttl", "number of seconds"),
    case({"distsched_node_ttl": float("nan")}, "distsched_node_ttl", "finite"),
    case({"distsched_catch_up_window": -1}, "distsched_catch_up_window", "above 0"),
    case({"distsched_catch_up_limit": 0}, "distsched_catch_up_limit", "whole number"),
    case({"distsched_catch_up_limit": "many"}, "distsched_catch_up_limit", "'many'", "whole number"),
    case({"distsched_entries": ["a"]}, "distsched_entries", "dict"),
    case({"distsched_entries": {"good": 5}}, "distsched_entries", "good", "dict"),
    case({"distsched_entries": {"goood": {"catch_up": "all"}}}, "distsched_entries", "'goood'", "did you mean 'good'?"),
    case({"distsched_fast_publish": "no"}, "distsched_fast_publish", "True or False"),
    case({"distsched_namespace": ""}, "distsched_namespace", "text"),
    case({"distsched_driver_options": [f"password={SECRET}"]}, "distsched_driver_options", "dict"),
    # The store's URL
    url("not a url", "distsched_url", "is not a URL", "redis://localhost:6379/0"),
    url(f"localhost:{SECRET}@", "distsched_url", "is not a URL"),
    case({"distsched_url": [f"redis://:{SECRET}@h/0"]}, "distsched_url", "text"),
    url(f"redis+zest://:{SECRET}@h/0", "redis+zest", "did you mean 'redis+zset'?", "etcd", "sqlite"),
    url(f"postgresql://user:{SECRET}@h/db", "'postgresql'", "Known are", "redis"),
    url(f"redis://:{SECRET}@h:port/0", "distsched_url", "port", "65535"),
    url(f"redis://user:{SECRET}/x@h:6379/0", "distsched_url", "percent-encoded"),
    url(f"redis://user:{SECRET}#x@h:6379/0", "distsched_url", "percent-encoded"),
    url(f"redis://user:{SECRET}?x@h:6379/0", "distsched_url", "percent-encoded"),
    url(f"redis://:{SECRET}/0", "distsched_url", "port", "65535"),
    url(f"redis://user:{SECRET}/0", "distsched_url", "port", "65535"),
    url("redis://[::1]:99999/0", "redis://[::1]:99999/0", "'99999' is not a port"),
    url(f"redis://:{SECRET}@h/zero", "distsched_url", "'zero'", "number of a database"),
    url(f"redis://:{SECRET}@h,h2/0", "distsched_url", "2 hosts"),
    url(f"etcd://user:{SECRET}@h/path", "etcd", "no path", "distsched_namespace"),
    url("etcd://user@h", "etcd", "user:password@host"),
    url("sqlite://store.sqlite3", "distsched_url", "sqlite:///"),
    url("sqlite:///", "distsched_url", "sqlite:///name.sqlite3"),
    # Its options
    url(f"redis://:{SECRET}@h/0?dbb=3", "'dbb'", "did you mean 'db'?"),
    url(f"redis://h/0?passwrd={SECRET}", "'passwrd'", "did you mean 'password'?"),
    url(f"consul://h?tokn={SECRET}", "'tokn'", "did you mean 'token'?"),
    url("redis://h/0?db=x", "'db'", "'x'"),
    url("redis://h/0?ssl_ca_certs=/ca.pem", "ssl_ca_certs", "rediss://"),
    url("sqlite:////tmp/store.sqlite3?mode=ro", "'mode'", "none"),
    case(
        {"distsched_url": HERE, "distsched_driver_options": {"socket_keepalive_options": {"idle": 5}}},
        "socket_keepalive_options",
        "TCP_KEEPIDLE",
    ),
    case(
        {
            "distsched_url": "sentinel://h/0?master_name=m",
            "distsched_driver_options": {"sentinel_kwargs": {"host": "h"}},
        },
        "sentinel_kwargs",
        "'host'",
    ),
    case(
        {"distsched_url": HERE, "distsched_driver_options": {"passwrd": SECRET}},
        "'passwrd'",
        "did you mean 'password'?",
    ),
    # A TTL below what the store honours
    url("redis://h/0", "distsched_node_ttl (0.5 s)", "redis://", "1 s", "or more"),
    url("etcd://h", "distsched_node_ttl (0.5 s)", "etcd://", "2 s", "or more"),
    # No URL, and a broker that says nothing of where
    case(
        {"distsched_url": None, "broker_url": f"amqp://user:{SECRET}@h//"},
        "distsched_url is not set",
        "amqp://user:**@h",
        'distsched_url = "redis://localhost:6379/0"',
        'distsched_url = "etcd://',
        'distsched_url = "consul://',
        'distsched_url = "sqlite:///',
    ),
    case({"distsched_url": None, "broker_url": f"sqs://key:{SECRET}@"}, "distsched_url is not set", "sqs://key:**@"),
]


@pytest.mark.parametrize("scheme", ["sqlite"])
@pytest.mark.parametrize("wrong", SETTINGS)
def test_a_wrong_setting_is_an_error_at_the_start(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, wrong: Case
) -> None:
    conf = dict(wrong.given)
    if "(0.5 s)" in wrong.words[0]:
        conf["distsched_node_ttl"] = 0.5
    with pytest.raises(ConfigError) as caught:
        cluster.beat({"good": HOURLY}, **conf)
    says(caught.value.message, wrong)
    assert caplog.text == ""


def says(message: str, wrong: Case) -> None:
    missing = [word for word in wrong.words if word not in message]
    assert not missing, f"{missing} not in: {message}"
    assert SECRET not in message


PROCESSES = [
    pytest.param({"conf": {"distsched_node_tll": 3}}, ("did you mean distsched_node_ttl?",), id="unknown setting"),
    pytest.param(
        {"conf": {"distsched_url": f"redis://:{SECRET}@localhost:port/0"}}, ("a number from 1 to 65535",), id="bad URL"
    ),
    pytest.param(
        {"conf": {"distsched_url": f"redis://:{SECRET}@localhost/0"}, "without": ["redis"]},
        ("redis://", 'pip install "celery-distsched[redis]"'),
        id="no redis-py",
    ),
    pytest.param(
        {"conf": {"distsched_url": f"etcd://user:{SECRET}@localhost"}, "without": ["pyetcd", "etcd3"]},
        ("etcd://", 'pip install "celery-distsched[etcd]"'),
        id="no etcd client",
    ),
    pytest.param(
        {"conf": {"distsched_url": f"consul://localhost?token={SECRET}"}, "without": ["consul"]},
        ("consul://", 'pip install "celery-distsched[consul]"'),
        id="no py-consul",
    ),
    pytest.param(
        {"conf": {"distsched_url": None, "broker_url": f"amqp://user:{SECRET}@localhost//"}},
        ("distsched_url is not set",),
        id="no URL",
    ),
    pytest.param(
        {"conf": {"distsched_node_tll": 3}, "options": ["-q"]},
        ("did you mean distsched_node_ttl?",),
        id="unknown setting, and quiet",
    ),
]


@pytest.mark.parametrize("scheme", ["sqlite"])
@pytest.mark.parametrize(("how", "words"), PROCESSES)
def test_celery_beat_shows_it_as_one_line_without_a_traceback(
    cluster: Cluster, how: dict[str, Any], words: tuple[str, ...]
) -> None:
    beat = cluster.process("good", **how)
    output, _ = beat.communicate(timeout=30)
    ends_cleanly(beat.returncode, output, words)


def ends_cleanly(returncode: int, output: str, words: tuple[str, ...]) -> None:
    assert returncode == 1, output
    # Once beat has set up its log, what it prints goes there.
    errors = [line for line in output.splitlines() if "Error: " in line]
    assert len(errors) == 1, output
    assert all(word in errors[0] for word in words), errors
    assert "Traceback" not in output
    assert SECRET not in output


# Two apps in one namespace


@pytest.mark.parametrize("scheme", ["redis+zset"])
def test_a_second_app_in_a_namespace_ends_with_an_error_that_names_both(
    cluster: Cluster, redis_server: RedisServer
) -> None:
    first = cluster.started({"a": HOURLY})
    beat = cluster.process("a", main="shop", conf={"broker_url": f"redis://:{SECRET}@127.0.0.1:1/7"})
    output, _ = beat.communicate(timeout=30)
    ends_cleanly(
        beat.returncode,
        output,
        (repr(cluster.namespace), "'cluster'", "memory://", "'shop'", "redis://127.0.0.1:1/7", "distsched_namespace"),
    )
    assert first.failure is None
    assert first.ready


@pytest.mark.parametrize("scheme", ["sqlite", "redis+zset"])
def test_of_two_apps_that_join_a_namespace_at_once_one_ends_with_an_error(cluster: Cluster) -> None:
    beats = [cluster.beat({"a": HOURLY}), cluster.beat({"a": HOURLY})]
    beats[1].app.main = "shop"
    both_have_looked = threading.Barrier(2)

    def look_together(beat: Beat) -> None:
        members = beat.scheduler.driver.members

        def looked() -> Any:
            beat.scheduler.driver.members = members
            found = members()
            both_have_looked.wait(30)
            return found

        beat.scheduler.driver.members = looked

    for beat in beats:
        look_together(beat)
        beat.start()
    until(lambda: any(beat.failure for beat in beats), within_s=30)
    assert [type(beat.failure) for beat in beats if beat.failure] == [ConfigError]


# Entries: beat starts, and the others run

ENTRIES = [
    case({"schedule": 60.0}, "'task'"),
    case({"task": "", "schedule": 60.0}, "'task'"),
    case({"task": "t"}, "'schedule'", "crontab("),
    case({"task": "t", "schedul": 60.0}, "'schedul'", "did you mean 'schedule'?"),
    case({**HOURLY, "jiter": 3}, "'jiter'", "did you mean 'jitter'?"),
    case({**HOURLY, "catch_up": "lattest"}, "'catch_up'", "'lattest'", "did you mean 'latest'?"),
    case({**HOURLY, "catch_up_window": "day"}, "'catch_up_window'", "number of seconds"),
    case({**HOURLY, "enabled": "yes"}, "'enabled'", "True or False"),
    case({**HOURLY, "jitter": -1}, "'jitter'", "0 or more"),
    case({**HOURLY, "options": {"jitter": -1}}, "'jitter'", "0 or more"),
    case({"task": "t", "schedule": "*/5 * * * *"}, "'*/5 * * * *'", "crontab(", "cron("),
    case({"task": "t", "schedule": 0.001}, "interval", "0.001 s", "0.01 or more"),
    case({"task": "t", "schedule": timedelta(0)}, "interval", "0.01 or more"),
    case({"task": "t", "schedule": -5}, "interval", "0.01 or more"),
    case({"task": "t", "schedule": schedule(timedelta(milliseconds=1))}, "interval", "0.01 or more"),
    case({**HOURLY, "args": (object(),)}, "arguments", "json", "'serializer'"),
    case({**HOURLY, "kwargs": {"when": object()}}, "arguments", "json", "'serializer'"),
    case({**HOURLY, "args": (object(),), "options": {"serializer": "yaml"}}, "arguments", "yaml"),
    case({**HOURLY, "kwargs": ["a"]}, "'kwargs'", "dict"),
    case({**HOURLY, "options": "queue=a"}, "'options'", "dict"),
    case(5, "dict"),
    case(None, "dict"),
]


@pytest.mark.parametrize("scheme", ["sqlite"])
@pytest.mark.parametrize("wrong", ENTRIES)
def test_a_wrong_entry_is_reported_once_by_name_and_the_others_run(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, wrong: Case
) -> None:
    runs_well_beside_the_others(cluster, caplog, {"wrong one": wrong.given}, Case(None, ("'wrong one'", *wrong.words)))


@pytest.mark.parametrize("scheme", ["sqlite"])
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"jiter": 3}, ("'jiter'", "distsched_entries", "did you mean 'jitter'?")),
        ({"catch_up": "lattest"}, ("'catch_up'", "did you mean 'latest'?")),
    ],
)
def test_what_is_wrong_in_distsched_entries_is_reported_likewise(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, given: dict[str, Any], words: tuple[str, ...]
) -> None:
    conf = {"distsched_entries": {"wrong one": given}}
    runs_well_beside_the_others(cluster, caplog, {"wrong one": HOURLY}, Case(None, ("'wrong one'", *words)), **conf)


@pytest.mark.parametrize("scheme", ["sqlite"])
def test_a_name_with_an_address_in_it_is_reported_with_the_mend(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"tasks.add({object()!r})"
    runs_well_beside_the_others(cluster, caplog, {name: HOURLY}, Case(None, (name, "name=", "add_periodic_task")))


@pytest.mark.parametrize("scheme", ["sqlite"])
@pytest.mark.parametrize(("name", "words"), [(1, ("1", "a text", "'1'")), ("a\udc80", ("written down",))])
def test_a_name_that_is_no_text_is_reported_with_the_mend(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, name: Any, words: tuple[str, ...]
) -> None:
    beat = cluster.beat({"first": HOURLY, name: HOURLY, "last": HOURLY})
    cluster.seed("first", "last")
    beat.tick_until(lambda: cluster.settled("first", "last"))
    only_message(caplog, Case(None, words))


@pytest.mark.parametrize("scheme", ["sqlite"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        (7, ("7", "a text", "'7'")),
        (None, ("None", "a text")),
        (("a", 1), ("a text",)),
        ("a\udc80", ("written down",)),
        ("\0schedule", ("begins with a NUL",)),
        ("", ("one of its own",)),
    ],
    ids=repr,
)
def test_such_a_name_at_run_time_is_reported_once_and_the_others_run(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, name: Any, words: tuple[str, ...]
) -> None:
    beat = cluster.beat({"first": HOURLY})
    beat.tick_until(lambda: beat.ready)
    cluster.seed("second", "third")
    beat.scheduler.add(name=name, **HOURLY)
    beat.scheduler.add(name="second", **HOURLY)
    beat.tick_until(lambda: cluster.settled("second"))
    beat.scheduler.add(name="third", **HOURLY)
    beat.tick_until(lambda: cluster.settled("third"))
    only_message(caplog, Case(None, words))


class OwnClass:
    """A schedule that is none of Celery's."""

    def is_due(self, last_run_at: Any) -> tuple[bool, float]:
        return True, 5.0

    def now(self) -> Any:
        return datetime.now(timezone.utc)


@pytest.mark.parametrize("scheme", ["sqlite"])
def test_a_schedule_of_another_class_than_celerys_is_asked(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    beat = cluster.beat({"asked": {"task": "nobody.runs.it", "schedule": OwnClass()}})
    cluster.seed("asked")
    beat.tick_until(cluster.sent)
    assert [sent.entry for sent in cluster.sent()][:1] == ["asked"]
    assert caplog.text == ""


def runs_well_beside_the_others(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, bad: dict[str, Any], wrong: Case, **conf: Any
) -> None:
    cluster.seed("first", "last", *bad)
    beat = cluster.beat({"first": HOURLY, **bad, "last": HOURLY}, **conf)
    beat.tick_until(lambda: cluster.settled("first", "last"))
    assert sorted(sent.entry for sent in cluster.sent()) == ["first", "last"]
    only_message(caplog, wrong)


def only_message(caplog: pytest.LogCaptureFixture, wrong: Case) -> None:
    told = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 1, [record.getMessage() for record in told]
    says(told[0].getMessage(), wrong)
    assert SECRET not in caplog.text


# The store: beat stays up


class NotAStore(BaseHTTPRequestHandler):
    """A web server."""

    def do_GET(self) -> None:
        self.send_error(404)

    do_PUT = do_POST = do_GET  # noqa: N815

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def ports(request: pytest.FixtureRequest) -> Callable[[str], int]:
    """Ports by what listens there; servers are started when they are asked for."""

    def port(of: str) -> int:
        if of == "nobody":
            return free_port()
        served: int = request.getfixturevalue(of).port
        return served

    return port


@pytest.fixture(scope="module")
def web_server() -> Iterator[Any]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), NotAStore)
    server.port = server.server_port  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def locked_redis() -> Iterator[RedisServer]:
    with RedisServer(password="the right one") as server:
        yield server


@pytest.mark.parametrize("scheme", ["sqlite"])
@pytest.mark.parametrize(
    ("at", "address", "words"),
    [
        ("nobody", "redis://user:{secret}@127.0.0.1:{port}/0", ("redis://user:**@127.0.0.1", "refused")),
        ("nobody", "etcd://user:{secret}@127.0.0.1:{port}", ("etcd://user:**@127.0.0.1", "refused")),
        ("nobody", "consul://127.0.0.1:{port}?token={secret}", ("consul://127.0.0.1", "token=**", "refused")),
        ("nobody", "sqlite:////no/such/folder/store.sqlite3", ("/no/such/folder/store.sqlite3", "No such file")),
        ("web_server", "redis://:{secret}@127.0.0.1:{port}/0", ("redis://:**@127.0.0.1", "another server")),
        ("web_server", "etcd://user:{secret}@127.0.0.1:{port}", ("etcd://user:**@127.0.0.1", "not etcd's client port")),
        ("web_server", "consul://127.0.0.1:{port}?token={secret}", ("token=**", "not Consul's HTTP port")),
        ("etcd_server", "redis://:{secret}@127.0.0.1:{port}/0", ("redis://:**@127.0.0.1", "another server")),
        ("etcd_server", "consul://127.0.0.1:{port}", ("consul://127.0.0.1", "not Consul's HTTP port")),
        ("consul_server", "redis://:{secret}@127.0.0.1:{port}/0", ("redis://:**@127.0.0.1", "another server")),
        ("redis_server", "etcd://user:{secret}@127.0.0.1:{port}", ("etcd://user:**@", "not etcd's client port")),
        ("redis_server", "consul://127.0.0.1:{port}?token={secret}", ("token=**", "not Consul's HTTP port")),
        ("redis_server", "rediss://:{secret}@127.0.0.1:{port}/0", ("rediss://:**@", "TLS", "redis://")),
        ("etcd_server", "etcds://user:{secret}@127.0.0.1:{port}", ("etcds://user:**@", "use etcd://")),
        ("consul_server", "consuls://127.0.0.1:{port}?token={secret}", ("token=**", "use consul://")),
        ("locked_redis", "redis://127.0.0.1:{port}/0", ("redis://127.0.0.1", "redis://user:password@host")),
        ("locked_redis", "redis://:{secret}@127.0.0.1:{port}/0", ("redis://:**@", "password")),
        ("redis_server", "redis://127.0.0.1:{port}/99", ("redis://127.0.0.1", "DB index is out of range")),
    ],
)
def test_a_store_that_cannot_be_used_is_reported_once_and_beat_stays_up(
    cluster: Cluster,
    ports: Callable[[str], int],
    caplog: pytest.LogCaptureFixture,
    at: str,
    address: str,
    words: tuple[str, ...],
) -> None:
    beat = cluster.beat({"a": HOURLY}, distsched_url=address.format(secret=SECRET, port=ports(at)))
    polls = count_polls(beat)
    beat.tick_until(lambda: len(polls) >= 3)
    only_message(caplog, Case(None, ("the store does not answer", *words)))
    beat.close()
    assert SECRET not in caplog.text


def count_polls(beat: Beat) -> list[float]:
    members, polls = beat.scheduler.driver.members, list[float]()

    def counted() -> Any:
        try:
            return members()
        finally:
            polls.append(time.monotonic())

    beat.scheduler.driver.members = counted
    return polls


# Garbage in the store


@pytest.mark.parametrize("scheme", ["sqlite"])
@pytest.mark.parametrize(
    "garbage",
    [
        "garbage",
        "",
        "5",
        "[1]",
        "{}",
        '{"last": "yesterday"}',
        '{"last": 1.5}',
        '{"last": true}',
        '{"last": 1, "open": {"soon": "me"}}',
        '{"last": 1, "open": {"1": 2}}',
        '{"last": 1, "paused": "no"}',
        # Nanoseconds: no date has so many.
        '{"last":1733000000000000000}',
        '{"last":-1}',
        '{"last":1,"open":{"1733000000000000000":"-"}}',
        "[" * 5000,
        "x" * 5000,
    ],
    ids=lambda text: str(text)[:40],
)
def test_a_record_that_is_none_is_reported_with_the_mend_and_left_alone(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, garbage: str
) -> None:
    cluster.driver.swap([Swap("wrong one", None, garbage)])
    cluster.seed("first", "last")
    beat = cluster.beat({"first": HOURLY, "wrong one": HOURLY, "last": HOURLY})
    beat.tick_until(lambda: cluster.settled("first", "last"))
    over = time.monotonic() + 0.3
    beat.tick_until(lambda: time.monotonic() > over)
    # It does not keep the loop busy either.
    assert beat.scheduler.tick() > 0.01
    assert sorted(sent.entry for sent in cluster.sent()) == ["first", "last"]
    only_message(caplog, Case(None, ("'wrong one'", "remove or mend it")))
    assert len(caplog.records[-1].getMessage()) < 500
    assert cluster.driver.read(["wrong one"]) == [garbage]


@pytest.mark.parametrize("scheme", ["sqlite"])
@pytest.mark.parametrize(
    "written",
    ['{"last": %d}', '{"last":%d,"paused":false}', '{"open":{},"last":%d}', '{"last":%d,"of a later release":1}'],
)
def test_a_record_that_somebody_has_spelled_otherwise_is_understood_and_its_entry_runs_once(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, written: str
) -> None:
    cluster.driver.swap([Swap("mended", None, written % (now_us() - HOUR_US - 1_000_000))])
    beat = cluster.beat({"mended": HOURLY})
    beat.tick_until(cluster.sent)
    beat.tick_until(lambda: cluster.settled("mended"))
    assert beat.scheduler.tick() > 0.01
    assert [sent.entry for sent in cluster.sent()] == ["mended"]
    assert caplog.text == ""


@pytest.mark.parametrize("scheme", ["sqlite"])
def test_a_record_that_is_none_is_reported_once_however_often_it_is_read(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"wrong {number}" for number in range(20)]
    cluster.driver.swap([Swap(name, None, "garbage") for name in names])
    beat = cluster.started(dict.fromkeys(names, HOURLY))
    another = cluster.started(dict.fromkeys(names, HOURLY))
    until(lambda: len(beat.inner.dispatch.records.share) < len(names))
    another.close()
    until(lambda: len(beat.inner.dispatch.records.share) == len(names) and not beat.inner.dispatch.records.unread)
    told = [record.getMessage() for record in caplog.records if "remove or mend it" in record.getMessage()]
    # Each by the beat that stayed, and those of the other's share by the other.
    assert len(names) < len(told) < 2 * len(names)
    assert all(told.count(message) <= 2 for message in told)


@pytest.mark.parametrize("scheme", ["redis+zset"])
def test_a_record_that_is_no_text_is_reported_likewise(
    cluster: Cluster, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.seed("wrong one", "first")
    with redis.Redis(port=redis_server.port) as client:
        (ledger,) = [key for key in client.keys("*ledger") if cluster.namespace.encode() in key]
        client.hset(ledger, "wrong one", b"\x80\xff\x00")
    beat = cluster.beat({"first": HOURLY, "wrong one": HOURLY})
    beat.tick_until(lambda: cluster.settled("first"))
    only_message(caplog, Case(None, ("'wrong one'", "remove or mend it")))


@pytest.mark.parametrize("scheme", ["sqlite"])
def test_a_record_from_the_future_is_reported_with_the_mend(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    cluster.seed("first")
    cluster.seed("wrong one", record=Record(now_us() + 24 * HOUR_US))
    beat = cluster.beat({"first": HOURLY, "wrong one": HOURLY})
    beat.tick_until(lambda: cluster.settled("first"))
    only_message(caplog, Case(None, ("'wrong one'", "still to come", "remove its record")))


@pytest.mark.parametrize("scheme", ["sqlite"])
@pytest.mark.parametrize(
    "info",
    [
        "garbage",
        "",
        "[]",
        '{"host": "h"}',
        '{"host":5,"ordinal":"x","digest":[],"cluster":"x","active":"?","wall_us":"noon"}',
        "[" * 5000,
        Info("h", 0, "d", "c", True, int("9" * 4000)).text(),
    ],
)
def test_a_member_that_is_none_of_ours_stops_nobody(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, info: str
) -> None:
    cluster.driver.join("stranger#1", info)
    cluster.seed("first")
    beat = cluster.beat({"first": HOURLY})
    beat.tick_until(lambda: cluster.settled("first"))
    assert "Traceback" not in caplog.text
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) <= 1
