"""What is particular to Redis: its keys, its scripts, its own expiry, and what its errors say."""
# ruff: noqa: F811  (fixtures are imported by their names)

from __future__ import annotations

import re
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis

from celery_distsched.drivers import Answer, Driver, Swap
from celery_distsched.errors import ConfigError, LeaseLost, StoreUnavailable
from tests.drivers.redis_nodes import Open, namespace, opened, said, until  # noqa: F401
from tests.servers import Certificates, RedisServer, free_port

SCHEMES = ("redis+scan", "redis+zset")


@pytest.fixture(params=SCHEMES)
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[Any]:
    """Reach the server past the driver, in a database of its own, empty."""
    with redis.Redis(port=redis_server.port, db=5, decode_responses=True) as client:
        client.flushdb()
        yield client


@pytest.fixture
def node(opened: Open, scheme: str, redis_server: RedisServer, client: Any) -> Driver:
    return opened(redis_server.url(scheme, path="/5"))


# Keys


def test_all_keys_lie_in_the_database_of_the_path_under_one_hash_tag(node: Driver, client: Any) -> None:
    driver = type(node)(node.url, namespace="a}b*{ü", ttl_s=60.0, timeout_s=5.0)
    driver.join("me", "info")
    driver.swap([Swap("entry", None, "record")], fence="me")
    driver.close()
    keys = set(client.keys())
    assert len(keys) == 3
    assert {key.partition(":{")[0] + key.partition("}")[2] for key in keys} > {"distsched:nodes", "distsched:ledger"}
    assert {re.findall(r"\{(.*?)\}", key)[0] for key in keys} == {"a%7Db%2A%7B%C3%BC"}


def test_members_takes_no_longer_among_many_other_keys(node: Driver, client: Any) -> None:
    for count in range(3):
        node.join(f"node-{count}", "info")
    client.eval("for i = 1, 100000 do redis.call('SET', 'other:' .. i, i) end", 0)
    client.config_resetstat()
    assert len(node.members()) == 3
    stats = client.info("commandstats")
    assert not {"cmdstat_scan", "cmdstat_keys"} & set(stats)
    assert sum(line["calls"] for name, line in stats.items() if "config" not in name) < 10


def test_the_two_drivers_refuse_to_share_a_namespace(opened: Open, redis_server: RedisServer) -> None:
    scan, zset = (opened(redis_server.url(scheme)) for scheme in SCHEMES)
    for first, second in ((scan, zset), (zset, scan)):
        first.join("first", "info")
        for call in (lambda driver=second: driver.join("second", "info"), second.members):
            assert "cannot share a namespace" in said(call)
        assert list(first.members()) == ["first"]
        first.remove("first")


def test_a_key_that_is_not_ours_is_an_error_that_says_so(node: Driver, client: Any, namespace: str) -> None:
    client.set(f"distsched:{{{namespace}}}:ledger", "another program's")
    node.join("me", "info")
    text = said(node.swap, [Swap("entry", None, "record")], "me")
    assert "WRONGTYPE" in text
    assert f"distsched:{{{namespace}}}:*" in text
    assert "distsched_namespace" in text
    assert "WRONGTYPE" in said(node.read, ["entry"])


def test_bytes_that_are_no_text_lose_a_swap_and_break_nothing(node: Driver, client: Any, namespace: str) -> None:
    client.hset(f"distsched:{{{namespace}}}:ledger", "alien", b"\xff\xfe")
    assert node.read(["alien", "none"]) == ["\\xff\\xfe", None]
    answers = node.swap([Swap("alien", "\\xff\\xfe", "mine"), Swap("ours", None, "mine")])
    assert answers == [Answer(False, "\\xff\\xfe"), Answer(True, "mine")]


# Scripts and connections


def test_every_method_works_after_the_server_has_forgotten_its_scripts(node: Driver, client: Any) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: node.join("me", "info"),
        lambda: node.renew("me", "info"),
        lambda: node.swap([Swap("entry", None, "record")], fence="me"),
        node.members,
        lambda: node.remove("me"),
    ]
    for call in calls:
        client.script_flush()
        call()


def test_nothing_is_tried_twice(opened: Open, scheme: str) -> None:
    def hang_up_at_the_first_command(received: bytes) -> bytes | None:
        return None if b"HMGET" in received or b"EVALSHA" in received else b"+OK\r\n" * received.count(b"*")

    with listening(hang_up_at_the_first_command) as (port, heard):
        driver = opened(f"{scheme}://127.0.0.1:{port}")
        said(driver.read, ["entry"])
        said(driver.swap, [Swap("entry", None, "record")])
        said(driver.renew, "me", "info")
    everything = b"".join(heard)
    assert everything.count(b"HMGET") == 1
    assert everything.count(b"EVALSHA") == 2

    with listening(lambda _: None) as (port, heard):
        said(opened(f"{scheme}://127.0.0.1:{port}").members)
    assert len(heard) == 1


# Its own expiry


def test_what_stays_silent_is_swept_up_and_is_no_fence_any_more(
    opened: Open, scheme: str, redis_server: RedisServer
) -> None:
    url = redis_server.url(scheme)
    brief, lasting = opened(url, ttl_s=0.03), opened(url)
    brief.join("brief", "info")
    lasting.join("lasting", "info")
    brief.join("late", "info")
    assert set(lasting.members()) == {"brief", "late", "lasting"}

    def only_the_lasting_is_left() -> bool:
        lasting.renew("lasting", "info")
        return set(lasting.members()) == {"lasting"}

    until(only_the_lasting_is_left)
    for call in (lambda: brief.renew("brief", "info"), lambda: brief.swap([Swap("entry", None, "x")], fence="late")):
        with pytest.raises(LeaseLost):
            call()
    assert set(brief.members()) == {"lasting"}
    assert lasting.read(["entry"]) == [None]


def test_who_keeps_short_takes_nobody_along(opened: Open, scheme: str, redis_server: RedisServer) -> None:
    brief, lasting = (opened(redis_server.url(scheme), ttl_s=ttl_s) for ttl_s in (0.02, 60.0))
    lasting.join("lasting", "info")
    brief.join("brief", "info")
    gone_by = time.monotonic() + 0.3
    while time.monotonic() < gone_by:
        assert "lasting" in lasting.members()
        time.sleep(0.01)
    assert lasting.swap([Swap("entry", None, "record")], fence="lasting") == [Answer(True, "record")]


def test_when_all_are_silent_nothing_but_the_ledger_stays(
    opened: Open, scheme: str, redis_server: RedisServer, client: Any
) -> None:
    node = opened(redis_server.url(scheme, path="/5"), ttl_s=0.02)
    for membership in ("a", "b"):
        node.join(membership, "info")
    node.swap([Swap("entry", None, "record")])
    until(lambda: len(client.keys()) == 1)
    assert node.read(["entry"]) == ["record"]
    node.join("c", "info")
    node.remove("c")
    assert len(client.keys()) == 1


# Eviction


def test_a_server_that_may_evict_the_ledger_is_warned_about(opened: Open, scheme: str) -> None:
    with RedisServer() as server, redis.Redis(port=server.port) as client:
        node = opened(server.url(scheme))
        for policy, maxmemory, warned in (
            ("allkeys-lru", "100mb", True),
            ("allkeys-lru", "0", False),
            ("volatile-lru", "100mb", False),
            ("noeviction", "100mb", False),
            ("allkeys-random", "100mb", True),
        ):
            client.config_set("maxmemory-policy", policy)
            client.config_set("maxmemory", maxmemory)
            texts = node.warnings()
            assert len(texts) == warned, (policy, maxmemory)
            for text in texts:
                assert policy in text
                assert "noeviction" in text
        client.acl_setuser("default", enabled=True, nopass=True, commands=["+@all", "-info"], keys=["*"])
        said(node.warnings)


# What errors say


def test_without_the_password_the_error_says_where_to_write_it(opened: Open, scheme: str) -> None:
    with RedisServer(password="sesame/@:%") as server:
        for credentials in ("", ":wrong-sesame@", "nobody:wrong-sesame@"):
            text = said(opened(f"{scheme}://{credentials}127.0.0.1:{server.port}").members)
            assert f"{scheme}://user:password@host:port/0" in text
            assert "wrong-sesame" not in text
        assert opened(server.url(scheme)).members() == {}
        assert opened(f"{scheme}://127.0.0.1:{server.port}", password="sesame/@:%").members() == {}

        with redis.Redis(port=server.port, password="sesame/@:%") as client:
            client.acl_setuser("weak", enabled=True, passwords=["+pass"], categories=["+@all"], keys=["other:*"])
        driver = opened(f"{scheme}://weak:pass@127.0.0.1:{server.port}")
        assert "must be allowed EVALSHA" in said(driver.join, "me", "info")


def test_a_password_that_the_server_repeats_is_not_passed_on(opened: Open, scheme: str) -> None:
    with RedisServer("--rename-command", "AUTH", "") as server:
        for url, options in (
            (f"{scheme}://user:open-sesame@127.0.0.1:{server.port}", {}),
            (f"{scheme}://127.0.0.1:{server.port}", {"password": "open-sesame", "username": "user"}),
        ):
            with pytest.raises(StoreUnavailable, match="unknown command") as caught:
                opened(url, **options).members()
            assert "open-sesame" not in "".join(traceback.format_exception(caught.value))


def test_what_is_no_redis_is_called_so(opened: Open, scheme: str) -> None:
    with listening(lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n") as (port, _):
        assert "not how a Redis answers" in said(opened(f"{scheme}://127.0.0.1:{port}").members)


def test_a_refused_connection_names_the_server(opened: Open, scheme: str) -> None:
    with RedisServer() as server:
        url = f"{scheme}://user:open-sesame@127.0.0.1:{server.port}/0"
    text = said(opened(url).members)
    assert url.replace("open-sesame", "**") in text
    assert "refused" in text


def test_the_servers_own_refusals_keep_their_words(opened: Open, scheme: str) -> None:
    with RedisServer() as server, redis.Redis(port=server.port) as client:
        node = opened(server.url(scheme))
        node.join("me", "info")
        batch = [Swap("entry", None, "record")]
        client.config_set("maxmemory", 1)
        assert "maxmemory" in said(node.swap, batch, "me")
        client.config_set("maxmemory", 0)
        client.replicaof("127.0.0.1", 1)
        assert "read only replica" in said(node.swap, batch, "me")
        client.replicaof("no", "one")
        assert node.read(["entry"]) == [None]
        assert node.swap(batch, "me") == [Answer(True, "record")]


@pytest.fixture(scope="module")
def tls_server(certificates: Certificates) -> Iterator[tuple[RedisServer, int]]:
    """A server that asks for a client certificate, and its port for TLS."""
    port, files = free_port(), certificates
    tls = ("--tls-port", str(port), "--tls-ca-cert-file", files.ca, "--tls-auth-clients", "yes")
    with RedisServer(*tls, "--tls-cert-file", files.server_cert, "--tls-key-file", files.server_key) as server:
        yield server, port


def test_with_tls_both_sides_show_a_certificate(
    opened: Open, scheme: str, tls_server: tuple[RedisServer, int], certificates: Certificates
) -> None:
    (server, port), secure = tls_server, scheme.replace("redis", "rediss")
    client = {"ssl_certfile": certificates.client_cert, "ssl_keyfile": certificates.client_key}
    authority = {"ssl_ca_certs": certificates.ca}
    query = "&".join(f"{name}={value}" for name, value in {**client, **authority}.items())
    node = opened(f"{secure}://127.0.0.1:{port}?{query}")
    node.join("me", "info")
    for options in ({"ssl_cert_reqs": "CERT_NONE"}, authority):
        assert set(opened(f"{secure}://127.0.0.1:{port}", **client, **options).members()) == {"me"}
    node.remove("me")
    # What is missing is named, with where to write it.
    unchecked = opened(f"{secure}://127.0.0.1:{port}", **client).members
    assert re.search(r"CERTIFICATE_VERIFY_FAILED.*\?ssl_ca_certs=", said(unchecked))
    assert "Hostname mismatch" in said(opened(f"{secure}://localhost:{port}", **client, **authority).members)
    assert "?ssl_certfile=" in said(opened(f"{secure}://127.0.0.1:{port}", **authority).members)
    assert f"write {scheme}://" in said(opened(server.url(secure), timeout_s=0.5).members)
    assert "wants TLS" in said(opened(f"{scheme}://127.0.0.1:{port}").members)


@pytest.mark.parametrize(
    ("url", "options", "text"),
    [
        ("redis://localhost/celery", {}, "'celery' is not the number of a database; write redis://host:port/0"),
        ("redis://localhost?db=x", {}, "'db'"),
        ("redis://one,two/0", {}, "names 2 hosts"),
        ("redis://one;redis://two", {}, "names 2 hosts"),
        ("redis://one;sentinel://two", {}, "mixes stores"),
        ("redis://one/0?virtual_host=1", {}, "for sockets"),
        ("redis+socket://host/run/redis.sock", {}, "redis\\+socket:///path"),
        ("redis+socket://", {}, "redis\\+socket:///path"),
        ("redis+socket:///run/redis.sock?ssl_ca_certs=/ca.pem", {}, "write rediss://"),
        ("redis://h?master_name=m", {}, "sentinel:// only"),
        ("sentinel://h", {}, "master_name=mymaster"),
        ("sentinel://h?master_name=m&sentinel_kwargs=x", {}, "distsched_driver_options only"),
        ("sentinel://h?master_name=m", {"sentinel_kwargs": {"passwd": "hush"}}, "'passwd'"),
        ("redis+cluster://h/1", {}, "only the database 0"),
        ("redis+cluster://h?db=1", {}, "only the database 0"),
        ("redis://h?wait_replicas=some", {}, "not a number of servers"),
        ("redis://h?credential_provider=os.path.join", {}, "credential_provider"),
        ("redis://h?credential_provider=no.such", {}, "cannot be imported"),
        ("rediss://h?ssl_min_version=SSLv9", {}, "TLSv1_3"),
        ("redis+scan://h", {"ssl_ca_certs": "/ca.pem"}, r"write rediss\+scan://"),
        ("rediss://h?ssl_cert_reqs=maybe", {}, "none, optional, required"),
        ("rediss://h?ssl_check_hostname=perhaps", {}, "neither true nor false"),
        ("redis://h?socket_timeout=3", {}, "no option 'socket_timeout'"),
    ],
)
def test_what_cannot_work_is_said_at_once(opened: Open, url: str, options: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        opened(url, **options)


@contextmanager
def listening(answer: Callable[[bytes], bytes | None]) -> Iterator[tuple[int, list[bytes]]]:
    """Serve one connection at a time with ``answer``, hanging up at None; gives the port, and what was heard."""
    heard: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            connection, _ = listener.accept()
            with connection:
                while received := connection.recv(65536):
                    if received == b"end":
                        return
                    heard.append(received)
                    reply = answer(received)
                    if reply is None:
                        break
                    connection.sendall(reply)

    thread = threading.Thread(target=serve)
    thread.start()
    port = listener.getsockname()[1]
    try:
        yield port, heard
    finally:
        with socket.create_connection(("127.0.0.1", port)) as last:
            last.sendall(b"end")
            thread.join(10)
        listener.close()
