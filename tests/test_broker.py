from __future__ import annotations

import pytest
from celery import Celery

from celery_distsched.broker import Broker


@pytest.mark.parametrize(
    "urls",
    [
        "redis://:p%40ss@localhost:1/0",
        "amqp://me:p%40ss@one//;amqp://me:other@two//",
        ["redis://localhost:1/0", "redis://me:p%40ss@localhost:2/0"],
    ],
    ids=str,
)
def test_what_a_broker_says_is_repeated_without_its_passwords(urls: str | list[str]) -> None:
    app = Celery(set_as_current=False, broker=urls)
    says = Broker(app, None, 1.0).says(OSError("unknown command 'AUTH' with p@ss, or p%40ss"))
    assert says == "unknown command 'AUTH' with **, or **"
