from __future__ import annotations

import math
import ssl
from typing import Any
from urllib.parse import quote

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st

from celery_distsched.drivers import StoreUrl, driver_class, open_driver
from celery_distsched.errors import ConfigError
from celery_distsched.settings import Settings, broker_identity

KNOWN = (
    "url",
    "namespace",
    "node_ttl",
    "delivery",
    "catch_up",
    "catch_up_window",
    "catch_up_limit",
    "entries",
    "fast_publish",
    "driver_options",
)
DURATIONS = ("node_ttl", "catch_up_window")
#: What no URL may show, and what a URL may hold only in its percent form.
SECRET = "p@ss:w/rd?#&"


def settings(main: str | None = "shop", **conf: Any) -> Settings:
    app = Celery(main, set_as_current=False)
    app.conf.update({"broker_url": "memory://", **conf})
    return Settings.of(app)


def refusal(**conf: Any) -> str:
    with pytest.raises(ConfigError) as refused:
        settings(**conf)
    return str(refused.value)


# Defaults


def test_defaults() -> None:
    chosen = settings()
    assert (chosen.namespace, chosen.node_ttl, chosen.delivery) == ("shop", 5.0, "at_least_once")
    assert (chosen.catch_up, chosen.catch_up_window, chosen.catch_up_limit) == ("latest", None, 1000)
    assert chosen.fast_publish
    assert not chosen.at_most_once
    assert dict(chosen.entries) == dict(chosen.driver_options) == {}


@pytest.mark.parametrize("main", [None, "", "__main__"])
def test_an_app_without_a_name_gets_a_namespace_nonetheless(main: str | None) -> None:
    assert settings(main).namespace == "celery"


def test_none_is_the_default() -> None:
    assert settings(**{f"distsched_{name}": None for name in KNOWN}) == settings()


@pytest.mark.parametrize(("ttl_s", "hand_over_s"), [(1, 10), (5, 10), (5.5, 11), (30, 60)])
def test_a_hand_over_takes_two_ttls_and_at_least_ten_seconds(ttl_s: float, hand_over_s: float) -> None:
    assert settings(distsched_node_ttl=ttl_s).hand_over_s == hand_over_s


# Names


def test_every_setting_is_taken() -> None:
    chosen = settings(
        distsched_url="etcd://one:1,two:2",
        distsched_namespace="ours",
        distsched_node_ttl=7,
        distsched_delivery="at_most_once",
        distsched_catch_up="all",
        distsched_catch_up_window=60,
        distsched_catch_up_limit=3,
        distsched_entries={"daily": {"jitter": 5}},
        distsched_fast_publish=False,
        distsched_driver_options={"token": SECRET},
    )
    assert chosen == Settings(
        url=StoreUrl("etcd", hosts=(("one", 1), ("two", 2))),
        namespace="ours",
        node_ttl=7.0,
        delivery="at_most_once",
        catch_up="all",
        catch_up_window=60.0,
        catch_up_limit=3,
        entries={"daily": {"jitter": 5}},
        fast_publish=False,
        driver_options={"token": SECRET},
    )
    assert chosen.at_most_once
    assert SECRET not in repr(chosen)


@pytest.mark.parametrize("namespace", ["CELERY", "CELERY_"])
def test_settings_of_a_django_module(namespace: str) -> None:
    def app_of(**more: Any) -> Celery:
        app = Celery("shop", set_as_current=False)
        app.config_from_object(type("settings", (), {"CELERY_BROKER_URL": "memory://", **more}), namespace=namespace)
        return app

    assert Settings.of(app_of(CELERY_DISTSCHED_NODE_TTL=3, DISTSCHED_NODE_TTL=4)).node_ttl == 3
    misspelt = app_of(CELERY_DISTSCHED_NODETTL=3)
    with pytest.raises(ConfigError, match="did you mean distsched_node_ttl"):
        Settings.of(misspelt)


def test_settings_in_capitals() -> None:
    assert settings(DISTSCHED_NODE_TTL=3).node_ttl == 3


@given(st.sampled_from(KNOWN), st.data())
def test_a_misspelt_setting_is_refused_and_the_right_one_named(name: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(name) - 1), label="without the letter at")
    misspelt = name[:at] + name[at + 1 :]
    said = refusal(**{f"distsched_{misspelt}": 1})
    assert f"unknown setting distsched_{misspelt};" in said
    assert f"did you mean distsched_{name}?" in said


def test_a_setting_like_none_is_refused_and_all_are_named() -> None:
    said = refusal(distsched_xyzzy=1)
    assert "unknown setting distsched_xyzzy " in said
    assert "did you mean" not in said
    assert all(f"distsched_{name}" in said for name in KNOWN)


# Values


@given(st.sampled_from(DURATIONS), st.floats(min_value=0, exclude_min=True, allow_infinity=False))
def test_a_duration_is_any_number_of_seconds_above_zero(name: str, value: Any) -> None:
    if name == "node_ttl" and value > 3600:
        assert "3600 seconds at most" in refusal(distsched_node_ttl=value)
        return
    assert getattr(settings(**{f"distsched_{name}": value}), name) == value
    assert getattr(settings(**{f"distsched_{name}": repr(value)}), name) == value


@given(
    st.sampled_from(DURATIONS),
    st.floats(max_value=0)
    | st.sampled_from([math.inf, math.nan, True, False, "", "soon", "5 s", "nan", "-inf", "-1", b"", [], {}, object()]),
)
def test_what_is_no_duration_is_refused_by_name(name: str, value: object) -> None:
    said = refusal(**{f"distsched_{name}": value})
    assert said.startswith(f"distsched_{name} is {value!r}: ")
    assert "seconds" in said


@given(st.integers(min_value=1))
def test_a_limit_is_any_whole_number_above_zero(value: int) -> None:
    assert settings(distsched_catch_up_limit=value).catch_up_limit == value


@given(
    st.integers(max_value=0)
    | st.floats().filter(lambda number: not number.is_integer() or number < 1)
    | st.sampled_from([True, False, "", "many", "1.5", [], {}, object()])
)
def test_what_is_no_limit_is_refused_by_name(value: object) -> None:
    said = refusal(distsched_catch_up_limit=value)
    assert said.startswith(f"distsched_catch_up_limit is {value!r}: ")
    assert "a whole number from 1 up was expected" in said


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("delivery", "at_most_one", "did you mean 'at_most_once'?"),
        ("delivery", "exactly_once", "one of 'at_least_once', 'at_most_once' was expected"),
        ("delivery", True, "one of 'at_least_once', 'at_most_once' was expected"),
        ("catch_up", "lastest", "did you mean 'latest'?"),
        ("catch_up", False, "one of 'latest', 'all', 'none' was expected"),
        ("catch_up", ["all"], "one of 'latest', 'all', 'none' was expected"),
        ("fast_publish", 1, "True or False was expected"),
        ("fast_publish", "no", "True or False was expected"),
        ("namespace", "", "a text was expected"),
        ("namespace", " ", "a text was expected"),
        ("namespace", 5, "a text was expected"),
        ("entries", [], "a dict was expected"),
        ("driver_options", SECRET, "a dict was expected"),
        ("url", "", "a text was expected"),
        ("url", 6379, "a text was expected"),
    ],
)
def test_a_bad_value_is_refused_with_what_was_expected(name: str, value: object, expected: str) -> None:
    said = refusal(**{f"distsched_{name}": value})
    assert said.startswith(f"distsched_{name} is {'a str' if name == 'driver_options' else repr(value)}: ")
    assert expected in said


# The store that nobody named


@pytest.mark.parametrize(
    ("broker", "store"),
    [
        ("redis://user:secret@host:1234/5", "redis://user:secret@host:1234/5"),
        ("rediss://host/0", "rediss://host/0"),
        ("rediss://host/0?ssl_cert_reqs=none&ssl_ca_certs=/ca", "rediss://host/0?ssl_cert_reqs=none&ssl_ca_certs=/ca"),
        # kombu takes any of these for a wish for TLS.
        ("redis://host/0?ssl_cert_reqs=none", "rediss://host/0?ssl_cert_reqs=none"),
        ("redis://host/0?credential_provider=a.B&heartbeat=1", "redis://host/0?credential_provider=a.B"),
        ("redis+socket:///run/redis.sock?virtual_host=3", "redis+socket:///run/redis.sock?virtual_host=3"),
        ("redis+socket://me:pw@/run/redis.sock?socket_timeout=3", "redis+socket://me:pw@/run/redis.sock"),
        ("sentinel://:pw@a:1;sentinel://:pw@b:2/3", "sentinel://:pw@a:1,b:2/3"),
        (["sentinel://a:1/0", "sentinel://b", "redis://c"], "sentinel://a:1,b/0"),
    ],
)
def test_the_store_is_the_brokers_redis(broker: Any, store: str) -> None:
    chosen = settings(broker_url=broker)
    assert chosen.url == StoreUrl.parse(store)
    assert chosen.url_reason == "the broker's Redis"


@pytest.mark.parametrize("broker", ["redis://a:1/0;redis://b:1/0", ["redis://a:1/0", "redis://b:1/0"]])
def test_of_redis_brokers_that_stand_in_for_one_another_the_first_is_the_store(broker: Any) -> None:
    chosen = settings(broker_url=broker)
    assert chosen.url == StoreUrl.parse("redis://a:1/0")
    assert chosen.url_reason == "the broker's Redis, the first of 2"


#: Those of Celery's documentation and of kombu's Redis transport.
TRANSPORT_OPTIONS: dict[str, Any] = {
    "visibility_timeout": 3600,
    "fanout_prefix": True,
    "fanout_patterns": True,
    "priority_steps": [0, 3],
    "global_keyprefix": "p",
    "queue_order_strategy": "priority",
    "socket_timeout": 30,
    "socket_connect_timeout": 30,
    "socket_keepalive": True,
    "socket_keepalive_options": {4: 30},
    "health_check_interval": 25,
    "retry_on_timeout": True,
    "max_connections": 20,
    "client_name": "shop",
    "retry_policy": {"timeout": 5.0},
    "master_name": "mymaster",
    "min_other_sentinels": 1,
    "sentinel_kwargs": {"password": SECRET, "socket_timeout": 9},
    "ssl_ca_certs": "/not/used/by/kombu",
}


@pytest.mark.parametrize(
    ("broker", "taken"),
    [
        ("redis://host/0", {"socket_keepalive", "socket_keepalive_options", "client_name"}),
        ("redis+socket:///run/redis.sock", {"client_name"}),
        (
            "sentinel://host;sentinel://other",
            {"socket_keepalive", "socket_keepalive_options", "client_name"}
            | {"master_name", "min_other_sentinels", "sentinel_kwargs"},
        ),
    ],
)
def test_of_a_redis_brokers_transport_options_those_are_taken_over_that_reach_the_server(
    broker: str, taken: set[str]
) -> None:
    chosen = settings(broker_url=broker, broker_transport_options=TRANSPORT_OPTIONS)
    assert chosen.driver_options == {name: TRANSPORT_OPTIONS[name] for name in taken}
    driver = open_driver(chosen.url, namespace="n", ttl_s=5, timeout_s=1, options=chosen.driver_options)
    assert SECRET not in repr(driver) + repr(chosen)


@pytest.mark.parametrize(
    ("tls", "options"), [(True, {"ssl": True}), ({"ssl_ca_certs": "/ca.pem"}, {"ssl_ca_certs": "/ca.pem"})]
)
def test_tls_is_taken_over_from_a_broker_behind_sentinels(tls: Any, options: dict[str, Any]) -> None:
    chosen = settings(
        broker_url="sentinel://host", broker_use_ssl=tls, broker_transport_options={"master_name": "mymaster"}
    )
    assert chosen.driver_options == {"master_name": "mymaster", **options}


def test_the_store_is_where_messages_are_written() -> None:
    chosen = settings(broker_read_url="redis://read/0", broker_write_url="redis://write/0")
    assert chosen.url == StoreUrl.parse("redis://write/0")


def test_a_store_that_is_named_wins_over_the_broker() -> None:
    chosen = settings(broker_url="redis://host/0", distsched_url="etcd://host")
    assert chosen.url == StoreUrl.parse("etcd://host")
    assert chosen.url_reason is None
    assert dict(chosen.driver_options) == {}


@pytest.mark.parametrize(
    ("tls", "options"),
    [
        (
            {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": "/ca.pem", "ssl_keyfile": "/key.pem"},
            {"ssl_cert_reqs": "required", "ssl_ca_certs": "/ca.pem", "ssl_keyfile": "/key.pem"},
        ),
        ({"ssl_cert_reqs": "CERT_OPTIONAL"}, {"ssl_cert_reqs": "optional"}),
        ({"ssl_cert_reqs": None}, {"ssl_cert_reqs": "none"}),
        (True, {}),
    ],
)
@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_tls_is_taken_over_from_a_redis_broker(scheme: str, tls: Any, options: dict[str, Any]) -> None:
    chosen = settings(broker_url=f"{scheme}://host/0", broker_use_ssl=tls)
    assert chosen.url == StoreUrl.parse("rediss://host/0")
    driver = open_driver(chosen.url, namespace="n", ttl_s=5, timeout_s=1, options=chosen.driver_options)
    assert driver.settings == options


def test_a_redis_broker_without_tls_leads_to_a_store_without() -> None:
    assert settings(broker_url="redis://host/0", broker_use_ssl=False).url.scheme == "redis"


def test_driver_options_come_before_the_brokers_tls() -> None:
    chosen = settings(
        broker_url="redis://host/0",
        broker_use_ssl={"ssl_ca_certs": "/theirs.pem", "ssl_keyfile": "/key.pem"},
        distsched_driver_options={"ssl_ca_certs": "/ours.pem"},
    )
    assert chosen.driver_options == {"ssl_ca_certs": "/ours.pem", "ssl_keyfile": "/key.pem"}


@pytest.mark.parametrize("broker", ["memory://", "filesystem://", "sqla+sqlite:///broker.db"])
def test_beside_a_broker_of_one_host_the_store_is_a_file_there(broker: str) -> None:
    chosen = settings(broker_url=broker)
    assert chosen.url.masked == "sqlite:///celerybeat-distsched.sqlite3"
    assert broker.partition(":")[0] in (chosen.url_reason or "")


@pytest.mark.parametrize("broker", ["amqp://user:hush@host//", "sqs://user:hush@", "amqp://u:hush@a;amqp://u:hush@b"])
def test_beside_any_other_broker_the_store_must_be_named(broker: str) -> None:
    said = refusal(broker_url=broker)
    assert said.startswith("distsched_url is not set")
    assert "hush" not in said
    lines = [line.split('"')[1] for line in said.splitlines() if "distsched_url = " in line]
    # Each of the lines that it offers works.
    assert [driver_class(StoreUrl.parse(line).scheme) for line in lines]
    assert {StoreUrl.parse(line).scheme for line in lines} == {"redis", "etcd", "consul", "sqlite"}


# URLs

parts = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), min_size=1)
hosts = st.from_regex(r"[a-z][a-z0-9-]{0,4}(\.[a-z0-9][a-z0-9-]{0,3}){0,2}", fullmatch=True) | st.just("::1")
places = st.lists(st.tuples(hosts, st.none() | st.integers(1, 65535)), min_size=1, max_size=3)


@given(parts, parts, places, st.sampled_from(["", "/0", "/a/b"]))
def test_a_url_is_taken_apart_and_shown_without_its_password(
    user: str, password: str, listed: list[tuple[str, int | None]], path: str
) -> None:
    netloc = ",".join((f"[{host}]" if ":" in host else host) + (f":{port}" if port else "") for host, port in listed)
    text = f"redis://{quote(user, safe='')}:{quote(password, safe='')}@{netloc}{path}"
    url = StoreUrl.parse(text)
    assert (url.username, url.password, url.hosts, url.path) == (user, password, tuple(listed), path)
    assert url.masked == str(url) == f"redis://{user}:**@{netloc}{path}"
    assert f"password={password!r}" not in repr(url)


@pytest.mark.parametrize("option", ["token", "password", "ssl_password", "sentinel_password", "passwrod", "anything"])
def test_a_secret_in_the_query_is_masked(option: str) -> None:
    url = StoreUrl.parse(f"consul://host?{option}=hush&dc=1")
    assert url.masked == f"consul://host?{option}=**&dc=1"
    assert "hush" not in repr(url)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("localhost:6379", "expected something like 'redis://localhost:6379/0'"),
        ("://host", "expected something like"),
        ("redis://user@host:port/0", "'port' is not a port"),
        ("redis://:hush/0", "a number from 1 to 65535 was expected"),
        ("redis://user:hush/0", "behind it stands @host"),
        ("redis://host:0/0", "'0' is not a port"),
        ("redis://host:65536/0", "'65536' is not a port"),
        ("redis://::1/0", "stands in brackets"),
        ("redis://:hush@my..host:6379/0", "cannot be a host's name"),
        (f"etcd://{'a' * 64}.example:2379", "cannot be a host's name"),
        # A password with a slash cuts the URL short.
        ("redis://user:hush/hush@host/0", "must be percent-encoded"),
        ("redis://user:hush@host:1:2:x/0", "'x' is not a port"),
        ("user:hush@host", "expected something like"),
    ],
)
def test_what_is_no_url_is_refused_and_shows_no_password(url: str, expected: str) -> None:
    said = refusal(distsched_url=url)
    assert expected in said
    assert "hush" not in said


# Who shares a namespace


@pytest.mark.parametrize(
    ("broker", "shown"),
    [
        ("redis://user:hush@host:1/2", "redis://host:1/2"),
        ("amqp://user:hush@one//;amqp://user:hush@two//", "amqp://one//;amqp://two//"),
        (["redis://:hush@host:1/2"], "redis://host:1/2"),
        ("memory://", "memory://"),
    ],
)
def test_a_cluster_is_told_apart_by_its_broker_without_credentials(broker: Any, shown: str) -> None:
    app = Celery("shop", broker=broker, set_as_current=False)
    assert broker_identity(app) == shown


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"distsched_driver_options": {5: 1}}, "names of options are texts"),
        ({"distsched_namespace": "a\ud800"}, "written down as UTF-8"),
        ({"distsched_url": "redis://:a\ud800@host/0"}, "written down as UTF-8"),
    ],
)
def test_what_no_client_library_could_write_is_refused_by_name(given: dict[str, Any], expected: str) -> None:
    said = refusal(**given)
    assert next(iter(given)) in said
    assert expected in said
