"""What must never be shown, and how it is kept out of the errors of client libraries and servers."""

from __future__ import annotations

import re
import traceback
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from celery_distsched.drivers.url import StoreUrl

#: Fetched ones that are remembered: more than there are connections that may still be asked with one.
_FETCHED = 16
_NAMES = re.compile(r"pass(word|wd)?$|token|secret", re.IGNORECASE)


class Secrets:
    """The passwords and tokens of one driver, in every spelling in which a message may repeat them."""

    def __init__(self, url: StoreUrl, settings: Mapping[str, Any], *others: str | None) -> None:
        self._given = [url.password, *others, *_values(settings)]
        self._fetched: deque[str] = deque(maxlen=_FETCHED)
        self._texts = self._spelled()

    def learn(self, value: str | bytes) -> None:
        """Take in one that was fetched; those before it are forgotten in time, for tokens come and go."""
        # As the answers are decoded in which a server may repeat it.
        self._fetched.append(value if isinstance(value, str) else value.decode(errors="backslashreplace"))
        self._texts = self._spelled()

    def _spelled(self) -> list[str]:
        values = (*self._given, *self._fetched)
        spelled = {text for value in values if value for text in (value, quote(value), quote(value, safe=""))}
        # The longest first: one may be a part of another.
        return sorted({*spelled, *(repr(text)[1:-1] for text in spelled)}, key=len, reverse=True)

    def masked(self, text: str) -> str:
        """Return the text with every secret replaced."""
        for secret in self._texts:
            text = text.replace(secret, "**")
        return text

    def harmless(self, exc: BaseException) -> BaseException | None:
        """Return the exception to `raise` from: this one, or None where it or what led to it shows a secret."""
        shown = "".join(traceback.format_exception(exc))
        return exc if shown == self.masked(shown) else None


def _values(settings: Mapping[str, Any]) -> Iterator[str]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _values(value)
        elif isinstance(value, str) and _NAMES.search(name):
            yield value
