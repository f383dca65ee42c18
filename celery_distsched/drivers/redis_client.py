"""How the Redis drivers connect, and what their errors say."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import redis
from redis import exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from celery_distsched.drivers.url import StoreUrl
from celery_distsched.errors import ConfigError, StoreUnavailable


def _yes_or_no(value: bool | str) -> bool:
    text = str(value).lower()
    if text not in ("true", "yes", "1", "false", "no", "0"):
        raise ValueError(f"{value!r} is neither true nor false")
    return text in ("true", "yes", "1")


def _database(value: int | str) -> int:
    if not str(value).isdecimal():
        raise ValueError(f"{value!r} is not the number of a database")
    return int(value)


def _certificate_rule(value: str | ssl.VerifyMode) -> str:
    name = value.name if isinstance(value, ssl.VerifyMode) else str(value)
    rule = name.lower().removeprefix("cert_")
    if rule not in ("none", "optional", "required"):
        raise ValueError(f"{value!r} is none of none, optional, required")
    return rule


#: Spelled as redis-py and kombu spell them.
OPTIONS: Mapping[str, Callable[[Any], Any]] = {
    "db": _database,
    "username": str,
    "password": str,
    "client_name": str,
    "ssl_cert_reqs": _certificate_rule,
    "ssl_ca_certs": str,
    "ssl_ca_path": str,
    "ssl_certfile": str,
    "ssl_keyfile": str,
    "ssl_password": str,
    "ssl_check_hostname": _yes_or_no,
}


def new_client(url: StoreUrl, options: Mapping[str, Any], timeout_s: float) -> redis.Redis:
    """Make a client that connects when it is first used; each thread then has a connection of its own.

    Raises:
        ConfigError: This URL and these options cannot work together.
    """
    if len(url.hosts) > 1:
        raise ConfigError(f"distsched_url {url.masked!r} names {len(url.hosts)} hosts; {url.scheme}:// takes one")
    host, port = url.hosts[0] if url.hosts else ("", None)
    tls = url.scheme.startswith("rediss")
    if alien := [name for name in options if name.startswith("ssl_") and not tls]:
        raise ConfigError(
            f"distsched_url {url.masked!r}: the option {alien[0]!r} is of use with TLS only: "
            f"write {url.scheme.replace('redis', 'rediss', 1)}://"
        )
    settings = {
        "host": host or "localhost",
        "port": port or 6379,
        "db": _database_of(url),
        "username": url.username,
        "password": url.password,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        # redis-py would repeat by itself, for seconds where the server is gone; and whether a write is repeated is the
        # caller's to say.
        "retry": Retry(NoBackoff(), 0),
        # Redis 5 and proxies know only this one, and its replies have the same shape in every redis-py.
        "protocol": 2,
        "decode_responses": True,
        # What is no text was written by somebody else: it must lose a swap, not break the reading of all others.
        "encoding_errors": "backslashreplace",
        **options,
    }
    if tls:
        # redis-py 5 did not check the name unless told to; later ones fail where the certificate is not checked at all.
        settings.setdefault("ssl_check_hostname", settings.get("ssl_cert_reqs") != "none")
    connection = redis.SSLConnection if tls else redis.Connection
    return redis.Redis(connection_pool=redis.ConnectionPool(connection_class=connection, **settings))


def _database_of(url: StoreUrl) -> int:
    try:
        return _database(url.path.strip("/") or 0)
    except ValueError as exc:
        raise ConfigError(
            f"distsched_url {url.masked!r}: {exc}; write {url.scheme}://host:port/0, or another number for 0"
        ) from exc


@contextmanager
def translated(url: StoreUrl, prefix: str, secrets: Iterable[str]) -> Iterator[None]:
    """Turn what redis-py raises into `StoreUnavailable`, which says how to mend it where that is known.

    Args:
        url: The store.
        prefix: What all our keys begin with.
        secrets: Taken out of what the server said.
    """
    try:
        yield
    except (redis.RedisError, OSError) as exc:
        said = shown = f"{type(exc).__name__}: {exc}"
        # A server that does not know AUTH answers with what it was sent; the cause would show it as well.
        for secret in secrets:
            shown = shown.replace(secret, "**")
        error = StoreUnavailable(f"{url.masked}: {shown.rstrip('.')}{_mend(exc, url, prefix)}")
        raise error from (exc if shown == said else None)


def _mend(exc: Exception, url: StoreUrl, prefix: str) -> str:
    said = str(exc)
    if isinstance(exc, exceptions.AuthenticationError):
        return f". Write the user and password that the server wants as {url.scheme}://user:password@host:port/0"
    if isinstance(exc, exceptions.NoPermissionError):
        return f". This user must be allowed EVALSHA, EVAL and all reads and writes of the keys {prefix}*"
    if isinstance(exc, exceptions.InvalidResponse):
        return ". That is not how a Redis answers: is it another server, or one that wants TLS (rediss://)?"
    if isinstance(exc, exceptions.AskError):
        return ". This is a Redis Cluster: its slots lie on several servers, and this driver talks to one"
    if isinstance(exc, exceptions.ConnectionError) and ("closed by server" in said or "Error while reading" in said):
        return ". If that goes on: is it another server, or one that wants TLS (rediss://)?"
    if isinstance(exc, exceptions.TimeoutError) and "connecting" in said and url.scheme.startswith("rediss"):
        # A Redis without TLS takes the greeting for the beginning of a command, and waits for the rest.
        return f". Does it speak TLS? If not, write {url.scheme.replace('rediss', 'redis', 1)}://"
    if "WRONGTYPE" in said:
        return (
            f". A key {prefix}* is not ours, or of the other Redis driver (redis+scan and redis+zset cannot share a "
            "namespace: let all nodes leave, then change it on all): delete it, or set another distsched_namespace"
        )
    return ""
