"""The ``distsched_*`` settings: read once from the app's configuration, checked, frozen."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from celery import Celery

from celery_distsched.drivers.url import StoreUrl, without_credentials, without_password
from celery_distsched.errors import ConfigError

_PREFIX = "distsched_"
#: A broker of one of these can hold the schedule too.
_REDIS_BROKERS = ("redis", "rediss", "redis+socket", "sentinel")
#: Beside a broker that lives on one host the store can be a file there.
_LOCAL_BROKERS = ("filesystem", "memory", "sqla+sqlite", "sqlalchemy+sqlite")
_LOCAL_STORE = "sqlite:///celerybeat-distsched.sqlite3"
#: For so long nobody takes over from a node that has died.
LONGEST_TTL_S = 3600.0
DELIVERIES = ("at_least_once", "at_most_once")
CATCH_UPS = ("latest", "all", "none")


@dataclass(frozen=True)
class Settings:
    """What the user chose; durations in seconds."""

    url: StoreUrl
    namespace: str = "celery"
    node_ttl: float = 5.0
    delivery: str = "at_least_once"
    catch_up: str = "latest"
    catch_up_window: float | None = None
    catch_up_limit: int = 1000
    entries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    fast_publish: bool = True
    driver_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    #: Why this store, where the user named none.
    url_reason: str | None = None

    @classmethod
    def of(cls, app: Celery) -> Settings:
        """Read the settings of an app; raises `ConfigError` naming the setting and the mend."""
        given = _given(app)
        unknown = sorted(given.keys() - _CHECKS.keys())
        if unknown:
            near = difflib.get_close_matches(unknown[0], _CHECKS, n=1)
            raise ConfigError(
                f"unknown setting {_PREFIX}{unknown[0]}"
                + (f"; did you mean {_PREFIX}{near[0]}?" if near else "")
                + f" (known: {', '.join(_PREFIX + name for name in _CHECKS)})"
            )
        values = {name: _checked(name, value) for name, value in given.items() if value is not None}
        values.setdefault("namespace", app.main if app.main and app.main != "__main__" else "celery")
        if "url" not in values:
            url, reason, options = _beside_the_broker(app)
            values.update(url=url, url_reason=reason)
            values["driver_options"] = {**options, **values.get("driver_options", {})}
        return cls(**values)

    @property
    def at_most_once(self) -> bool:
        """Whether a run that may have been sent is never sent again."""
        return self.delivery == "at_most_once"

    @property
    def hand_over_s(self) -> float:
        """Seconds between an instant and its sending that count as hand-over and not as a misfire."""
        return max(2 * self.node_ttl, 10.0)


def _given(app: Celery) -> dict[str, Any]:
    """Every ``distsched_*`` key of the configuration, however it is spelled there.

    With ``namespace="CELERY"`` (Django) the key is ``CELERY_DISTSCHED_URL``; modules with capitals are common too.
    """
    conf, given = app.conf, dict[str, Any]()
    prefix = (app.namespace or "").lower()
    prefix = f"{prefix.rstrip('_')}_" if prefix else ""
    for key in conf:
        name = str(key).lower().removeprefix(prefix)
        if name.startswith(_PREFIX):
            given.setdefault(name.removeprefix(_PREFIX), conf[key])
    return given


def _beside_the_broker(app: Celery) -> tuple[StoreUrl, str, dict[str, Any]]:
    """The store of a user who named none: URL, why, and driver options."""
    broker = app.conf.broker_write_url
    urls = (broker if isinstance(broker, str) else ";".join(broker or ())).split(";")
    first = urls[0]
    scheme = first.partition("://")[0].lower()
    if scheme in _REDIS_BROKERS:
        # All Sentinels know the same server; of other brokers that stand in for one another, one can hold the ledger.
        same = [url for url in urls if url.startswith("sentinel://")] if scheme == "sentinel" else [first]
        url = StoreUrl.parse(";".join(same))
        query = tuple((name, value) for name, value in url.query if _concerns_reaching(name, scheme, tls=True))
        if scheme == "redis" and (app.conf.broker_use_ssl or any(name.startswith("ssl_") for name, _ in query)):
            url = replace(url, scheme="rediss")
        url, options = replace(url, query=query), _redis_options(app, scheme)
        others = "" if scheme == "sentinel" or len(urls) == 1 else f", the first of {len(urls)}"
        return url, f"the broker's Redis{others}", options
    if scheme in _LOCAL_BROKERS:
        return (
            StoreUrl.parse(_LOCAL_STORE),
            f"a file in the working directory, since {scheme}:// is a broker of one host",
            {},
        )
    shown = without_password(first) if scheme else "none"
    raise ConfigError(
        f"distsched_url is not set, and the broker ({shown}) cannot hold the schedule. Choose a store that all beats"
        " reach, for example one of:\n"
        '    distsched_url = "redis://localhost:6379/0"\n'
        '    distsched_url = "etcd://localhost:2379"\n'
        '    distsched_url = "consul://localhost:8500"\n'
        '    distsched_url = "sqlite:///celerybeat-distsched.sqlite3"   # only if all beats run on one host'
    )


def _redis_options(app: Celery, scheme: str) -> dict[str, Any]:
    """How kombu reaches this broker beside what its URL says, as options of our driver."""
    given = app.conf.broker_transport_options or {}
    options = {name: given[name] for name in given if _concerns_reaching(name, scheme) and given[name] is not None}
    tls = app.conf.broker_use_ssl
    if tls and scheme != "redis+socket":
        options.update(tls if isinstance(tls, Mapping) else {"ssl": True} if scheme == "sentinel" else {})
    return options


def _concerns_reaching(option: str, scheme: str, *, tls: bool = False) -> bool:
    """Whether an option of kombu's says how to reach the server; the others say what kombu does with it."""
    if option in ("client_name", "credential_provider"):
        return True
    if scheme == "redis+socket":
        return option == "virtual_host"
    if option in ("master_name", "min_other_sentinels", "sentinel_kwargs"):
        return scheme == "sentinel"
    return option in ("socket_keepalive", "socket_keepalive_options") or (tls and option.startswith("ssl_"))


def _checked(name: str, value: Any) -> Any:
    try:
        return _CHECKS[name](value)
    except (TypeError, ValueError) as exc:
        secret = name == "driver_options" or (name == "url" and any(sign in str(value) for sign in "@=:"))
        shown = f"a {type(value).__name__}" if secret else repr(value)
        raise ConfigError(f"{_PREFIX}{name} is {shown}: {exc}") from exc


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a text was expected")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("it has a character that cannot be written down as UTF-8") from None
    return value


def seconds(value: Any) -> float:
    """A duration above zero."""
    number = _number(value)
    if number <= 0:
        raise ValueError("a number of seconds above 0 was expected")
    return number


def ttl(value: Any) -> float:
    """A duration above zero, and no longer than an hour."""
    number = seconds(value)
    if number > LONGEST_TTL_S:
        raise ValueError(f"{LONGEST_TTL_S:g} seconds at most were expected")
    return number


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError("a number of seconds was expected")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError("a number of seconds was expected, such as 5.0") from None
    if not math.isfinite(number):
        raise ValueError("a finite number of seconds was expected")
    return number


def not_negative(value: Any) -> float:
    """A duration of zero or more."""
    number = _number(value)
    if number < 0:
        raise ValueError("a number of seconds of 0 or more was expected")
    return number


def _count(value: Any) -> int:
    text = str(value)
    if not text.isdecimal() or int(text) < 1:
        raise ValueError("a whole number from 1 up was expected")
    return int(text)


def truth(value: Any) -> bool:
    """True or False, and nothing like them."""
    if not isinstance(value, bool):
        raise TypeError("True or False was expected")
    return value


def one_of(*choices: str) -> Callable[[Any], str]:
    """Accept one of these texts."""

    def check(value: Any) -> str:
        if value not in choices:
            near = difflib.get_close_matches(str(value), choices, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"{hint}one of {', '.join(map(repr, choices))} was expected")
        return str(value)

    return check


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError("a dict was expected")
    return value


def _options(value: Any) -> Mapping[str, Any]:
    if not_texts := [name for name in _mapping(value) if not isinstance(name, str)]:
        raise TypeError(f"names of options are texts, and {not_texts[0]!r} is none")
    return dict(value)


def _entries(value: Any) -> Mapping[str, Mapping[str, Any]]:
    for name, keys in _mapping(value).items():
        if not isinstance(keys, Mapping):
            raise TypeError(f"a dict was expected for the entry {name!r}, such as {{'catch_up': 'all'}}")
    return dict(value)


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "url": lambda value: StoreUrl.parse(_text(value)),
    "namespace": _text,
    "node_ttl": ttl,
    "delivery": one_of(*DELIVERIES),
    "catch_up": one_of(*CATCH_UPS),
    "catch_up_window": seconds,
    "catch_up_limit": _count,
    "entries": _entries,
    "fast_publish": truth,
    "driver_options": _options,
}


def broker_identity(app: Celery) -> str:
    """The broker without its credentials: what tells two clusters in one namespace apart."""
    broker = app.conf.broker_write_url
    urls = broker if isinstance(broker, str) else ";".join(broker or ())
    return ";".join(without_credentials(url) for url in urls.split(";"))
