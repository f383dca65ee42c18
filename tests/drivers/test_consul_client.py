"""Consul's addresses, tokens and certificates, and what is said where one is wrong."""
# ruff: noqa: F811  (fixtures are imported by their names)

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from celery_distsched.drivers import Answer, Swap
from celery_distsched.drivers.consul import ConsulDriver
from celery_distsched.errors import ConfigError, StoreUnavailable
from celery_distsched.testing.checks import at_once, poll, refused
from tests.drivers.consul_nodes import Opener, namespace, node, open_at  # noqa: F401
from tests.servers import ConsulServer, EtcdServer, GuardedConsul, RedisServer, Server, find_binary, free_port
from tests.servers.process import ask
from tests.wire import Wire

_ROOT = Path(__file__).resolve().parents[2]


# Addresses and mends


def test_the_next_agent_is_asked_when_one_fails(open_at: Opener, consul_server: ConsulServer) -> None:
    driver = open_at(f"consul://127.0.0.1:{free_port()},127.0.0.1:{consul_server.port}")
    with pytest.raises(StoreUnavailable, match="no Consul agent listens there"):
        driver.join("me", "")
    driver.join("me", "")
    assert list(driver.members()) == ["me"]


def test_the_address_is_that_of_the_url(node: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSUL_HTTP_ADDR", "http://127.0.0.1:1")
    monkeypatch.setenv("CONSUL_HTTP_SSL", "true")
    assert node().members() == {}


def test_the_environments_proxy_is_for_other_hosts_only(
    open_at: Opener, consul_server: ConsulServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("no_proxy", "elsewhere")
    for host in ("127.0.0.1", "localhost", "LocalHost"):
        assert open_at(f"consul://{host}:{consul_server.port}").members() == {}
    # Which leads here as well, but by its looks need not.
    elsewhere = open_at(f"consul://0.0.0.0:{consul_server.port}")
    with pytest.raises(StoreUnavailable, match="Connection refused"):
        elsewhere.members()
    monkeypatch.setenv("no_proxy", "elsewhere,0.0.0.0")
    assert elsewhere.members() == {}


def test_a_wrong_server_is_called_so(
    open_at: Opener, consul_server: ConsulServer, etcd_server: EtcdServer, redis_server: RedisServer
) -> None:
    for other in (etcd_server, redis_server):
        with pytest.raises(StoreUnavailable, match="not Consul's HTTP port"):
            open_at(other.url("consul", path="")).members()
    with pytest.raises(StoreUnavailable, match="use consul://"):
        open_at(consul_server.url("consuls")).members()
    with pytest.raises(StoreUnavailable, match=r"\?dc="):
        open_at(consul_server.url(), dc="mars").join("me", "")
    assert open_at(consul_server.url(), dc="dc1").members() == {}


class _Leaderless(ConsulServer):
    """Waits for a second server, which never comes."""

    def __init__(self) -> None:
        super().__init__("-bootstrap-expect=2", '-hcl=performance { rpc_hold_timeout = "1ms" }')

    def ready(self) -> bool:
        return ask(self, "GET", "/v1/agent/self") is not None


def test_consul_without_a_leader_is_an_error_in_its_own_words(open_at: Opener) -> None:
    with _Leaderless() as server:
        driver = open_at(server.url())
        for call in _every_call(driver):
            error = refused(StoreUnavailable, call)
            assert str(error) == f"Consul at http://{server.host}:{server.port}: 500 No cluster leader"


def test_an_error_shows_the_networks_own_words(open_at: Opener) -> None:
    try:
        Path("/an/older/story").read_text()
    except OSError:
        with pytest.raises(StoreUnavailable) as error:
            open_at(f"consul://127.0.0.1:{(port := free_port())}").members()
    assert str(error.value).startswith(f"Consul at http://127.0.0.1:{port}: [Errno 111] Connection refused; ")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("consul://localhost/prefix", "distsched_namespace"),
        ("consul://me:secret@localhost", r"\?token="),
        ("consul://localhost?ca=ca.pem", "consuls://"),
        ("consuls://localhost?key=key.pem", "cert"),
        ("consuls://localhost?verify=perhaps", "verify"),
        ("consul://localhost?token=se%0Acret", "token"),
        ("consul://localhost?tokem=secret", "did you mean 'token'"),
    ],
)
def test_a_url_that_cannot_work_is_refused_with_its_mend(open_at: Opener, url: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        open_at(url)
    assert "secret" not in str(error.value)
    assert "cret" not in str(error.value)


# Connections


def test_what_breaks_one_connection_ends_the_idle_ones_too(
    open_at: Opener, consul_server: ConsulServer, wire_to: Callable[[Server], Wire]
) -> None:
    wire = wire_to(consul_server)
    driver = open_at(consul_server.url(port=wire.port))
    with driver._agents._lent(), driver._agents._lent():
        pass
    assert len(driver._agents._idle) == 2
    wire.cut()
    refused(StoreUnavailable, driver.members)
    assert driver._agents._idle == []


def test_a_connection_in_use_is_closed_when_it_comes_back_after_close(
    open_at: Opener, consul_server: ConsulServer, wire_to: Callable[[Server], Wire]
) -> None:
    wire = wire_to(consul_server)
    driver = open_at(consul_server.url(port=wire.port))
    driver.members()
    (held,) = driver._agents._idle  # held here, so that the garbage collector cannot close it
    wire.freeze()

    def close() -> None:
        poll(lambda: not driver._agents._idle, within_s=5.0)
        driver.close()
        wire.mend()

    assert at_once(driver.members, close) == [{}, None]
    assert held not in driver._agents._idle
    poll(lambda: not wire._links, within_s=5.0)


# Tokens


@pytest.fixture(scope="module")
def guarded() -> Iterator[GuardedConsul]:
    with GuardedConsul() as server:
        yield server


def _every_call(driver: ConsulDriver) -> list[Callable[[], Any]]:
    return [
        partial(driver.join, "me", ""),
        partial(driver.renew, "me", ""),
        driver.members,
        partial(driver.swap, [Swap("entry", None, "1")]),
        partial(driver.swap, [Swap("entry", "1", "2")], "me"),
        partial(driver.read, ["entry"]),
        partial(driver.remove, "me"),
    ]


def test_a_token_for_the_namespace_is_enough(
    open_at: Opener, guarded: GuardedConsul, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = guarded.token(f'key_prefix "{namespace}/distsched/" {{ policy = "write" }}')
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "not-this-one")
    for driver in (open_at(f"{guarded.url()}?token={token}"), open_at(guarded.url(), token=f"{token}\n")):
        for call in _every_call(driver):
            call()
    # As it is read from a file that is mounted.
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", f"{token}\n")
    assert open_at(guarded.url()).members() == {}
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "no\ntoken")
    with pytest.raises(ConfigError, match="CONSUL_HTTP_TOKEN"):
        open_at(guarded.url())


def test_without_a_right_every_call_fails_and_says_where_to_write_the_token(
    open_at: Opener, guarded: GuardedConsul, namespace: str
) -> None:
    able = open_at(guarded.url(), token=guarded.root)
    able.join("me", "")
    able.swap([Swap("entry", None, "1")])
    wrong, blind = str(uuid.uuid4()), guarded.token('key_prefix "elsewhere" { policy = "write" }')
    for options in ({}, {"token": wrong}, {"token": blind}):
        driver = open_at(guarded.url(), **options)
        for call in _every_call(driver):
            with pytest.raises(
                StoreUnavailable, match=f"'{namespace}/distsched/'.*'token' in distsched_driver_options"
            ) as error:
                call()
            assert not any(secret in str(error.value) for secret in options.values())
    assert list(able.members()) == ["me"]
    assert able.read(["entry"]) == ["1"]


def test_a_token_that_is_revoked_ends_every_call_with_its_mend_until_there_is_another(
    open_at: Opener, guarded: GuardedConsul, namespace: str
) -> None:
    rules = f'key_prefix "{namespace}/distsched/" {{ policy = "write" }}'
    token = guarded.token(rules)
    driver = open_at(guarded.url(), token=token)
    driver.join("me", "")
    driver.swap([Swap("entry", None, "1")], fence="me")
    guarded.revoke(token)
    for call in _every_call(driver):
        with pytest.raises(StoreUnavailable, match=r"ACL not found.*'token' in distsched_driver_options") as error:
            call()
        assert token not in str(error.value)
    # What was written with it is still there for the next one.
    successor = open_at(guarded.url(), token=guarded.token(rules))
    successor.renew("me", "")
    assert successor.swap([Swap("entry", "1", "2")], fence="me") == [Answer(True, "2")]


# TLS


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ConsulServer, int, Path]]:
    folder = tmp_path_factory.mktemp("tls")
    for arguments in ("ca create", "cert create -server", "cert create -client"):
        subprocess.run([find_binary("consul"), "tls", *arguments.split()], cwd=folder, check=True, capture_output=True)
    files = {
        "ca_file": "consul-agent-ca.pem",
        "cert_file": "dc1-server-consul-0.pem",
        "key_file": "dc1-server-consul-0-key.pem",
    }
    names = " ".join(f'{name} = "{folder / file}"' for name, file in files.items())
    port = free_port()
    with ConsulServer(f"-hcl=ports {{ https = {port} }} {names} verify_incoming_https = true") as server:
        yield server, port, folder


def test_consuls_takes_the_authority_and_the_client_certificate_and_asks_for_what_is_missing(
    open_at: Opener, tls: tuple[ConsulServer, int, Path]
) -> None:
    server, port, folder = tls
    url = server.url("consuls", port=port)
    client = {"cert": f"{folder}/dc1-client-consul-0.pem", "key": f"{folder}/dc1-client-consul-0-key.pem"}
    ca = f"{folder}/consul-agent-ca.pem"
    driver = open_at(f"{url}?ca={ca}&cert={client['cert']}&key={client['key']}")
    driver.join("me", "")
    assert list(driver.members()) == ["me"]
    for options, says in (
        (client, r"\?ca="),
        ({"ca": ca}, r"\?cert="),
        ({"ca": "/no/such/file", **client}, "paths of files"),
    ):
        with pytest.raises(StoreUnavailable, match=says):
            open_at(url, **options).members()
    with pytest.raises(StoreUnavailable, match="use consuls://"):
        open_at(server.url("consul", port=port)).members()
