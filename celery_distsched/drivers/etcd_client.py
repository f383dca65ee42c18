"""A line to one etcd server out of several, and what its errors mean.

Of the client libraries only the generated gRPC messages and stubs are used: all packages have the same ones. Their
client classes differ, drop the server's error text, never authenticate anew when a token has expired, and (pyetcd's)
refuse a server for 300 s after one error. They and gRPC are imported when a driver is made, not before, so that their
absence can be explained.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from celery_distsched.drivers.secret import Secrets
from celery_distsched.drivers.url import StoreUrl
from celery_distsched.errors import ConfigError, DriverNotInstalled, StoreUnavailable

#: What the server or gRPC says, and what to do about it; the first that fits is shown.
_HINTS = (
    ("invalid user ID or password", "write the right ones in distsched_url, percent-encoded: user:password@host"),
    ("user name is empty", "this etcd asks who you are: write user:password@host in distsched_url, percent-encoded"),
    ("permission denied", "grant the user's role readwrite on the prefix /<distsched_namespace>/distsched/"),
    ("database space exceeded", "compact and defragment it, and start it with --auto-compaction-retention=1h"),
    ("too many operations", "start etcd with --max-txn-ops 128, its default, or more"),
    ("CERTIFICATE_VERIFY_FAILED", "name the authority that signed its certificate: etcds://…?ca=/path/ca.pem"),
    ("Hostname Verification", "its certificate is for other hosts than this one"),
    ("Failed to create security handshaker", "the files ca, cert and key are not PEM, or do not belong together"),
    ("TSI_DATA_CORRUPTED", "if it asks for a client certificate: etcds://…?cert=/path/cert.pem&key=/path/key.pem"),
    ("Handshake read failed|WRONG_VERSION_NUMBER", "if this server speaks no TLS, use etcd://"),
    ("failed to connect.*Socket closed", "if this server speaks TLS, use etcds://"),
    ("Failed parsing HTTP/2|unknown service|without a header", "this is not etcd's client port"),
)


def import_messages() -> Any:
    """Return the generated gRPC module of the client library that is installed.

    Raises:
        ImportError: There is none.
        DriverNotInstalled: There is one that cannot be imported beside this protobuf.
    """
    # After etcd3 0.12.0, pyetcd cannot be imported (both register the same file with protobuf): a process that uses
    # etcd3 already goes on with it.
    first, second = ("etcd3", "pyetcd") if "etcd3" in sys.modules else ("pyetcd", "etcd3")
    try:
        try:
            return importlib.import_module(f"{first}.etcdrpc")
        except ImportError:
            return importlib.import_module(f"{second}.etcdrpc")
    except RuntimeError as exc:
        # Of a grpcio that is older than the module was made for.
        raise DriverNotInstalled(f"{exc}; pip install --upgrade grpcio") from exc
    except TypeError as exc:
        raise DriverNotInstalled(
            "the installed etcd client library cannot be imported beside this protobuf: pip uninstall etcd3 and"
            ' pip install "celery-distsched[etcd]", or set PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=python in the'
            " environment before Python starts (slower)"
        ) from exc


#: gRPC metadata; empty where nobody has to say who asks.
_Token = tuple[tuple[str, str], ...]


class Line:
    """One gRPC channel, made at the first call, and after each error anew, at the next endpoint.

    May be used from several threads; an error in one of them ends the calls of the others on this line.
    """

    def __init__(self, messages: Any, url: StoreUrl, settings: Mapping[str, str], timeout_s: float) -> None:
        self._messages = messages
        self._timeout_s = timeout_s
        self._endpoints = [_target(host, port or 2379) for host, port in url.hosts or (("localhost", None),)]
        self._tls = settings if url.scheme == "etcds" else None
        self._credentials = _credentials(url, settings)
        self._secrets = Secrets(url, settings)
        self._turn = 0
        self._link: _Link | None = None
        self._inherited: list[_Link] = []
        self._lock = threading.Lock()
        if url.path.strip("/"):
            raise ConfigError(f"{url.masked}: an etcd URL has no path; the prefix of the keys is distsched_namespace")
        if self._tls is None and not settings.keys().isdisjoint({"ca", "cert", "key"}):
            raise ConfigError(f"{url.masked}: ca, cert and key are for TLS: write etcds://")
        if ("cert" in settings) != ("key" in settings):
            raise ConfigError(f"{url.masked}: a client certificate needs both cert and key")

    def attempt(self) -> Attempt:
        """Open one attempt; all its requests together are bounded by ``timeout_s``."""
        link, give_up_at = self._connected(), time.monotonic() + self._timeout_s
        return Attempt(self._messages, link, self._credentials, self._secrets, give_up_at, partial(self._drop, link))

    def close(self) -> None:
        with self._lock:
            link, self._link = self._link, None
        if link is not None and link.pid == os.getpid():
            link.channel.close()

    def _connected(self) -> _Link:
        if self._link is not None and self._link.pid != os.getpid():
            # Forked: that is the parent's. It is kept, since gRPC could not close it here.
            self._inherited.append(self._link)
            self._link, self._lock = None, threading.Lock()
        with self._lock:
            if self._link is None:
                endpoint = self._endpoints[self._turn % len(self._endpoints)]
                self._link = _Link(self._messages, _channel(endpoint, self._tls), endpoint)
            return self._link

    def _drop(self, link: _Link) -> None:
        with self._lock:
            if self._link is link:
                self._link = None
                self._turn += 1
        link.channel.close()


class _Link:
    """A channel with the calls that are made on it."""

    def __init__(self, messages: Any, channel: Any, endpoint: str) -> None:
        self.pid = os.getpid()
        self.channel = channel
        self.endpoint = endpoint
        self.kv = messages.KVStub(channel)
        self.lease = messages.LeaseStub(channel)
        self.auth = messages.AuthStub(channel)
        # A stream in etcd's API. One request and one answer are the same on the wire, and start no threads.
        self.keep_alive = channel.unary_unary(
            "/etcdserverpb.Lease/LeaseKeepAlive",
            request_serializer=messages.LeaseKeepAliveRequest.SerializeToString,
            response_deserializer=messages.LeaseKeepAliveResponse.FromString,
        )
        #: What goes with each request to say who asks; None: still to be asked for.
        self.token: _Token | None = None


class Attempt:
    """The requests of one call of the driver, under one deadline. Every error is `StoreUnavailable`."""

    def __init__(
        self,
        messages: Any,
        link: _Link,
        credentials: tuple[str, str] | None,
        secrets: Secrets,
        give_up_at: float,
        drop: Callable[[], None],
    ) -> None:
        import grpc

        self.link = link
        self._messages = messages
        self._grpc = grpc
        self._credentials = credentials
        self._secrets = secrets
        self._give_up_at = give_up_at
        self._drop = drop

    def txn(self, request: Any) -> Any:
        return self._ask(self.link.kv.Txn, request)

    def txns(self, requests: Iterable[Any]) -> Callable[[], list[Any]]:
        """Ask for all at once, in no order: etcd writes to its disk together what it has to write at a time.

        Each is sent as soon as it is made, so that etcd works while the next is.

        Returns:
            What waits for the answers.
        """
        return self._begin(self.link.kv.Txn, requests)

    def get(self, request: Any) -> Any:
        return self._ask(self.link.kv.Range, request)

    def put(self, request: Any) -> None:
        self._ask(self.link.kv.Put, request)

    def delete(self, key: bytes) -> None:
        self._ask(self.link.kv.DeleteRange, self._messages.DeleteRangeRequest(key=key))

    def grant_lease(self, ttl_s: int) -> int:
        """Return the id of a new lease."""
        lease: int = self._ask(self.link.lease.LeaseGrant, self._messages.LeaseGrantRequest(TTL=ttl_s)).ID
        return lease

    def keep_lease(self, lease: int) -> bool:
        """Start a lease's time anew; False if there is no such lease."""
        answer = self._ask(self.link.keep_alive, self._messages.LeaseKeepAliveRequest(ID=lease))
        # etcd reports no error for a lease that has ended: the missing time to live is the only sign.
        return bool(answer.TTL > 0)

    def _ask(self, call: Any, request: Any) -> Any:
        return self._begin(call, [request])()[0]

    def _begin(self, call: Any, requests: Iterable[Any]) -> Callable[[], list[Any]]:
        with self._explaining():
            if self.link.token is None:
                self.link.token = self._new_token()
            return partial(self._answers, call, self._sent(call, requests, self.link.token))

    def _answers(self, call: Any, sent: Iterable[tuple[Any, Callable[[], Any]]]) -> list[Any]:
        answers = []
        with self._explaining():
            for request, answer in sent:
                try:
                    answers.append(answer())
                except self._grpc.RpcError as exc:
                    if self._credentials is None or exc.code() is not self._grpc.StatusCode.UNAUTHENTICATED:
                        raise
                    # The token has ended, by default after 300 s without use. A request refused for that has done
                    # nothing, so it can be sent again.
                    self.link.token = self._new_token()
                    answers.append(self._send(call, request, self.link.token))
                if not answers[-1].HasField("header"):
                    # An empty message, which can be read as any.
                    raise self._broken("an answer without a header")
        return answers

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except self._grpc.RpcError as exc:
            raise self._broken(f"{exc.code().name}: {exc.details() or ''}") from self._secrets.harmless(exc)
        # gRPC's ways to say that another thread has closed the channel.
        except (ValueError, self._grpc.FutureCancelledError) as exc:
            raise self._broken(repr(exc)) from self._secrets.harmless(exc)

    def _broken(self, said: str) -> StoreUnavailable:
        # A frozen server, a half-open connection, a member that has lost its leader: one cure for all.
        self._drop()
        return StoreUnavailable(self._explained(said))

    def _sent(self, call: Any, requests: Iterable[Any], token: _Token) -> list[tuple[Any, Callable[[], Any]]]:
        """Send requests; returns each with what waits for its answer."""
        given = iter(requests)
        first, second = next(given, None), next(given, None)
        if second is None:
            # A lone request, as nearly all are, needs no thread of gRPC's.
            return [] if first is None else [(first, lambda: self._send(call, first, token))]
        return [(request, self._send(call.future, request, token).result) for request in chain((first, second), given)]

    def _send(self, call: Any, request: Any, token: _Token) -> Any:
        return call(request, timeout=max(0.0, self._give_up_at - time.monotonic()), metadata=token)

    def _new_token(self) -> _Token:
        if self._credentials is None:
            return ()
        name, password = self._credentials
        request = self._messages.AuthenticateRequest(name=name, password=password)
        try:
            return (("token", self._send(self.link.auth.Authenticate, request, ()).token),)
        except self._grpc.RpcError as exc:
            if "authentication is not enabled" in (exc.details() or ""):
                return ()  # as etcd's own client does, so that users come first and `auth enable` after
            raise

    def _explained(self, said: str) -> str:
        hint = next((f" ({hint})" for sign, hint in _HINTS if re.search(sign, said)), "")
        return f"etcd at {self.link.endpoint}: {self._secrets.masked(said)}{hint}"


def _credentials(url: StoreUrl, settings: Mapping[str, str]) -> tuple[str, str] | None:
    name = settings.get("username", url.username)
    password = settings.get("password", url.password)
    if name is not None and password is not None:
        return name, password
    if name is not None or password is not None:
        raise ConfigError(f"{url.masked}: etcd asks for both user and password: {url.scheme}://user:password@host")
    return None


def _target(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _channel(endpoint: str, tls: Mapping[str, str] | None) -> Any:
    import grpc

    options = [
        # By default all channels to one server share a connection and its back-off: a new channel would inherit the
        # old one's ills, and a renewal would wait behind a batch.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", -1),
    ]
    if tls is None:
        return grpc.insecure_channel(endpoint, options)
    # Read at each connection, so that a certificate that was renewed on disk is taken up.
    return grpc.secure_channel(
        endpoint, grpc.ssl_channel_credentials(*(_pem(tls, name) for name in ("ca", "key", "cert"))), options
    )


def _pem(tls: Mapping[str, str], option: str) -> bytes | None:
    if option not in tls:
        return None
    try:
        return Path(tls[option]).read_bytes()
    except OSError as exc:
        raise StoreUnavailable(f"etcds:// option {option!r} names a file that cannot be read: {exc}") from exc
