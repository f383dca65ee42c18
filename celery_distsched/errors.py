"""Everything that this package raises to its user; others of its exceptions never leave it.

DistschedError
├── ConfigError               wrong settings or entries; raised at start-up, never while ticking
│   └── DriverNotInstalled    the store's client library is missing; says the extra to install
└── StoreError
    ├── StoreUnavailable      transient: no answer, or not a clear one; tried again later
    └── LeaseLost             definite: the store says that this node is no longer a member
"""

from __future__ import annotations

import click


class DistschedError(Exception):
    """Root of this package's errors."""


class ConfigError(DistschedError, click.ClickException):
    """A setting, URL or entry that cannot work; the message says how to mend it.

    It is a click error too, so that ``celery beat`` prints the message and not a traceback.
    """


class DriverNotInstalled(ConfigError):
    """The store's client library is not installed."""


class StoreError(DistschedError):
    """The store did not do what was asked."""


class StoreUnavailable(StoreError):
    """No answer, or not a clear one: whether the call took effect is unknown."""


class LeaseLost(StoreError):
    """The membership is not in the store any more, and nothing of the call took effect."""
