"""Where no run may come twice, a crash may cost runs; each of them is reported."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from celery_distsched.clock import iso
from tests.acceptance.cluster import Cluster
from tests.acceptance.conftest import SERVERS
from tests.acceptance.queue import Queue
from tests.figures import Figure

TTL_S = 2.0


@pytest.mark.parametrize("scheme", SERVERS)
def test_a_kill_doubles_nothing_and_what_it_loses_is_reported(
    store_url: Callable[[str], str], queue: Queue, scheme: str, figure: Figure
) -> None:
    with Cluster(store_url(scheme), queue, entries=60, ttl_s=TTL_S, delivery="at_most_once") as cluster:
        victims = cluster.start(2)
        began = time.time()
        for victim in victims:
            cluster.wait_until_sending(victim)
            cluster.kill(victim)
            cluster.start()
        time.sleep(TTL_S + 1.5)
        ended = time.time()
        sent = cluster.sent
        said = cluster.story()
    assert not sent.doubled(), f"{sent.doubled()}{said}"
    assert not sent.confused(), f"{sent.confused()}{said}"
    assert not sent.strays(), f"{sent.strays()}{said}"
    lost = sent.lost(began, ended - 1)
    unreported = [
        str(occurrence)
        for occurrence in lost
        if f"entry {occurrence.entry!r}, instant {iso(occurrence.instant_us)}: possibly lost" not in said
    ]
    assert not unreported, f"lost without a word: {', '.join(unreported)}{said}"
    what = f"runs sent twice; {len(victims)} beats killed in the middle of their sending"
    figure.runs("at most once", scheme, len(sent.doubled()), len(sent.messages), what)
    if lost:
        figure.runs("at most once", scheme, len(unreported), len(lost), "lost runs without a report")
