"""What a Redis URL's query and ``distsched_driver_options`` may hold, spelled as redis-py and kombu spell it."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from typing import Any

from celery.utils.imports import symbol_by_name
from redis import CredentialProvider


def yes_or_no(value: bool | str) -> bool:
    """True or False, or a word for it."""
    text = str(value).lower()
    if text not in ("true", "yes", "1", "false", "no", "0"):
        raise ValueError(f"{value!r} is neither true nor false")
    return text in ("true", "yes", "1")


def database(value: int | str) -> int:
    """The number of a database."""
    if not str(value).isdecimal():
        raise ValueError(f"{value!r} is not the number of a database")
    return int(value)


def _count(value: int | str) -> int:
    if not str(value).isdecimal():
        raise ValueError(f"{value!r} is not a number of servers")
    return int(value)


def _certificate_rule(value: str | ssl.VerifyMode | None) -> str:
    name = value.name if isinstance(value, ssl.VerifyMode) else str(value)
    rule = name.lower().removeprefix("cert_")
    if rule not in ("none", "optional", "required"):
        raise ValueError(f"{value!r} is none of none, optional, required")
    return rule


def _tls_version(value: str | int) -> ssl.TLSVersion:
    try:
        return ssl.TLSVersion[value] if isinstance(value, str) else ssl.TLSVersion(value)
    except (KeyError, ValueError):
        raise ValueError(f"{value!r} is none of {', '.join(version.name for version in ssl.TLSVersion)}") from None


def _dict(value: Any) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise TypeError("a dict was expected, so it can stand in distsched_driver_options only")
    return dict(value)


def _numbers(value: Any) -> dict[int, int]:
    options = _dict(value)
    if not all(type(number) is int for pair in options.items() for number in pair):
        raise ValueError(f"{value!r} is not from numbers to numbers, such as {{socket.TCP_KEEPIDLE: 60}}")
    return options


def _credential_provider(value: Any) -> Any:
    try:
        provider = symbol_by_name(value)() if isinstance(value, str) else value
    except (ImportError, AttributeError) as exc:
        raise ValueError(f"{value!r} cannot be imported: {exc}") from exc
    if not isinstance(provider, CredentialProvider):
        raise TypeError("a redis.CredentialProvider was expected, or the name of such a class: 'package.module.Class'")
    return provider


#: Of use behind Sentinels only.
SENTINEL_OPTIONS: Mapping[str, Callable[[Any], Any]] = {
    "master_name": str,
    "min_other_sentinels": _count,
    "sentinel_kwargs": _dict,
    "sentinel_username": str,
    "sentinel_password": str,
}
#: Of use with TLS only.
TLS_OPTIONS: Mapping[str, Callable[[Any], Any]] = {
    "ssl_cert_reqs": _certificate_rule,
    "ssl_ca_certs": str,
    "ssl_ca_path": str,
    "ssl_ca_data": str,
    "ssl_certfile": str,
    "ssl_keyfile": str,
    "ssl_password": str,
    "ssl_check_hostname": yes_or_no,
    "ssl_min_version": _tls_version,
    "ssl_ciphers": str,
}
OPTIONS: Mapping[str, Callable[[Any], Any]] = {
    "db": database,
    "virtual_host": database,
    "username": str,
    "password": str,
    "credential_provider": _credential_provider,
    "client_name": str,
    "socket_keepalive": yes_or_no,
    "socket_keepalive_options": _numbers,
    "wait_replicas": _count,
    "ssl": yes_or_no,
    **TLS_OPTIONS,
    **SENTINEL_OPTIONS,
}
