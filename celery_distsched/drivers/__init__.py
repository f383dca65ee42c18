"""From a URL's scheme to the driver of that store, imported only when it is used."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from celery_distsched.drivers.base import Answer, Driver, Member, Swap
from celery_distsched.drivers.url import StoreUrl
from celery_distsched.errors import ConfigError, DriverNotInstalled

__all__ = ["Answer", "Driver", "Member", "StoreUrl", "Swap", "driver_class", "open_driver"]

GROUP = "celery_distsched.drivers"
#: How the schemes of stores begin, and what must follow celery-distsched in brackets for them.
_EXTRAS = {"redis": "redis", "sentinel": "redis", "etcd": "etcd", "consul": "consul"}


@cache
def _known() -> dict[str, EntryPoint]:
    # Reads the metadata of every package that is installed.
    return {point.name: point for point in entry_points(group=GROUP)}


def driver_class(scheme: str) -> type[Driver]:
    """Return the driver of this URL scheme; raises `ConfigError` naming those that there are."""
    known = _known()
    if scheme not in known:
        near = difflib.get_close_matches(scheme, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"distsched_url: no store is known by the scheme {scheme!r}; {hint}Known are {', '.join(sorted(known))}"
        )
    try:
        driver: type[Driver] = known[scheme].load()
    except ImportError as exc:
        raise _not_installed(scheme, exc) from exc
    return driver


def open_driver(url: StoreUrl, *, namespace: str, ttl_s: float, timeout_s: float, options: Mapping[str, Any]) -> Driver:
    """Make the driver for this URL, its options checked and converted. Does no I/O."""
    driver = driver_class(url.scheme)
    settings: dict[str, Any] = {}
    for name, value in [*url.query, *options.items()]:
        if name not in driver.options:
            near = difflib.get_close_matches(name, driver.options, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            known = ", ".join(sorted(driver.options)) or "none"
            raise ConfigError(f"{url.scheme}:// has no option {name!r}{hint} (its options: {known})")
        try:
            settings[name] = driver.options[name](value)
        except (ValueError, TypeError) as exc:
            raise ConfigError(f"{url.scheme}:// option {name!r}: {exc}") from exc
    if ttl_s < driver.min_ttl_s:
        raise ConfigError(
            f"distsched_node_ttl ({ttl_s:g} s) is below what {url.scheme}:// honours ({driver.min_ttl_s:g} s): "
            f"the store would keep a dead node longer than you asked; set it to {driver.min_ttl_s:g} or more"
        )
    try:
        return driver(url, namespace=namespace, ttl_s=ttl_s, timeout_s=timeout_s, options=settings)
    except ImportError as exc:
        raise _not_installed(url.scheme, exc) from exc


def _not_installed(scheme: str, exc: ImportError) -> DriverNotInstalled:
    extra = next((extra for begin, extra in _EXTRAS.items() if scheme.startswith(begin)), None)
    mend = f'pip install "celery-distsched[{extra}]"' if extra else f"install {exc.name or 'it'}"
    what = "is not installed" if isinstance(exc, ModuleNotFoundError) else f"cannot be imported ({exc})"
    return DriverNotInstalled(f"the client library for {scheme}:// {what}: {mend}")
