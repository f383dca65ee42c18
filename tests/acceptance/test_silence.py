"""A broker or a store that takes connections and says nothing keeps no beat from ending, and costs no run."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

import pytest

from tests.acceptance.beat import Beat
from tests.acceptance.cluster import Cluster
from tests.acceptance.conftest import SERVERS
from tests.acceptance.queue import Queue
from tests.servers import RedisServer, Server
from tests.wire import Wire

Silent = Callable[[Cluster, Beat, Wire], None]

#: Seconds that a beat takes to end at most: half a one for handing over, half a one for the message under way, one for
#: its farewell, and some to go.
END_S = 3.0


@pytest.fixture(params=["waiting for an answer", "with something due while it hands over"])
def silent(request: pytest.FixtureRequest) -> Silent:
    """What freezes the wire of a beat and returns when the beat is to be ended."""

    def waiting(cluster: Cluster, beat: Beat, wire: Wire) -> None:
        cluster.wait_until_sending(beat)
        wire.freeze()
        # By then the beat waits for an answer.
        time.sleep(0.2)

    def due_soon(cluster: Cluster, beat: Beat, wire: Wire) -> None:
        time.sleep(1 - (time.time() + 0.1) % 1)
        wire.freeze()

    return waiting if request.param.startswith("waiting") else due_soon


def test_a_beat_ends_on_sigterm_while_the_broker_is_silent(
    store_url: Callable[[str], str],
    queue: Queue,
    redis_server: RedisServer,
    wire_to: Callable[[Server], Wire],
    silent: Silent,
) -> None:
    wire = wire_to(redis_server)
    through_wire = redis_server.url(port=wire.port, path="/9")
    with Cluster(store_url("sqlite"), queue, entries=60, broker=through_wire) as cluster:
        end_in_silence(cluster, wire, silent)


@pytest.mark.parametrize("scheme", [scheme for scheme, server in SERVERS.items() if server])
def test_a_beat_ends_on_sigterm_while_the_store_is_silent(
    scheme: str, queue: Queue, server_of: Callable[[str], Server], wire_to: Callable[[Server], Wire], silent: Silent
) -> None:
    server = server_of(scheme)
    wire = wire_to(server)
    with Cluster(server.url(scheme, port=wire.port), queue, entries=60, ttl_s=2.0) as cluster:
        end_in_silence(cluster, wire, silent)


def end_in_silence(cluster: Cluster, wire: Wire, silent: Silent) -> None:
    """End one of two beats behind a wire that has gone silent; what was under way on the wire never arrives."""
    leaving, _ = cluster.start(2)
    began = time.time()
    silent(cluster, leaving, wire)
    try:
        cluster.terminate(leaving, within_s=END_S)
    except subprocess.TimeoutExpired:
        cluster.kill(leaving)
    wire.cut()
    wire.mend()
    time.sleep(2)
    ended = time.time()
    cluster.settle(began, ended)
    sent, story = cluster.sent, cluster.story()
    assert not (lost := sent.lost(began, ended)), f"lost: {', '.join(map(str, lost))}{story}"
    assert not (confused := sent.confused()), f"task ids: {', '.join(map(str, confused))}{story}"
    assert leaving.exit_code == 0, f"it did not end in good order within {END_S:g} s{story}"
