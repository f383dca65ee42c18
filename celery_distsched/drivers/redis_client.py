"""How the Redis drivers connect."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from celery_distsched.drivers.redis_credentials import Guarded
from celery_distsched.drivers.redis_options import SENTINEL_OPTIONS, TLS_OPTIONS, database
from celery_distsched.drivers.redis_packer import packer
from celery_distsched.drivers.redis_place import Address, FoundConnection, FoundTlsConnection, Sentinels, Shards
from celery_distsched.drivers.secret import Secrets
from celery_distsched.drivers.url import StoreUrl
from celery_distsched.errors import ConfigError

#: Options that are not for redis-py's connections.
_OURS = frozenset({"ssl", "virtual_host", "wait_replicas", *SENTINEL_OPTIONS})


def new_client(url: StoreUrl, options: Mapping[str, Any], timeout_s: float, key: str, secrets: Secrets) -> redis.Redis:
    """Make a client that connects when it is first used; each thread then has a connection of its own.

    Args:
        url: Where the server is, or who knows where it is.
        options: Checked and converted.
        timeout_s: Bound of connecting, and of each command.
        key: One of ours; in a Cluster it says which shard.
        secrets: Told of those that are fetched.

    Raises:
        ConfigError: This URL and these options cannot work together.
    """
    kinds = url.scheme.split("+")
    # As kombu has it, any of TLS's options asks for TLS with the server that the Sentinels name.
    asked_for_tls = options.get("ssl", not options.keys().isdisjoint(TLS_OPTIONS))
    tls = kinds[0] == "rediss" or (kinds[0] == "sentinel" and asked_for_tls)
    _check(url, options, tls=tls)
    settings: dict[str, Any] = {
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
        **{name: value for name, value in options.items() if name not in _OURS},
    }
    if "credential_provider" in settings:
        provider = Guarded(settings["credential_provider"], secrets)
        settings.update(username=None, password=None, credential_provider=provider)
    if tls:
        # redis-py 5 did not check the name unless told to; later ones fail where the certificate is not checked at all.
        settings.setdefault("ssl_check_hostname", settings.get("ssl_cert_reqs") != "none")
    if kinds[-1] == "socket":
        settings = {name: value for name, value in settings.items() if not name.startswith("socket_keepalive")}
        settings.setdefault("db", options.get("virtual_host", 0))
        return _client(redis.UnixDomainSocketConnection, path=url.path, **settings)
    settings.setdefault("db", _database_of(url))
    if kinds[0] == "sentinel":
        find: Any = _sentinels(url, options, timeout_s)
    elif kinds[-1] == "cluster":
        find = Shards(_addresses(url, 6379), timeout_s, {**settings, "ssl": tls}, key)
    else:
        host, port = _addresses(url, 6379)[0]
        return _client(redis.SSLConnection if tls else redis.Connection, host=host, port=port, **settings)
    return _client(FoundTlsConnection if tls else FoundConnection, find=find, **settings)


def _client(connection: Any, **settings: Any) -> redis.Redis:
    pool = redis.ConnectionPool(connection_class=connection, command_packer=packer(), **settings)
    return redis.Redis(connection_pool=pool)


def _sentinels(url: StoreUrl, options: Mapping[str, Any], timeout_s: float) -> Sentinels:
    own = {name: options[f"sentinel_{name}"] for name in ("username", "password") if f"sentinel_{name}" in options}
    settings = {**options.get("sentinel_kwargs", {}), **own}
    # Where they are the URL says.
    known = inspect.signature(redis.Redis).parameters.keys() - {"host", "port", "unix_socket_path", "connection_pool"}
    if unknown := next((name for name in settings if name not in known), None):
        near = difflib.get_close_matches(unknown, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise _refused(url, f"in sentinel_kwargs there is {unknown!r}, which redis-py does not know{hint}")
    others = options.get("min_other_sentinels", 0)
    return Sentinels(_addresses(url, 26379), timeout_s, settings, options["master_name"], others)


def _addresses(url: StoreUrl, port: int) -> list[Address]:
    return [(host or "localhost", own or port) for host, own in url.hosts or (("", None),)]


def _database_of(url: StoreUrl) -> int:
    try:
        return database(url.path.strip("/") or 0)
    except ValueError as exc:
        raise ConfigError(
            f"distsched_url {url.masked!r}: {exc}; write {url.scheme}://host:port/0, or another number for 0"
        ) from exc


def _check(url: StoreUrl, options: Mapping[str, Any], *, tls: bool) -> None:
    kinds = url.scheme.split("+")
    if kinds[-1] == "socket":
        if url.hosts or not url.path.strip("/"):
            raise _refused(url, f"names no socket: write {url.scheme}:///path/to/redis.sock?virtual_host=0")
    elif "virtual_host" in options:
        raise _refused(url, f"the option 'virtual_host' is for sockets: write {url.scheme}://host:port/0")
    if len(url.hosts) > 1 and kinds[0] != "sentinel" and kinds[-1] != "cluster":
        raise _refused(url, f"names {len(url.hosts)} hosts; {url.scheme}:// takes one")
    alien = next((name for name in options if name in SENTINEL_OPTIONS), None)
    if alien and kinds[0] != "sentinel":
        raise _refused(url, f"the option {alien!r} is of use with sentinel:// only")
    if kinds[0] == "sentinel" and not options.get("master_name"):
        raise _refused(url, "say which server the Sentinels are to be asked for: ?master_name=mymaster")
    alien = next((name for name in options if name in TLS_OPTIONS or name == "ssl"), None)
    if alien and not tls and kinds[0] != "sentinel":
        secure = url.scheme.replace("redis", "rediss", 1) if kinds[-1] != "socket" else "rediss"
        raise _refused(url, f"the option {alien!r} is of use with TLS only: write {secure}://")
    if kinds[-1] == "cluster" and (options.get("db") or url.path.strip("/") not in ("", "0")):
        raise _refused(url, "a Redis Cluster has only the database 0")


def _refused(url: StoreUrl, why: str) -> ConfigError:
    return ConfigError(f"distsched_url {url.masked!r}: {why}")
