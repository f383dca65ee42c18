"""What another program on the port answers, or a proxy: it makes a store unavailable, and nothing worse."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from typing import Any

import grpc
import pytest

from celery_distsched.drivers import Driver, StoreUrl, Swap, open_driver
from celery_distsched.drivers.base import Claim
from celery_distsched.errors import LeaseLost, StoreUnavailable

REDIS = [
    b":abc\r\n",
    b"*abc\r\n",
    b"+OK\r\n",
    b"$0\r\n\r\n",
    b":1\r\n",
    b"*0\r\n",
    b"*1\r\n$1\r\n1\r\n",
    b"*1\r\n:7\r\n",
    b"*2\r\n$1\r\nx\r\n:7\r\n",
    b"*2\r\n:99\r\n$1\r\nx\r\n",
    b"*2\r\n*0\r\n*0\r\n",
    b"*3\r\n$1\r\nx\r\n$1\r\ny\r\n$1\r\nz\r\n",
    b"*1\r\n" * 5000 + b":1\r\n",
]
JSON = [
    b"",
    b"{}",
    b"null",
    b'{"Results":[null],"Errors":[]}',
    b'{"Results":[{"KV":{"Key":"x"}}],"Errors":null}',
    b'{"Results":[{"KV":{"Key":"x","ModifyIndex":"a","Value":"!"}}],"Errors":null}',
    b'{"Results":[],"Errors":[{"OpIndex":0,"What":null}]}',
    b'{"Results":[],"Errors":[{"OpIndex":99,"What":"index is stale"}]}',
    b'{"Results":[],"Errors":[{"OpIndex":1e999,"What":"index is stale"}]}',
    b'{"Results":[],"Errors":[{"OpIndex":0,"What":"the key does not exist, doesn\'t exist"}]}',
    b"[" * 5000,
]


class _Liar:
    """Serves a port that answers whatever it hears with the same."""

    def __init__(self, answer: bytes) -> None:
        self.connections = 0
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                with connection, suppress(ConnectionError):
                    while connection.recv(65536):
                        connection.sendall(self._answer)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


class _Empty(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers each request with an empty message, which can be read as any."""

    def service(self, details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(lambda request, context: b"")


@contextmanager
def _driver(url: str) -> Iterator[Driver]:
    driver = open_driver(StoreUrl.parse(url), namespace="n", ttl_s=5.0, timeout_s=1.0, options={})
    with closing(driver):
        yield driver


def _calls(driver: Driver) -> Sequence[Callable[[], Any]]:
    swaps = [Swap("a", None, "1"), Swap("b", "1", "2")]
    calls = [
        lambda: driver.join("me", "info"),
        lambda: driver.renew("me", "info"),
        driver.members,
        lambda: driver.remove("me", "1"),
        lambda: driver.swap(swaps, "me"),
    ]
    if hasattr(driver, "claim_and_push"):
        claims = [Claim(*swap, "celery", ("message",)) for swap in swaps]
        calls.append(lambda: driver.claim_and_push(claims, "me", driver.incarnation)())
    return calls


def _harmless(driver: Driver) -> None:
    """Check that each call says that there was no clear answer, or what an answer to it looks like."""
    for call in _calls(driver):
        with suppress(StoreUnavailable, LeaseLost):
            call()
    with suppress(StoreUnavailable):
        (record,) = driver.read(["a"])
        assert record is None or isinstance(record, str)


@pytest.mark.parametrize("scheme", ["redis+zset", "redis+scan", "redis+cluster", "sentinel"])
@pytest.mark.parametrize("answer", REDIS)
def test_what_no_redis_answers_makes_it_unavailable(scheme: str, answer: bytes) -> None:
    query = "?master_name=m" if scheme == "sentinel" else ""
    with closing(_Liar(answer)) as liar, _driver(f"{scheme}://127.0.0.1:{liar.port}{query}") as driver:
        _harmless(driver)


@pytest.mark.parametrize("body", JSON)
def test_what_no_consul_answers_makes_it_unavailable(body: bytes) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with closing(_Liar(answer)) as liar, _driver(f"consul://127.0.0.1:{liar.port}") as driver:
        _harmless(driver)


def test_what_no_etcd_answers_makes_it_unavailable() -> None:
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool, handlers=[_Empty()])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            with _driver(f"etcd://127.0.0.1:{port}") as driver:
                _harmless(driver)
                with pytest.raises(StoreUnavailable, match="not etcd's client port"):
                    driver.read(["a"])
        finally:
            server.stop(None).wait()


@pytest.mark.parametrize(
    ("scheme", "answer", "says"),
    [
        ("redis", b":abc\r\n", "not how a Redis answers"),
        ("redis", b"+OK\r\n", "not how a Redis answers"),
        ("redis", b"*1\r\n:7\r\n", "not how a Redis answers"),
        ("consul", b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + b"[" * 5000, "not Consul's HTTP port"),
    ],
)
def test_nonsense_is_called_so_and_is_the_last_answer_of_its_connection(scheme: str, answer: bytes, says: str) -> None:
    with closing(_Liar(answer)) as liar, _driver(f"{scheme}://127.0.0.1:{liar.port}") as driver:
        for attempt in (1, 2):
            with pytest.raises(StoreUnavailable, match=says):
                driver.read(["a"])
            assert liar.connections == attempt


def test_an_answer_that_cannot_be_read_is_told_once_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """The mistake may be ours, and where only the loop meets it nobody else says so."""
    with closing(_Liar(b"+OK\r\n")) as liar, _driver(f"redis://127.0.0.1:{liar.port}") as driver:
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                driver.read(["a"])
    assert [record.exc_info is not None for record in caplog.records if record.levelno >= logging.ERROR] == [True]
