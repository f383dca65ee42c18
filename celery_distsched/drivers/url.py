"""The address of a store, taken apart once, and never shown with its secrets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from celery_distsched.errors import ConfigError

_MASK = "**"
#: A colon and what cannot be a port, but for the parts of an address in brackets.
_NO_PORT = re.compile(r":(?![\d/,;]*(?:[/,;]|$))(?![^\[]*\])[^/,;]*")
#: Query options whose values may be shown; any other, a misspelt one for example, could be a secret.
_SHOWN = frozenset(
    (
        *("ca", "cert", "key", "verify", "dc", "db", "virtual_host", "username", "client_name", "socket_keepalive"),
        *("ssl", "ssl_ca_certs", "ssl_ca_path", "ssl_cert_reqs", "ssl_certfile", "ssl_check_hostname", "ssl_keyfile"),
        *("master_name", "min_other_sentinels", "sentinel_username", "wait_replicas"),
    )
)


@dataclass(frozen=True, repr=False)
class StoreUrl:
    """``scheme://user:password@host:port,host:port/path?option=value``.

    Several hosts may be written as kombu has them too: ``scheme://host:port;scheme://host:port``. User and password,
    path and options are then those of the first that has any.
    """

    scheme: str
    hosts: tuple[tuple[str, int | None], ...] = ()
    username: str | None = None
    password: str | None = None
    path: str = ""
    query: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> StoreUrl:
        """Take a URL apart; raises `ConfigError` where it is none."""
        urls = [_one(part, text) for part in re.split(r";(?=[\w+.-]+://)", text)]
        if len(schemes := dict.fromkeys(url.scheme for url in urls)) > 1:
            raise ConfigError(f"distsched_url {_masked_text(text)!r} mixes stores: {', '.join(schemes)}; write one")
        asked = next((url for url in urls if url.username or url.password is not None), urls[0])
        return cls(
            scheme=urls[0].scheme,
            hosts=tuple(host for url in urls for host in url.hosts),
            username=asked.username,
            password=asked.password,
            path=next((url.path for url in urls if url.path.strip("/")), urls[0].path),
            query=next((url.query for url in urls if url.query), ()),
        )

    @property
    def masked(self) -> str:
        """The URL with every secret replaced, for logs and messages."""
        credentials = ""
        if self.password is not None:
            credentials = f"{self.username or ''}:{_MASK}@"
        elif self.username:
            # Alone it may well be a password whose colon was forgotten.
            credentials = f"{_MASK}@"
        places = ",".join(_place(host, port) for host, port in self.hosts)
        query = "&".join(f"{key}={value if key in _SHOWN else _MASK}" for key, value in self.query)
        return f"{self.scheme}://{credentials}{places}{self.path}" + (f"?{query}" if query else "")

    def __str__(self) -> str:
        return self.masked

    def __repr__(self) -> str:
        return f"<StoreUrl {self.masked}>"


def without_credentials(url: str) -> str:
    """Return scheme, hosts and path of any URL, even of one that cannot be taken apart."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2].partition('?')[0]}" if separator else ""


def without_password(url: str) -> str:
    """Return the same, and the user where there is a password."""
    user, colon, _ = url.partition("://")[2].rpartition("@")[0].partition(":")
    return without_credentials(url).replace("://", f"://{user}:{_MASK}@" if colon else "://", 1)


def _one(part: str, text: str) -> StoreUrl:
    scheme, separator, rest = part.partition("://")
    if not separator or not scheme:
        raise ConfigError(
            f"distsched_url {_masked_text(text)!r} is not a URL: expected something like 'redis://localhost:6379/0'"
        )
    split: SplitResult | None
    query: tuple[tuple[str, str], ...] | None
    try:
        # urlsplit knows one host only; the others are cut off before and put back after.
        split = urlsplit(f"//{rest}")
        query = tuple(parse_qsl(split.query, keep_blank_values=True, strict_parsing=bool(split.query)))
    except ValueError:
        split = query = None
    if split is None or query is None or _looks_cut_short(split):
        # Not `from` the error, which would show what it could not read.
        raise ConfigError(
            f"distsched_url {_masked_text(text)!r} cannot be taken apart: a '/', '?', '#', '@' or '[' inside a user,"
            " password or option must be percent-encoded"
        )
    credentials, at, places = split.netloc.rpartition("@")
    username, colon, password = credentials.partition(":")
    return StoreUrl(
        scheme=scheme.lower(),
        hosts=tuple(_host_and_port(place, text, bool(at) or "@" not in text) for place in places.split(",") if place),
        username=unquote(username) if at and username else None,
        password=unquote(password) if colon else None,
        path=unquote(split.path),
        query=query,
    )


def _looks_cut_short(split: SplitResult) -> bool:
    """Whether a separator inside a password has made its beginning look like a host, as in ``//user:12#34@host``."""
    return bool(split.fragment or (split.netloc and "@" in split.path + split.query))


def _place(host: str, port: int | None) -> str:
    shown = f"[{host}]" if ":" in host else host
    return shown if port is None else f"{shown}:{port}"


def _host_and_port(place: str, text: str, whole: bool) -> tuple[str, int | None]:
    host, colon, port = place.rpartition(":")
    if not colon or place.endswith("]"):
        return _host(place, text), None
    if not port.isdigit() or not 0 < int(port) < 65536:
        # With a '/', '?' or '#' in a password, or without the host, what looks like the port is of the password.
        shown = repr(port) if port.isdigit() or ("@" in text and whole) else "what stands there"
        raise ConfigError(
            f"distsched_url {_masked_text(text)!r}: {shown} is not a port; a number from 1 to 65535 was expected"
            " (a '/', '@' or ':' inside a password must be percent-encoded, and behind it stands @host)"
        )
    return _host(host, text), int(port)


def _host(shown: str, text: str) -> str:
    host = shown.strip("[]")
    if ":" in host and not shown.startswith("["):
        raise ConfigError(
            f"distsched_url {_masked_text(text)!r}: an IPv6 address stands in brackets, as in redis://[::1]:6379/0"
        )
    # Looking up any other fails with an error that says nothing of the URL.
    if any(not 0 < len(label) < 64 for label in host.removesuffix(".").split(".")):
        raise ConfigError(f"distsched_url {_masked_text(text)!r}: what stands there for a host cannot be a host's name")
    return host


def _masked_text(text: str) -> str:
    """Mask a URL that could not be taken apart: nothing before the last @, and nothing after a ?, is safe to show."""
    scheme, separator, rest = text.partition("://") if "://" in text else ("", "", text)
    _, at, places = rest.rpartition("@")
    if at:
        return f"{scheme}{separator}{_MASK}@{places.partition('?')[0]}"
    # A user and password whose host was forgotten look like a host and its port.
    return f"{scheme}{separator}{_NO_PORT.sub(f':{_MASK}', rest.partition('?')[0])}"
