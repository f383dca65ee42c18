"""Where no run may come twice, a crash may cost runs; each of them is reported."""

from __future__ import annotations

import time
from collections.abc import Callable

from celery_distsched.clock import iso
from tests.acceptance.cluster import Cluster
from tests.acceptance.queue import Queue

TTL_S = 2.0


def test_a_kill_doubles_nothing_and_what_it_loses_is_reported(store_url: Callable[[str], str], queue: Queue) -> None:
    with Cluster(store_url("redis+zset"), queue, entries=60, ttl_s=TTL_S, delivery="at_most_once") as cluster:
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
    unreported = [
        str(occurrence)
        for occurrence in sent.lost(began, ended - 1)
        if f"entry {occurrence.entry!r}, instant {iso(occurrence.instant_us)}: possibly lost" not in said
    ]
    assert not unreported, f"lost without a word: {', '.join(unreported)}{said}"
