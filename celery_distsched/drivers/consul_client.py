"""Transactions with a Consul agent, and what its refusals mean.

Of the client library only the HTTP client is used, which py-consul and python-consul have in common. Their `txn.put`
leaves out the token and the datacenter, and hides the list of failed operations in an error's text; python-consul
waits without end, and lets CONSUL_HTTP_ADDR override the address that it is given.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from ipaddress import ip_address
from ssl import SSLError
from typing import Any, NamedTuple

from celery_distsched.drivers.parts import NONSENSE
from celery_distsched.drivers.secret import Secrets
from celery_distsched.drivers.url import StoreUrl
from celery_distsched.errors import ConfigError, StoreUnavailable

#: One operation of a transaction, as Consul's HTTP interface spells it.
Operation = dict[str, dict[str, Any]]

_STRANGER = "this is not Consul's HTTP port: mend the address in distsched_url"
_IDENTIFY = "if this agent asks for a client certificate: consuls://…?cert=/path/cert.pem&key=/path/key.pem"
_GRANT = (
    "give a token whose policy may write under {prefix!r}:"
    " ?token=… in distsched_url, 'token' in distsched_driver_options, or CONSUL_HTTP_TOKEN in the environment"
)
#: What the agent or the network says, and what to do about it; the first that fits is shown.
_HINTS = (
    ("Permission denied", _GRANT),
    ("ACL not found", _GRANT),
    ("No path to datacenter", "name a datacenter that this agent knows: ?dc=… in distsched_url"),
    ("too large", "the batch is more than limits.txn_max_req_len in the agents' configuration"),
    ("HTTP request to an HTTPS server", "this agent speaks TLS: use consuls://"),
    ("WRONG_VERSION_NUMBER", "this agent speaks no TLS: use consul://"),
    ("RECORD_LAYER_FAILURE", "this agent speaks no TLS: use consul://"),
    ("CERTIFICATE_VERIFY_FAILED", "name the file of the authority that signed it: consuls://…?ca=/path/ca.pem"),
    ("invalid path", "ca, cert and key are paths of files on this host"),
    ("Connection refused", "no Consul agent listens there: start it, or mend the address in distsched_url"),
    ("closed connection without response", "if it does so again, this is not Consul's HTTP port"),
    ("Name or service not known", "mend the address in distsched_url"),
)
#: The two refusals that answer a question; every other one is a failure.
_ANSWERS = ("index is stale", "doesn't exist")


#: What requests takes for "none", whatever the environment says.
_NO_PROXY = {"http": None, "https": None, "all": None}


class Row(NamedTuple):
    """What is stored under one key."""

    #: The key's ModifyIndex; 0: there is no such key.
    modified: int
    #: None: there is no such key. Empty in the reply to a write.
    value: str | None


class Reply(NamedTuple):
    """What a transaction came to: its rows by key, or the places of the operations that refused it."""

    rows: Mapping[str, Row]
    refused: frozenset[int]


def operation(verb: str, key: str, value: str = "", *, index: int = 0, flags: int = 0) -> Operation:
    """Return one operation; `index` is the ModifyIndex that "cas" compares with, 0: there must be no such key."""
    encoded = base64.b64encode(value.encode(errors="surrogateescape")).decode()
    return {"KV": {"Verb": verb, "Key": key, "Value": encoded, "Index": index, "Flags": flags}}


def _refusable(asked: Operation) -> bool:
    """Whether one of `_ANSWERS` may be the answer to this operation."""
    return asked["KV"]["Verb"] in ("get", "cas", "delete-cas")


def token_of(text: str) -> str:
    """Return a token without what may stand around it; raises `ValueError` where it is none."""
    token = text.strip()
    if not token.isascii() or not token.isprintable():
        raise ValueError("it holds characters that no Consul token has")
    return token


def _token_of_environment() -> str:
    try:
        return token_of(os.environ.get("CONSUL_HTTP_TOKEN", ""))
    except ValueError as exc:
        raise ConfigError(f"CONSUL_HTTP_TOKEN in the environment: {exc}") from exc


class Agents:
    """Sends transactions to one of several agents: the same until it fails, then the next.

    Each call has a connection to itself, so any number of threads may call at a time. A connection that failed is
    closed and takes the idle ones along: what broke one has probably broken them too.
    """

    def __init__(self, url: StoreUrl, settings: Mapping[str, Any], *, prefix: str, timeout_s: float) -> None:
        # Here, so that a missing library is known before the first call.
        self._library = importlib.import_module("consul.std")
        self._timeout = importlib.import_module("urllib3").Timeout
        _check(url, settings)
        self._scheme = "https" if url.scheme == "consuls" else "http"
        hosts = url.hosts or (("127.0.0.1", None),)
        self._addresses = deque((f"[{host}]" if ":" in host else host, port or 8500) for host, port in hosts)
        self._token = settings.get("token") or _token_of_environment()
        self._secrets = Secrets(url, settings, self._token)
        self._params = [("dc", settings["dc"])] if "dc" in settings else []
        self._verify = settings.get("verify", True) and settings.get("ca", True)
        self._cert = (settings["cert"], settings["key"]) if "key" in settings else settings.get("cert")
        self._prefix = prefix
        self._timeout_s = timeout_s
        self._idle: list[Any] = []
        self._pid = os.getpid()

    def deadline(self) -> float:
        """Return the `time.monotonic` by which a call that starts now must end."""
        return time.monotonic() + self._timeout_s

    def transact(self, operations: Sequence[Operation], deadline: float, *, reading: bool = False) -> Reply:
        """Do all the operations or, if one of them is refused, none.

        Args:
            operations: At most 64.
            deadline: Of `time.monotonic`.
            reading: There are no writes among them; the leader makes sure that it still leads, so nothing old is read.

        Raises:
            StoreUnavailable: What became of it is unknown, or it can not be done at all; the message says why.
        """
        params = [*self._params, ("consistent", "1")] if reading else self._params
        with self._lent() as http:
            status, text = self._put(http, params, json.dumps(operations), deadline)
            if status not in (200, 409):
                # What Consul itself says in trouble (no leader, too many requests) is clear enough.
                otherwise = _GRANT if status == 403 else "" if status >= 500 or status == 429 else _STRANGER
                raise self._failed(http, f"{status} {self._secrets.masked(text).strip()[:200]}", otherwise=otherwise)
            try:
                body = json.loads(text)
                refusals = {int(error["OpIndex"]): str(error["What"]) for error in body["Errors"] or ()}
                rows = {result["KV"]["Key"]: _row(result["KV"]) for result in body["Results"] or ()}
                if any(what.endswith(_ANSWERS) and not _refusable(operations[at]) for at, what in refusals.items()):
                    raise ValueError("it refuses what cannot be refused like this")
            except NONSENSE as exc:
                raise self._failed(
                    http, f"{status} {self._secrets.masked(text)[:200]}", otherwise=_STRANGER
                ) from self._secrets.harmless(exc)
        for what in refusals.values():
            if not what.endswith(_ANSWERS):
                raise self._failed(http, what)
        if not refusals:
            # Consul leaves out of an answer what the token may not read.
            shown = (entry["KV"]["Key"] for entry in operations if entry["KV"]["Verb"] in ("get", "set", "cas"))
            for key in shown:
                if key not in rows:
                    raise self._failed(http, f"Permission denied to read {key!r}")
        return Reply(rows, frozenset(refusals))

    def close(self) -> None:
        """Close the idle connections now, and those in use when they come back."""
        idle, self._idle = self._idle, []
        for http in idle:
            http.session.close()

    def _put(self, http: Any, params: list[tuple[str, str]], body: str, deadline: float) -> tuple[int, str]:
        left = deadline - time.monotonic()
        if left <= 0:
            raise self._failed(http, f"no end of it within {self._timeout_s:g} s")
        outside = sys.exc_info()[1]
        try:
            response = http.session.put(
                http.uri("/v1/txn", params),
                data=body,
                verify=http.verify,
                cert=http.cert,
                # For connecting and waiting together; a pair of numbers would grant each of them so much.
                timeout=self._timeout(total=left),
                # The environment's, by default.
                proxies=_NO_PROXY if _is_loopback(http.host.strip("[]")) else None,
                # Consul sends nobody elsewhere, and requests would take the token along.
                allow_redirects=False,
            )
        except (OSError, *NONSENSE) as exc:  # Those of requests are OSErrors.
            root = _root(exc, outside)
            what = f"no answer within {self._timeout_s:g} s" if isinstance(root, TimeoutError) else str(root)
            # In TLS 1.3 a server says that it misses the client's certificate by an alert, a reset or a plain end.
            anonymous = self._scheme == "https" and not self._cert and isinstance(root, (SSLError, ConnectionError))
            error = self._failed(http, what, otherwise=_IDENTIFY if anonymous else "")
            raise error from self._secrets.harmless(exc)
        return response.status_code, response.content.decode(errors="replace")

    @contextmanager
    def _lent(self) -> Iterator[Any]:
        if self._pid != os.getpid():
            # Forked: those are the parent's, and its answers would come here, or ours there.
            self._pid, self._idle = os.getpid(), []
        idle = self._idle
        try:
            http = idle.pop()
        except IndexError:
            http = self._connection()
        try:
            yield http
        except BaseException:
            http.session.close()
            self.close()
            # Another thread may have moved on from this address already.
            if self._addresses[0] == (http.host, http.port):
                self._addresses.rotate(-1)
            raise
        if idle is self._idle:
            idle.append(http)
        else:
            http.session.close()

    def _connection(self) -> Any:
        host, port = self._addresses[0]
        http = self._library.HTTPClient(host, port, self._scheme, self._verify, self._cert)
        if self._token:
            http.session.headers["X-Consul-Token"] = self._token
        return http

    def _failed(self, http: Any, what: str, *, otherwise: str = "") -> StoreUnavailable:
        hint = next((hint for sign, hint in _HINTS if sign in what), otherwise).format(prefix=self._prefix)
        said = self._secrets.masked(what)
        return StoreUnavailable(f"Consul at {http.base_uri}: {said}" + (f"; {hint}" if hint else ""))


def _row(stored: Mapping[str, Any]) -> Row:
    # Whatever bytes others have put there come back as a text of their own, equal to no other.
    return Row(int(stored["ModifyIndex"]), base64.b64decode(stored.get("Value") or "").decode(errors="surrogateescape"))


def _is_loopback(host: str) -> bool:
    """Whether this is a host's name for itself: a proxy would take it for its own. Consul's client asks none either."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _root(error: BaseException, outside: BaseException | None) -> BaseException:
    """Return the innermost of the network's errors that this one wraps, but none that was being handled before it."""
    root, inner = error, error.__context__
    while inner is not None and inner is not outside:
        if isinstance(inner, (OSError, HTTPException)):
            root = inner
        inner = inner.__context__
    return root


def _check(url: StoreUrl, settings: Mapping[str, Any]) -> None:
    if url.path.strip("/"):
        raise ConfigError(f"{url.masked}: a Consul URL has no path; the prefix of the keys is distsched_namespace")
    if url.username or url.password:
        raise ConfigError(f"{url.masked}: Consul knows no users; write the token as {url.scheme}://…?token=…")
    if url.scheme != "consuls" and not settings.keys().isdisjoint({"ca", "cert", "key", "verify"}):
        raise ConfigError(f"{url.masked}: ca, cert, key and verify are for TLS: write consuls://")
    if "key" in settings and "cert" not in settings:
        raise ConfigError(f"{url.masked}: a client certificate needs cert beside key")
