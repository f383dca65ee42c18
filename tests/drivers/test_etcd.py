"""What is particular to etcd; what it shares with the other stores is in `test_contract`."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from celery_distsched.drivers import Answer, Driver, StoreUrl, Swap, open_driver
from celery_distsched.drivers.etcd_client import Line, import_messages
from celery_distsched.errors import ConfigError, LeaseLost, StoreUnavailable
from tests.servers import EtcdServer, RedisServer, Server
from tests.servers.process import ask
from tests.wire import Wire

ROOT = Path(__file__).resolve().parents[2]
#: Seconds; every lease here lasts twice as long.
TTL_S = 2.0

Open = Callable[..., Driver]


@pytest.fixture
def open_etcd() -> Iterator[Open]:
    """Open drivers of one new namespace, or of one below it; they are closed with the test."""
    own, opened = uuid.uuid4().hex, []

    def open_one(url: str, timeout_s: float = 2.0, below: str = "", **options: Any) -> Driver:
        namespace = own + below
        driver = open_driver(
            StoreUrl.parse(url), namespace=namespace, ttl_s=TTL_S, timeout_s=timeout_s, options=options
        )
        opened.append(driver)
        return driver

    yield open_one
    for driver in opened:
        driver.close()


def _error(call: Callable[[], object]) -> str:
    with pytest.raises(StoreUnavailable) as caught:
        call()
    return str(caught.value)


# Leases


def test_renewals_keep_a_member_and_without_them_its_lease_ends(etcd_server: EtcdServer, open_etcd: Open) -> None:
    node = open_etcd(etcd_server.url())
    node.join("renewed", "")
    node.join("silent", "")
    deadline = time.monotonic() + 4 * TTL_S
    while "silent" in node.members():
        assert time.monotonic() < deadline
        node.renew("renewed", "")
        time.sleep(0.1)
    with pytest.raises(LeaseLost):
        node.renew("silent", "")
    with pytest.raises(LeaseLost):
        node.swap([Swap("entry", None, "record")], fence="silent")
    assert node.read(["entry"]) == [None]
    # etcd looks for leases that have ended every 0.5 s: the older one would have gone by the second look.
    seen_for_good = time.monotonic() + 1
    while time.monotonic() < seen_for_good:
        node.renew("renewed", "")
        time.sleep(0.1)


def test_a_lease_that_etcd_does_not_know_is_not_kept(etcd_server: EtcdServer) -> None:
    line = Line(import_messages(), StoreUrl.parse(etcd_server.url()), {}, timeout_s=2.0)
    etcd = line.attempt()
    assert etcd.keep_lease(etcd.grant_lease(4))
    assert not etcd.keep_lease(12345)
    line.close()


def test_a_namespace_that_reads_like_a_part_of_another_is_not_in_it(etcd_server: EtcdServer, open_etcd: Open) -> None:
    node, below = open_etcd(etcd_server.url()), open_etcd(etcd_server.url(), below="/distsched/nodes")
    below.join("me", "")
    assert node.members() == {}


# Servers that come and go


def test_a_line_that_another_thread_has_closed_is_an_error_of_ours(etcd_server: EtcdServer) -> None:
    line = Line(import_messages(), StoreUrl.parse(etcd_server.url()), {}, timeout_s=2.0)
    etcd = line.attempt()
    etcd.keep_lease(12345)
    line.close()
    _error(lambda: etcd.grant_lease(4))


def test_a_killed_server_is_used_again_as_soon_as_it_is_back(open_etcd: Open) -> None:
    with EtcdServer() as server:
        node, idle = open_etcd(server.url()), open_etcd(server.url())
        node.join("me", "")
        node.swap([Swap("entry", None, "before")])
        assert "me" in idle.members()
        server.kill()
        for call in (node.members, lambda: node.read(["entry"])) * 3:
            _error(call)
        server.start()
        assert node.read(["entry"]) == ["before"]
        node.renew("me", "again")
        assert idle.members()["me"].info == "again"


@pytest.mark.parametrize("broken", [Wire.cut, Wire.freeze])
def test_after_an_error_the_next_endpoint_is_asked(
    etcd_server: EtcdServer, wire_to: Callable[[Server], Wire], open_etcd: Open, broken: Callable[[Wire], None]
) -> None:
    first, second = wire_to(etcd_server), wire_to(etcd_server)
    # A name among the addresses: unlike gRPC's own lists, these may hold names.
    node = open_etcd(f"etcd://localhost:{first.port},127.0.0.1:{second.port}", timeout_s=0.5)
    node.join("me", "")
    broken(first)
    _error(node.members)
    for _ in range(3):
        assert "me" in node.members()
    first.mend()
    broken(second)
    _error(node.members)
    assert "me" in node.members()


def test_a_swap_that_fails_ends_no_renewal(etcd_server: EtcdServer, open_etcd: Open) -> None:
    node = open_etcd(etcd_server.url())
    node.join("me", "")

    def fail() -> None:
        for _ in range(20):
            _error(lambda: node.swap([Swap("entry", None, "x" * 3_000_000)], fence="me"))

    with ThreadPoolExecutor(1) as pool:
        failing = pool.submit(fail)
        while not failing.done():
            node.renew("me", "")
        failing.result()


# Who asks


def test_a_server_with_users_is_told_who_asks(open_etcd: Open) -> None:
    with EtcdServer("--auth-token-ttl=1") as server:
        early = open_etcd(server.url().replace("//", "//root:s3cret@"))
        early.join("early", "")  # users may be written into the URL before etcd asks for them
        anonymous = server.url()
        server.protect()
        # A token that is asked about lives on, so its end can only be waited for.
        assert "s3cret" not in _error(early.members)
        early.renew("early", "")
        early.swap([Swap("entry", None, "1")], fence="early")
        time.sleep(3)
        early.renew("early", "")
        assert early.swap([Swap("entry", "1", "2")], fence="early") == [Answer(True, "2")]

        assert "write user:password@host" in _error(open_etcd(anonymous).members)
        wrong = _error(open_etcd(anonymous, username="root", password="wr0ng").members)
        assert "in distsched_url" in wrong
        assert "wr0ng" not in wrong


def test_a_role_for_the_namespaces_prefix_is_enough_for_its_user(open_etcd: Open) -> None:
    with EtcdServer() as server:
        node = open_etcd(server.url(), username="beat", password="s3cret")
        prefix = f"/{node.namespace}/distsched/".encode()
        key, end = (base64.b64encode(bound).decode() for bound in (prefix, prefix[:-1] + b"0"))
        for path, body in (
            ("user/add", {"name": "root", "password": "r00t"}),
            ("user/grant", {"user": "root", "role": "root"}),
            ("user/add", {"name": "beat", "password": "s3cret"}),
            ("role/add", {"name": "schedule"}),
            ("role/grant", {"name": "schedule", "perm": {"permType": "READWRITE", "key": key, "range_end": end}}),
            ("user/grant", {"user": "beat", "role": "schedule"}),
            ("enable", {}),
        ):
            ask(server, "POST", f"/v3/auth/{path}", body)
        node.join("me", "")
        node.renew("me", "info")
        assert node.swap([Swap("entry", None, "1")], fence="me") == [Answer(True, "1")]
        assert node.read(["entry"]) == ["1"]
        assert set(node.members()) == {"me"}
        node.remove("me")
        other = open_etcd(server.url(), below="-other", username="beat", password="s3cret")
        for call in (other.members, lambda: other.join("me", "")):
            assert "permission denied (grant the user's role readwrite" in _error(call)


class EtcdWithCertificates(EtcdServer):
    """Speaks TLS and asks its clients for a certificate; one that signs itself is all: authority, server and client."""

    scheme = "etcds"

    def __init__(self) -> None:
        super().__init__()
        self.cert, self.key = str(self.folder / "cert.pem"), str(self.folder / "key.pem")
        request = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=etcd -addext subjectAltName=IP:127.0.0.1"
        command = [*request.split(), "-keyout", self.key, "-out", self.cert]
        subprocess.run(command, check=True, capture_output=True)

    def command(self) -> list[str]:
        """Return the program and its arguments."""
        program, *arguments = super().command()
        secured = [argument.replace("client-urls=http:", "client-urls=https:") for argument in arguments]
        files = {"cert-file": self.cert, "key-file": self.key, "trusted-ca-file": self.cert}
        return [program, *secured, "--client-cert-auth", *(f"--{name}={file}" for name, file in files.items())]

    def ready(self) -> bool:
        """It answers a client that shows its certificate."""
        line = Line(import_messages(), StoreUrl.parse(self.url()), self.files, timeout_s=1.0)
        try:
            return line.attempt().grant_lease(2) > 0
        except StoreUnavailable:
            return False
        finally:
            line.close()

    @property
    def files(self) -> dict[str, str]:
        """The options of a client that is let in."""
        return {"ca": self.cert, "cert": self.cert, "key": self.key}


def test_tls_and_client_certificates_and_what_to_do_without_them(open_etcd: Open) -> None:
    with EtcdWithCertificates() as server:
        node = open_etcd(server.url(), **server.files)
        node.join("me", "")
        assert node.swap([Swap("entry", None, "1")], fence="me") == [Answer(True, "1")]

        assert "ca=" in _error(open_etcd(server.url()).members)
        assert "cert=" in _error(open_etcd(server.url(), ca=server.cert).members)
        assert "other hosts" in _error(open_etcd(f"etcds://localhost:{server.port}", **server.files).members)
        assert "not PEM" in _error(open_etcd(server.url(), ca=str(server.log)).members)
        assert "'ca' names a file that cannot be read" in _error(open_etcd(server.url(), ca="/no/such").members)
        assert "use etcds://" in _error(open_etcd(server.url("etcd")).members)


def test_a_server_that_is_something_else_is_called_so(
    etcd_server: EtcdServer, redis_server: RedisServer, open_etcd: Open
) -> None:
    assert "use etcd://" in _error(open_etcd(etcd_server.url("etcds")).members)
    assert "not etcd's client port" in _error(open_etcd(redis_server.url("etcd", path="")).members)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("etcd://host/path", "distsched_namespace"),
        ("etcd://user@host", "both user and password"),
        ("etcd://host?password=secret", "both user and password"),
        ("etcd://host?ca=/ca.pem", "write etcds://"),
        ("etcds://host?cert=/cert.pem", "both cert and key"),
    ],
)
def test_a_url_that_cannot_work_is_refused_at_once(open_etcd: Open, url: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        open_etcd(url)
    assert "secret" not in str(caught.value)


# Client libraries

_ONE_ROUND = """
import sys
from celery_distsched.drivers import StoreUrl, Swap, open_driver
from celery_distsched.errors import LeaseLost

node = open_driver(StoreUrl.parse(sys.argv[1]), namespace=sys.argv[2], ttl_s=2.0, timeout_s=5.0, options={})
node.join("me", "joined")
node.renew("me", "renewed")
assert node.members()["me"].info == "renewed"
batch = [Swap(str(n), None, f"record {n}") for n in range(node.max_batch)]
assert all(answer.won for answer in node.swap(batch, fence="me"))
assert [answer.record for answer in node.swap(batch)] == [swap.new for swap in batch]
assert node.read(["0", "absent"]) == ["record 0", None]
node.remove("me")
try:
    node.renew("me", "again")
except LeaseLost:
    print("done with", sys.modules["etcd3"].__file__)
"""
_WITHOUT_PYETCD = "import sys; sys.modules['pyetcd'] = None\n"


def _library(requirement: str) -> str:
    """Return a folder with this package alone, filled at the first use; gRPC and protobuf are those of the tests."""
    folder = ROOT / ".cache" / "etcd-clients" / requirement
    if not folder.exists():
        unfinished = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", f"--target={unfinished}", requirement]
        subprocess.run(pip, check=True, stdout=sys.stderr)
        unfinished.rename(folder)
    return str(folder)


def _run(script: str, *arguments: str, library: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), library])
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("requirement", "environment"),
    [
        ("cslab-etcd3==0.12.1", {}),
        ("python3-etcd3==0.13.0", {}),
        ("etcd3==0.12.0", {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"}),
    ],
)
def test_any_library_named_etcd3_serves(etcd_server: EtcdServer, requirement: str, environment: dict[str, str]) -> None:
    library = _library(requirement)
    ended = _run(_WITHOUT_PYETCD + _ONE_ROUND, etcd_server.url(), uuid.uuid4().hex, library=library, **environment)
    assert f"done with {library}" in ended.stdout, ended.stderr


def test_a_process_that_has_etcd3_already_goes_on_with_it(etcd_server: EtcdServer) -> None:
    library, environment = _library("etcd3==0.12.0"), {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"}
    script = "import etcd3\n" + _ONE_ROUND
    ended = _run(script, etcd_server.url(), uuid.uuid4().hex, library=library, **environment)
    assert f"done with {library}" in ended.stdout, ended.stderr


def test_a_library_that_is_missing_or_cannot_be_imported_is_an_error_that_says_what_to_install() -> None:
    arguments = ("etcd://localhost", "any")
    missing = _run(_WITHOUT_PYETCD + "sys.modules['etcd3'] = None\n" + _ONE_ROUND, *arguments).stderr
    assert (
        'DriverNotInstalled: the client library for etcd:// is not installed: pip install "celery-distsched[etcd]"'
        in missing
    )
    broken = _run(_WITHOUT_PYETCD + _ONE_ROUND, *arguments, library=_library("etcd3==0.12.0")).stderr
    assert 'pip install "celery-distsched[etcd]", or set PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=python' in broken
