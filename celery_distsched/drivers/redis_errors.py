"""What the errors of redis-py and Redis mean, and what to do about them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from redis import exceptions

from celery_distsched.drivers.parts import NONSENSE
from celery_distsched.drivers.secret import Secrets
from celery_distsched.drivers.url import StoreUrl
from celery_distsched.errors import StoreUnavailable

_LED_ASTRAY = (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.ReadOnlyError)
#: What calls end with that go wrong with the server or the network, and what its answers end with that are none.
FAILURES = (redis.RedisError, OSError, *NONSENSE)
#: redis-py has classes for these, which older ones used for its own Cluster client only.
_OF_CLUSTERS = ("MOVED ", "ASK ", "CLUSTERDOWN", "MASTERDOWN")


def led_astray(exc: Exception) -> bool:
    """Whether the other connections are of no use either, since they lead where this one led.

    Of one that had an answer which is none, the next may be the rest of that.
    """
    return isinstance(exc, (*_LED_ASTRAY, *NONSENSE)) or _of_cluster(exc)


def misread(exc: Exception) -> bool:
    """Whether an answer could not be taken apart: it is none, or we are wrong about what answers look like."""
    # What cannot be encoded is what we were given, such as a host's name.
    return isinstance(exc, NONSENSE) and not isinstance(exc, UnicodeError)


def _of_cluster(exc: Exception) -> bool:
    classes = (exceptions.AskError, exceptions.ClusterDownError, exceptions.MasterDownError)
    return isinstance(exc, classes) or (isinstance(exc, exceptions.ResponseError) and str(exc).startswith(_OF_CLUSTERS))


@contextmanager
def translated(url: StoreUrl, prefix: str, secrets: Secrets) -> Iterator[None]:
    """Turn what redis-py raises into `StoreUnavailable`, which says how to mend it where that is known.

    Args:
        url: The store.
        prefix: What all our keys begin with.
        secrets: Taken out of what the server said: one that does not know AUTH answers with what it was sent.
    """
    try:
        yield
    except FAILURES as exc:
        said = secrets.masked(f"{type(exc).__name__}: {exc}".rstrip("."))
        raise StoreUnavailable(f"{url.masked}: {said}{_mend(exc, url, prefix)}") from secrets.harmless(exc)


def listed(answer: Any) -> list[Any]:
    """Return an answer that is a list; raises `TypeError` where it is not."""
    if type(answer) is not list:
        raise TypeError(f"{answer!r:.100} is no list")
    return answer


def texts(answer: Any, count: int | None = None) -> list[Any]:
    """Return an answer that is a list of texts, or of nothing; raises `TypeError` or `ValueError` where it is not.

    Args:
        answer: The answer.
        count: How many there must be; None: any number.
    """
    if not all(text is None or isinstance(text, str) for text in listed(answer)):
        raise TypeError(f"{answer!r:.100} is no list of texts")
    if count is not None and len(answer) != count:
        raise ValueError(f"{len(answer)} texts for {count}")
    return list(answer)


def _mend(exc: Exception, url: StoreUrl, prefix: str) -> str:
    said = str(exc)
    tls = url.scheme.startswith("rediss")
    if isinstance(exc, exceptions.AuthenticationError):
        place = "/path/to/redis.sock" if url.scheme.endswith("socket") else "host:port/0"
        return f". Write the user and password that the server wants as {url.scheme}://user:password@{place}"
    if isinstance(exc, exceptions.NoPermissionError):
        return (
            f". This user must be allowed EVALSHA, EVAL and all reads and writes of the keys {prefix}*;"
            " the least that does is in docs/stores.md"
        )
    if isinstance(exc, exceptions.InvalidResponse) or misread(exc):
        return ". That is not how a Redis answers: is it another server, or one that wants TLS (rediss://)?"
    if _of_cluster(exc):
        if "cluster" in url.scheme:
            return ". The shard has moved or is away; the next attempt looks for it"
        return f". This is a Redis Cluster: write {'rediss' if tls else 'redis'}+cluster:// and some of its nodes"
    if "no Sentinel could say" in said:
        if "No such master" in said:
            return ". Write the name under which the Sentinels know it: ?master_name=…"
        if re.search("Authentication required|NOAUTH|WRONGPASS|invalid username-password", said):
            return '. The password of the Sentinels themselves is "sentinel_kwargs": {"password": …} in the options'
        return ""
    if "CERTIFICATE_VERIFY_FAILED" in said and "Hostname mismatch" not in said and "IP address mismatch" not in said:
        return ". Name the file of the authority that signed the server's certificate: ?ssl_ca_certs=/path/ca.pem"
    if "CERTIFICATE_REQUIRED" in said.upper():
        return ". Show the client's certificate: ?ssl_certfile=/path/cert.pem&ssl_keyfile=/path/key.pem"
    if isinstance(exc, exceptions.ConnectionError) and re.search("closed by|while (reading|writing)|EOF occ", said):
        if tls:
            return (
                ". If that goes on: does it ask for a client certificate"
                " (?ssl_certfile=/path/cert.pem&ssl_keyfile=/path/key.pem)?"
            )
        return ". If that goes on: is it another server, or one that wants TLS (rediss://)?"
    if isinstance(exc, exceptions.TimeoutError) and "connecting" in said and tls:
        # A Redis without TLS takes the greeting for the beginning of a command, and waits for the rest.
        return f". Does it speak TLS? If not, write {url.scheme.replace('rediss', 'redis', 1)}://"
    if "WRONGTYPE" in said:
        return (
            f". A key {prefix}* is not ours, or of the other Redis driver (redis+scan and redis+zset cannot share a "
            "namespace: let all nodes leave, then change it on all): delete it, or set another distsched_namespace"
        )
    return ""
