"""The address of a store, taken apart once, and never shown with its secrets."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from celery_distsched.errors import ConfigError

_MASK = "**"
#: Query options whose values are secrets.
SECRET_OPTIONS = frozenset({"token", "password", "ssl_password", "sentinel_password"})


@dataclass(frozen=True)
class StoreUrl:
    """``scheme://user:password@host:port,host:port/path?option=value``."""

    scheme: str
    hosts: tuple[tuple[str, int | None], ...] = ()
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    path: str = ""
    query: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @classmethod
    def parse(cls, text: str) -> StoreUrl:
        """Take a URL apart; raises `ConfigError` where it is none."""
        scheme, separator, rest = text.partition("://")
        if not separator or not scheme:
            raise ConfigError(
                f"distsched_url {_masked_text(text)!r} is not a URL: expected something like 'redis://localhost:6379/0'"
            )
        # urlsplit knows one host only; the others are cut off before and put back after.
        split = urlsplit(f"//{rest}")
        credentials, at, places = split.netloc.rpartition("@")
        username, colon, password = credentials.partition(":")
        return cls(
            scheme=scheme.lower(),
            hosts=tuple(
                _host_and_port(place, text, bool(at) or "@" not in text) for place in places.split(",") if place
            ),
            username=unquote(username) if at and username else None,
            password=unquote(password) if colon else None,
            path=unquote(split.path),
            query=tuple(parse_qsl(split.query, keep_blank_values=True)),
        )

    @property
    def masked(self) -> str:
        """The URL with every secret replaced, for logs and messages."""
        credentials = ""
        if self.username or self.password is not None:
            credentials = (self.username or "") + (f":{_MASK}" if self.password is not None else "") + "@"
        places = ",".join(_place(host, port) for host, port in self.hosts)
        query = "&".join(f"{key}={_MASK if key in SECRET_OPTIONS else value}" for key, value in self.query)
        return f"{self.scheme}://{credentials}{places}{self.path}" + (f"?{query}" if query else "")

    __str__ = masked.fget  # type: ignore[attr-defined]


def _place(host: str, port: int | None) -> str:
    shown = f"[{host}]" if ":" in host else host
    return shown if port is None else f"{shown}:{port}"


def _host_and_port(place: str, text: str, whole: bool) -> tuple[str, int | None]:
    host, colon, port = place.rpartition(":")
    if not colon or place.endswith("]"):
        return place.strip("[]"), None
    if not port.isdigit() or not 0 < int(port) < 65536:
        # With a '/', '?' or '#' in a password, what looks like the port is the password's beginning.
        shown = repr(port) if whole else "what stands there"
        raise ConfigError(
            f"distsched_url {_masked_text(text)!r}: {shown} is not a port; a number from 1 to 65535 was expected"
            " (a '/', '@' or ':' inside a password must be percent-encoded)"
        )
    return host.strip("[]"), int(port)


def _masked_text(text: str) -> str:
    """Mask a URL that could not be taken apart: nothing before the last @, and nothing after a ?, is safe to show."""
    scheme, separator, rest = text.partition("://") if "://" in text else ("", "", text)
    _, at, places = rest.rpartition("@")
    return f"{scheme}{separator}{_MASK}@{places.partition('?')[0]}" if at else text.partition("?")[0]
