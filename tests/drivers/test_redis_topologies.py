"""Redis at a socket, behind Sentinels, in a Cluster, with replicas, and for a user with no more rights than needed."""
# ruff: noqa: F811  (fixtures are imported by their names)

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from kombu.connection import Connection
from redis.crc import key_slot

from celery_distsched.drivers import Answer, Driver, Swap, open_driver
from celery_distsched.errors import LeaseLost, StoreUnavailable
from celery_distsched.settings import Settings
from tests.drivers.redis_nodes import Open, answers, namespace, opened, said, until  # noqa: F401
from tests.servers import RedisCluster, RedisServer, Server, WatchedRedis, free_port, replica_of
from tests.wire import Wire

_DOCS = Path(__file__).resolve().parents[2] / "docs" / "stores.md"
SENTINELS = {"master_name": "mymaster", "sentinel_kwargs": {"password": "of-sentinels"}}


def _works(node: Driver) -> None:
    """Try every method once."""
    node.join("me", "joined")
    node.renew("me", "renewed")
    assert node.members()["me"].info == "renewed"
    assert node.swap([Swap("entry", None, "1")], fence="me") == [Answer(True, "1")]
    assert node.swap([Swap("entry", None, "1")]) == [Answer(False, "1")]
    assert node.read(["entry", "none"]) == ["1", None]
    node.remove("me")
    with pytest.raises(LeaseLost):
        node.swap([Swap("entry", "1", "2")], fence="me")


# A socket


@pytest.mark.parametrize("scheme", ["redis+socket", "redis+scan+socket"])
def test_a_socket_is_spelled_as_kombu_spells_it(opened: Open, scheme: str) -> None:
    with RedisServer("--unixsocket", "redis.sock", password="in-the-url") as server:
        path = server.data / "redis.sock"
        url = f"{scheme}://:in-the-url@{path}?virtual_host=3"
        _works(opened(url, socket_keepalive=True))
        with redis.Redis(port=server.port, password="in-the-url", db=3) as client:
            assert client.dbsize() > 0
        # The very URL is a broker's too, which is why it may be the default store.
        with Connection(url.replace("+scan", "")) as broker:  # type: ignore[no-untyped-call]
            assert broker.default_channel.client.connection_pool.connection_kwargs["db"] == 3
            broker.default_channel.client.ping()
        assert "user:password@" in said(opened(f"{scheme}://:wr0ng@{path}").members)


# Who may do what


def _rights_in_the_docs(namespace: str, name: str) -> str:
    """Return the ACL that docs/stores.md gives, for this namespace, its password aside."""
    found = re.search(rf"^ACL SETUSER {name} (.*?)\n```", _DOCS.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1].replace("\\\n", " ").replace("{shop}", f"{{{namespace}}}")


@pytest.mark.parametrize("scheme", ["redis+zset", "redis+scan"])
def test_the_rights_in_the_docs_are_enough_and_none_is_needless(
    opened: Open, redis_server: RedisServer, namespace: str, scheme: str
) -> None:
    rights = _rights_in_the_docs(namespace, scheme.replace("+", "_")).split()
    with redis.Redis(port=redis_server.port) as admin:

        def allow(rights: list[str]) -> None:
            admin.execute_command("ACL", "SETUSER", scheme, "reset", "on", ">pass:word", *rights)

        node = opened(f"{scheme}://{scheme.replace('+', '%2B')}:pass%3Aword@127.0.0.1:{redis_server.port}")

        def works() -> None:
            _works(node)
            node.server()  # type: ignore[attr-defined]

        try:
            allow(rights)
            works()
            with redis.Redis(port=redis_server.port, username=scheme, password="pass:word") as user:
                for command in (
                    lambda: user.get("other"),
                    lambda: user.delete("distsched:{other}:ledger"),
                    user.flushall,
                ):
                    with pytest.raises(redis.exceptions.NoPermissionError):
                        command()
            for needed in [right for right in rights if right.startswith("+")]:
                allow([right for right in rights if right != needed])
                admin.script_flush()
                admin.delete(f"distsched:{{{namespace}}}:ledger")
                try:
                    works()
                except StoreUnavailable:
                    continue
                pytest.fail(f"{needed} is not needed")
        finally:
            admin.acl_deluser(scheme)


def _user(server: RedisServer, namespace: str, *more: str) -> str:
    """Make a user with the least rights and these, and return its credentials."""
    with redis.Redis(port=server.port) as admin:
        rights = _rights_in_the_docs(namespace, "redis_zset").split()
        admin.execute_command("ACL", "SETUSER", "least", "reset", "on", ">pass", *rights, *more)
    return "least:pass@"


def test_another_database_and_a_name_for_the_client_need_the_rights_that_the_docs_say(
    opened: Open, namespace: str
) -> None:
    with RedisServer() as server:
        for more, works in (
            (("+select",), False),
            (("+client|setname",), False),
            (("+select", "+client|setname"), True),
        ):
            user = _user(server, namespace, *more)
            node = opened(f"redis://{user}127.0.0.1:{server.port}/3?client_name=shop")
            _works(node) if works else said(node.members)


def test_a_user_may_come_from_a_credential_provider(opened: Open, redis_server: RedisServer) -> None:
    class Provider(redis.CredentialProvider):
        def get_credentials(self) -> tuple[str, str]:
            return "fetched", "from-elsewhere"

    with redis.Redis(port=redis_server.port) as admin:
        admin.acl_setuser("fetched", enabled=True, passwords=["+from-elsewhere"], categories=["+@all"], keys=["*"])
        try:
            _works(opened(redis_server.url(), credential_provider=Provider()))
        finally:
            admin.acl_deluser("fetched")


def test_a_credential_provider_that_fails_is_an_outage_and_leaves_no_connection_half_made(
    opened: Open, redis_server: RedisServer
) -> None:
    class Provider(redis.CredentialProvider):
        fails = True

        def get_credentials(self) -> tuple[str, str]:
            if self.fails:
                raise RuntimeError("the token hunter2 has expired")
            return "default", "any"

    # Without a password the default user may do anything, in any database.
    provider = Provider()
    node = opened(f"redis://127.0.0.1:{redis_server.port}/3", credential_provider=provider)
    for _ in range(2):
        assert "hunter2" not in (told := said(node.members))
        assert "the credential_provider raised RuntimeError" in told
    provider.fails = False
    node.join("me", "joined")
    with redis.Redis(port=redis_server.port, db=3) as third, redis.Redis(port=redis_server.port, db=0) as first:
        prefix = f"{node._prefix}*"  # type: ignore[attr-defined]
        assert third.keys(prefix)
        assert not first.keys(prefix)


@pytest.mark.parametrize("returned", [None, (), "hunter2", (None, "hunter2"), ("default", "any", "hunter2")])
def test_a_credential_provider_that_returns_no_credentials_is_an_outage(
    opened: Open, redis_server: RedisServer, returned: Any
) -> None:
    class Provider(redis.CredentialProvider):
        def get_credentials(self) -> Any:
            return returned

    node = opened(f"redis://127.0.0.1:{redis_server.port}/3", credential_provider=Provider())
    for _ in range(3):
        assert "hunter2" not in (told := said(node.join, "me", "joined"))
        assert "neither (password,) nor (user, password)" in told
    with redis.Redis(port=redis_server.port, db=0) as first:
        assert not first.keys(f"{node._prefix}*")  # type: ignore[attr-defined]


# Sentinels


def test_whoever_the_sentinels_name_is_the_store_and_a_failover_costs_seconds(opened: Open) -> None:
    with WatchedRedis() as servers:
        nodes = [opened(servers.url(scheme), timeout_s=1.0, **SENTINELS) for scheme in ("sentinel", "sentinel+scan")]
        zset, scan = nodes
        zset.join("me", "info")
        zset.swap([Swap("entry", None, "1")], fence="me")
        with redis.Redis(port=servers.primary.port, password=servers.primary.password) as primary:
            assert primary.wait(1, 5000) == 1
        servers.sentinels[0].freeze()
        servers.primary.kill()
        assert re.search("ConnectionError|TimeoutError", said(zset.members))
        assert list(answers(zset.members, within_s=15)) == ["me"]
        joined_anew(zset)
        assert zset.swap([Swap("entry", "1", "2")], fence="me") == [Answer(True, "2")]
        assert answers(lambda: scan.read(["entry"]), within_s=2) == ["2"]
        # The old one comes back, and is told to follow.
        servers.primary.start()
        with redis.Redis(port=servers.primary.port, password=servers.primary.password) as old:
            answers(lambda: old.info("replication"), within_s=1)
        assert zset.swap([Swap("entry", "2", "3")], fence="me") == [Answer(True, "3")]
        servers.sentinels[0].thaw()


def test_what_a_server_wrote_that_is_none_any_more_is_not_taken_for_the_stores(
    opened: Open, watched_redis: WatchedRedis
) -> None:
    node = opened(watched_redis.url(), timeout_s=1.0, **SENTINELS)
    node.join("me", "info")
    with redis.Redis(port=watched_redis.primary.port, password=watched_redis.primary.password) as primary:
        try:
            primary.replicaof(watched_redis.replica.host, watched_redis.replica.port)
            assert "read only replica" in said(node.swap, [Swap("entry", None, "1")], "me")
        finally:
            primary.replicaof("NO", "ONE")
    assert answers(lambda: node.read(["entry"]), within_s=15) == [None]


def test_what_is_wrong_with_sentinels_is_said_with_its_mend(opened: Open, watched_redis: WatchedRedis) -> None:
    url, others = watched_redis.url(), {**SENTINELS, "min_other_sentinels": 2}
    assert opened(url, **others).members() == {}
    assert opened(url, master_name="mymaster", sentinel_password="of-sentinels").members() == {}
    for options, text in (
        ({**SENTINELS, "master_name": "another"}, r"No such master.*\?master_name="),
        ({**SENTINELS, "min_other_sentinels": 3}, "it sees 2 other Sentinels"),
        ({"master_name": "mymaster"}, r'"sentinel_kwargs": \{"password"'),
        ({"master_name": "mymaster", "sentinel_password": "wr0ng"}, r'"sentinel_kwargs": \{"password"'),
    ):
        error = said(opened(url, **options).members)
        assert re.search(text, error), error
        assert "wr0ng" not in error
        assert "in-the-url" not in error


def test_a_broker_behind_sentinels_is_the_default_store(watched_redis: WatchedRedis) -> None:
    app = Celery("shop", broker=watched_redis.url(), set_as_current=False)
    app.conf.broker_transport_options = {**SENTINELS, "visibility_timeout": 3600}
    settings = Settings.of(app)
    assert settings.url_reason == "the broker's Redis"
    driver = open_driver(
        settings.url, namespace=uuid.uuid4().hex, ttl_s=5.0, timeout_s=1.0, options=settings.driver_options
    )
    with closing(driver), app.connection_for_write() as broker:
        _works(driver)
        # Told apart by what they say of themselves, not by how they are spelled.
        server = broker.default_channel.client.info("server")["run_id"]
        assert driver.server() == (server, 0)  # type: ignore[attr-defined]


# A Cluster


@pytest.mark.parametrize("scheme", ["redis+cluster", "redis+scan+cluster"])
def test_all_keys_of_a_namespace_lie_in_one_shard_wherever_it_moves(
    opened: Open, redis_cluster: RedisCluster, scheme: str
) -> None:
    cluster, node = redis_cluster, opened(redis_cluster.url(scheme), timeout_s=1.0)
    node.join("me", "info")
    node.swap([Swap("entry", None, "1")], fence="me")
    assert node.server()[0] == "a cluster"  # type: ignore[attr-defined]
    key = node._ledger  # type: ignore[attr-defined]
    slot, (old, new) = cluster.slot_of(key), cluster.holder_and_another(key)
    cluster.move(slot, old, new)
    assert "next attempt looks for it" in said(node.swap, [Swap("entry", "1", "2")], "me")
    joined_anew(node)
    assert node.swap([Swap("entry", "1", "2")], fence="me") == [Answer(True, "2")]
    assert set(node.members()) == {"me"}
    cluster.move(slot, new, old)


def test_a_cluster_that_is_taken_for_one_server_says_what_to_write(opened: Open, redis_cluster: RedisCluster) -> None:
    key = opened(redis_cluster.url())._ledger  # type: ignore[attr-defined]
    _, stranger = redis_cluster.holder_and_another(key)
    assert "write redis+cluster://" in said(opened(stranger.url()).join, "me", "info")


def test_a_node_that_leads_astray_is_not_asked_first_for_ever(opened: Open) -> None:
    alone = [RedisServer("--cluster-enabled", "yes", "--cluster-port", str(free_port())) for _ in range(2)]
    with alone[0] as ill, alone[1] as well:
        for server in (ill, well):
            with redis.Redis(port=server.port, decode_responses=True) as client:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
                until(partial(_is_in_state, client, "ok"), within_s=30)
        node = opened(f"redis+cluster://{ill.host}:{ill.port},{well.host}:{well.port}", timeout_s=1.0)
        node.join("me", "info")
        with redis.Redis(port=ill.port, decode_responses=True) as client:
            # Knows still where our keys are, and takes no writes, for a slot that nobody holds.
            key: str = node._ledger  # type: ignore[attr-defined]
            client.execute_command("CLUSTER", "DELSLOTS", 0 if key_slot(key.encode()) else 1)
            until(partial(_is_in_state, client, "fail"), within_s=30)
        answers(lambda: node.join("me", "info"), within_s=5)


def _is_in_state(node: redis.Redis, state: str) -> bool:
    return bool(node.cluster("INFO")["cluster_state"] == state)


def test_a_user_of_a_cluster_needs_the_right_that_the_docs_say(opened: Open, namespace: str) -> None:
    with RedisCluster("any") as cluster:
        for more in ((), ("+cluster|slots",)):
            for server in cluster.shards:
                user = _user(server, namespace, *more)
            node = opened(cluster.url().replace("://", f"://{user}"))
            _works(node) if more else said(node.members)


def test_a_shard_that_dies_is_replaced_by_its_replica(opened: Open, namespace: str) -> None:
    with RedisCluster(f"distsched:{{{namespace}}}:ledger") as cluster:
        node = opened(cluster.url(), timeout_s=1.0)
        node.join("me", "info")
        node.swap([Swap("entry", None, "1")], fence="me")
        with cluster.client(cluster.holder) as holder:
            assert holder.execute_command("WAIT", 1, 5000) == 1
        cluster.holder.kill()
        said(node.members)
        assert list(answers(node.members, within_s=15)) == ["me"]
        joined_anew(node)
        assert node.swap([Swap("entry", "1", "2")], fence="me") == [Answer(True, "2")]


def joined_anew(node: Driver) -> None:
    """Another server may have an old copy of the data: nothing is done there on the strength of a join elsewhere."""
    before = node.incarnation
    for call in (lambda: node.swap([Swap("entry", "1", "x")], fence="me"), lambda: node.renew("me", "info")):
        with pytest.raises(LeaseLost):
            call()
    node.join("me", "info")
    assert node.incarnation not in ("", before)


# Replicas


@pytest.fixture
def replicated(wire_to: Callable[[Server], Wire]) -> Iterator[tuple[RedisServer, RedisServer, Wire]]:
    """A primary, its replica, and the wire between them."""
    with RedisServer("--repl-diskless-sync-delay", "0") as primary:
        wire = wire_to(primary)
        with replica_of(primary, port=wire.port) as replica, redis.Redis(port=primary.port) as client:
            # Until one of its writes has come through: a WAIT for nothing is answered at once.
            while client.set("warm", "up") and client.wait(1, 200) == 0:
                pass
            yield primary, replica, wire


def test_what_so_many_replicas_do_not_have_is_not_taken_for_done(
    opened: Open, replicated: tuple[RedisServer, RedisServer, Wire]
) -> None:
    primary, replica, wire = replicated
    node, heedless = opened(f"{primary.url()}?wait_replicas=1", timeout_s=0.5), opened(primary.url())
    node.join("me", "info")
    batch = [Swap("entry", None, "mine"), Swap("other", "nothing", "mine")]
    first = [Swap("first", None, "1")]
    assert node.swap(first, fence="me") == [Answer(True, "1")]
    assert opened(replica.url()).read(["first"]) == ["1"]
    wire.freeze()
    assert heedless.swap([Swap("heedless", None, "1")]) == [Answer(True, "1")]
    # Repeated, over the same connection and over a new one, it is as undecided as before.
    for again in (False, True, True):
        if again:
            node.close()
        assert "0 replicas have what was written, and wait_replicas asks for 1" in said(node.swap, batch, "me")
    # It is by its renewals that a node learns of an outage, and tells of it.
    assert "0 replicas have what was written" in said(node.renew, "me", "info")
    assert opened(replica.url()).read(["entry"]) == [None]
    wire.mend()
    assert answers(lambda: node.swap(batch, fence="me"), within_s=15) == [Answer(False, "mine"), Answer(False, None)]
    assert opened(replica.url()).read(["entry", "heedless"]) == ["mine", "1"]
    with pytest.raises(LeaseLost):
        node.swap([Swap("entry", "mine", "x")], fence="nobody")


def test_waiting_for_replicas_needs_the_right_that_the_docs_say(
    opened: Open, namespace: str, replicated: tuple[RedisServer, RedisServer, Wire]
) -> None:
    for more in ((), ("+wait",)):
        user = _user(replicated[0], namespace, *more)
        node = opened(f"redis://{user}127.0.0.1:{replicated[0].port}?wait_replicas=1")
        if more:
            assert node.swap([Swap("entry", "1", "2")]) == [Answer(True, "2")]
        else:
            assert "'wait' command" in said(node.swap, [Swap("entry", None, "1")])


def test_what_stands_in_the_way_is_waited_for_as_a_write_of_this_connection(
    opened: Open, replicated: tuple[RedisServer, RedisServer, Wire]
) -> None:
    # WAIT promises no more than what its own connection wrote, though today's servers do more.
    primary, _, _ = replicated
    batch = [Swap("entry", None, "mine")]
    opened(primary.url()).swap(batch)
    with redis.Redis(port=primary.port) as client:
        for url, written in ((primary.url(), False), (f"{primary.url()}?wait_replicas=1", True)):
            client.config_resetstat()
            assert opened(url).swap(batch) == [Answer(False, "mine")]
            assert ("cmdstat_hset" in client.info("commandstats")) is written


def test_a_claim_that_a_failover_forgets_was_not_won_by_anybody(
    opened: Open, replicated: tuple[RedisServer, RedisServer, Wire]
) -> None:
    primary, replica, wire = replicated
    careful = opened(f"{primary.url()}?wait_replicas=1", timeout_s=0.5)
    wire.cut()
    said(careful.swap, [Swap("entry", None, "mine")])
    with redis.Redis(port=replica.port) as client:
        client.replicaof("NO", "ONE")
    assert opened(replica.url()).swap([Swap("entry", None, "theirs")]) == [Answer(True, "theirs")]
