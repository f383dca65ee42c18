"""Passwords and tokens show in nothing that a beat logs, shows or writes, whatever goes wrong in whatever library."""

from __future__ import annotations

import io
import logging
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import quote

import grpc
import pytest
from celery import Celery

from celery_distsched.drivers import StoreUrl, open_driver
from celery_distsched.drivers.secret import Secrets
from celery_distsched.errors import ConfigError, StoreUnavailable
from celery_distsched.scheduler import DistributedScheduler
from tests.servers import RedisServer, free_port

#: With what a URL must percent-encode, and a repr escapes.
SECRET = "hüsh'/@:?#\\ hush"
IN_URL = quote(SECRET, safe="")


@contextmanager
def _echo(begin: bytes, end: bytes) -> Iterator[int]:
    """Serve a port that answers whatever it hears with the same, between these two."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            connection, _ = listener.accept()
            with connection:
                heard = connection.recv(65536)
                if heard == b"end":
                    return
                connection.sendall(begin + heard.replace(b"\r\n", b" ") + end)

    thread = threading.Thread(target=serve)
    thread.start()
    port = listener.getsockname()[1]
    try:
        yield port
    finally:
        with socket.create_connection(("127.0.0.1", port)) as last:
            last.sendall(b"end")
        thread.join(10)
        listener.close()


class _EchoEtcd(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Refuses every request, and repeats it and its metadata."""

    def service(self, details: Any) -> Any:
        def refuse(request: bytes, context: Any) -> None:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, f"{request.decode(errors='replace')} {details!r}")

        return grpc.unary_unary_rpc_method_handler(refuse)


@contextmanager
def _echoing_etcd() -> Iterator[int]:
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool, handlers=[_EchoEtcd()])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield port
        finally:
            server.stop(None).wait()


def _echoing_redis() -> Any:
    return _echo(b"-ERR unknown command, with args beginning with: ", b"\r\n")


def _echoing_consul() -> Any:
    return _echo(b"HTTP/1.1 500 no\r\nConnection: close\r\n\r\n", b"")


SENTINELS = {"master_name": "m", "sentinel_kwargs": {"username": "me", "password": SECRET}}
CASES = [
    (_echoing_redis, "redis+zset://me:{secret}@127.0.0.1:{port}/0", {}),
    (_echoing_redis, "redis+scan://127.0.0.1:{port}/0?username=me&password={secret}", {}),
    (_echoing_redis, "redis://me@127.0.0.1:{port}/0", {"password": SECRET}),
    (_echoing_redis, "redis+cluster://:{secret}@127.0.0.1:{port}", {}),
    (_echoing_redis, "rediss://:{secret}@127.0.0.1:{port}?ssl_password={secret}", {}),
    (_echoing_redis, "redis+socket://:{secret}@/tmp/no-such-socket", {}),
    (_echoing_redis, "sentinel://127.0.0.1:{port}", SENTINELS),
    (_echoing_redis, "sentinel://:{secret}@127.0.0.1:{port}?master_name=m&sentinel_password={secret}", {}),
    (_echoing_etcd, "etcd://me:{secret}@127.0.0.1:{port}", {}),
    (_echoing_etcd, "etcd://127.0.0.1:{port}", {"username": "me", "password": SECRET}),
    (_echoing_consul, "consul://127.0.0.1:{port}?token=hush-token", {}),
    (_echoing_consul, "consul://127.0.0.1:{port}", {"token": "hush-token"}),
]


@pytest.fixture
def logged() -> Iterator[Callable[[], str]]:
    """Everything that anybody logs, with the arguments, and tracebacks."""
    text = io.StringIO()
    handler, root = logging.StreamHandler(text), logging.getLogger()
    handler.setFormatter(logging.Formatter("%(name)s %(message)s %(args)s"))
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield text.getvalue
    root.setLevel(level)
    root.removeHandler(handler)


def shows_no_secret(text: str) -> None:
    """Check for each piece of a secret, however the rest of it is spelled."""
    assert "hush" not in text, text
    assert "sh'" not in text, text


@pytest.mark.parametrize(("server", "url", "options"), CASES)
def test_a_beat_that_cannot_join_shows_no_secret(
    server: Callable[[], Any], url: str, options: dict[str, Any], logged: Callable[[], str]
) -> None:
    with server() as port:
        broker = f"redis://me:{IN_URL}@127.0.0.1:{free_port()}/0"
        app = Celery("shop", broker=broker, set_as_current=False)
        app.conf.distsched_url = url.format(port=port, secret=IN_URL)
        app.conf.distsched_driver_options = options
        app.conf.distsched_node_ttl = 2.0
        scheduler = DistributedScheduler(app)
        with closing(scheduler):
            deadline = time.monotonic() + 10
            while "the store does not answer" not in logged():
                assert time.monotonic() < deadline
                scheduler.tick()
                time.sleep(0.02)
            driver = scheduler.driver
            with pytest.raises(StoreUnavailable) as caught:
                driver.join("me", "")
        shown = [repr(driver), repr(driver.url), str(driver.url), scheduler.info, repr(scheduler.settings)]
        shown += [repr(caught.value), *traceback.format_exception(caught.value)]
    shows_no_secret("\n".join([*shown, logged()]))


def test_what_a_beat_writes_of_its_broker_has_no_secret(redis_server: RedisServer) -> None:
    brokers = [f"amqp://me:{IN_URL}@one//", "amqp://me:hush/hush@two//", "sqla+postgresql://me:hush#@/db?password=hush"]
    app = Celery("shop", broker=";".join(brokers), set_as_current=False)
    app.conf.distsched_url = redis_server.url()
    app.conf.distsched_namespace = "secrets"
    scheduler = DistributedScheduler(app)
    with closing(scheduler):
        deadline = time.monotonic() + 10
        while not (members := scheduler.driver.members()):
            assert time.monotonic() < deadline
            scheduler.tick()
            time.sleep(0.02)
        (member,) = members.values()
    shows_no_secret(member.info)
    assert "amqp://one//" in member.info


@pytest.mark.parametrize(
    "url",
    [
        "redis://hush@host",
        "redis://me:hush/@host/0",
        "redis://me:12#hush@host/0",
        "redis://me:12?hush@host/0",
        "redis://me:12?hush=hush@host/0",
        "redis://me:12/hush@host/0",
        "redis://me:hush@host:port/0",
        "redis://me:[hush@host/0",
        "redis://me:hu\u2100sh-hush@host/0",
        "redis://host?passwort=hush",
        "redis://host?ssl_cert_reqs=none&passwort=hush",
        "redis://host?ssl_password=hush",
        "redis+cluster://me:hush@host/7",
        "sentinel://me:hush@host;sentinel://me:hush@host",
        "redis://me:hush@host;consul://host?token=hush",
        "etcd://hush@host",
        "etcd://host?password=hush",
        "consul://me:hush@host",
        "consul://host?token=h\u00fcsh",
        "sqlite://me:hush@host",
        "me:hush@host",
    ],
)
def test_a_url_that_cannot_work_shows_no_secret(url: str) -> None:
    shown = []
    try:
        parsed = StoreUrl.parse(url)
        shown += [repr(parsed), str(parsed), parsed.masked]
        open_driver(parsed, namespace="n", ttl_s=5, timeout_s=1, options={})
    except ConfigError as error:
        shown += [str(error), repr(error), *traceback.format_exception(error)]
    assert shown
    shows_no_secret("\n".join(shown))


@pytest.mark.parametrize("spelled", [SECRET, IN_URL, repr(SECRET), repr(IN_URL), repr({"url": f"redis://:{IN_URL}@h"})])
def test_every_spelling_of_a_secret_is_masked(spelled: str) -> None:
    url = StoreUrl.parse(f"redis://:{IN_URL}@host")
    for secrets in (Secrets(url, {}), Secrets(StoreUrl("redis"), {"a": {"password": SECRET}})):
        shows_no_secret(secrets.masked(f"before {spelled} after"))
        outer = OSError("an outer error")
        outer.__cause__ = ValueError(spelled)
        assert secrets.harmless(outer) is None
    harmless = OSError("nothing of it")
    assert secrets.harmless(harmless) is harmless


def test_a_token_that_was_fetched_is_masked_and_forgotten_when_many_have_come_after_it() -> None:
    secrets = Secrets(StoreUrl.parse("redis://:given@h/0"), {})
    for number in range(100):
        secrets.learn(f"token-{number}-")
    assert secrets.masked("given token-99- token-0-") == "** ** token-0-"


def test_a_token_that_was_fetched_as_bytes_is_masked_too() -> None:
    secrets = Secrets(StoreUrl.parse("redis://h"), {})
    secrets.learn(b"to\xffken")
    assert secrets.masked("before to\\xffken after") == "before ** after"
