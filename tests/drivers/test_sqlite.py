"""What is particular to SQLite: its files, and what shares them."""

from __future__ import annotations

import os
import resource
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import pytest

from celery_distsched.drivers import Driver, StoreUrl, Swap, open_driver
from celery_distsched.errors import ConfigError, StoreUnavailable
from celery_distsched.testing.checks import at_once, ended_well, forked, io_of_this_thread

Open = Callable[[Path], Driver]
#: The superuser may write to what is read-only, unless the right to do so is taken from it.
ORDINARY_USER = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if os.geteuid() == 0 else ()


@pytest.fixture
def opened() -> Iterator[Open]:
    with ExitStack() as ends:

        def open_(path: Path) -> Driver:
            url = StoreUrl.parse(f"sqlite:///{path}")
            driver = open_driver(url, namespace="n", ttl_s=5.0, timeout_s=2.0, options={})
            return ends.enter_context(closing(driver))

        yield open_


def test_nobody_else_may_read_the_file_or_its_logs(opened: Open, tmp_path: Path) -> None:
    """But for those to whom somebody has given it."""
    loose = os.umask(0)
    try:
        for name, before, mode in (("new", None, 0o600), ("loose", 0o666, 0o660), ("of a group", 0o660, 0o660)):
            path = tmp_path / name
            if before is not None:
                path.touch()
                path.chmod(before)
            opened(path).join("me", "info")
            files = sorted(tmp_path.glob(f"{name}*"))
            assert [file.name for file in files] == [name, f"{name}-shm", f"{name}-wal"]
            assert {file.stat().st_mode & 0o777 for file in files} == {mode}
    finally:
        os.umask(loose)


def test_what_is_no_database_stays_as_it_is(opened: Open, tmp_path: Path) -> None:
    directory, text = tmp_path / "shared", tmp_path / "notes.txt"
    directory.mkdir()
    text.write_text("This is somebody's, and more than sixteen bytes.")
    for path in (directory, text):
        path.chmod(0o777)
    with pytest.raises(ConfigError, match="is no file"):
        opened(directory).join("me", "info")
    with pytest.raises(StoreUnavailable, match="Name another file"):
        opened(text).join("me", "info")
    assert {path.stat().st_mode & 0o777 for path in (directory, text)} == {0o777}
    assert text.read_text().startswith("This is somebody's")


@pytest.mark.parametrize("renewals", [30, 3000], ids=["a short log", "a log of its usual size"])
def test_a_full_disk_costs_a_call(opened: Open, tmp_path: Path, renewals: int) -> None:
    """The log has room for what it has held before, and is written over."""
    nodes = [opened(tmp_path / "file") for _ in range(3)]
    for number, node in enumerate(nodes):
        node.join(f"node-{number}", "info")
        node.swap([Swap(f"entry-{number}-{one}", None, "0") for one in range(20)])
    for number, node in cycle(enumerate(nodes)):
        node.renew(f"node-{number}", "info")
        renewals -= 1
        if not renewals:
            break
    largest = max(file.stat().st_size for file in tmp_path.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file may grow any more: the system's limit stands in for a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, hard))
    refused = [0, 0, 0]
    known = [0, 0, 0]
    try:
        for number, node in islice(cycle(enumerate(nodes)), 2000):
            try:
                node.renew(f"node-{number}", "info")
                swaps = [Swap(f"entry-{number}-{one}", str(known[number]), str(known[number] + 1)) for one in range(20)]
                assert all(answer.won for answer in node.swap(swaps, f"node-{number}"))
                known[number] += 1
            except StoreUnavailable:
                refused[number] += 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert max(refused) <= 1, refused


def test_beats_that_make_the_file_at_the_same_moment_wait_for_one_another(opened: Open, tmp_path: Path) -> None:
    for count in range(10):
        drivers = [opened(tmp_path / str(count)) for _ in range(4)]
        at_once(*(partial(driver.join, f"node-{n}", "info") for n, driver in enumerate(drivers)))
        assert len(drivers[0].members()) == 4


def test_of_a_large_batch_only_those_lose_whose_record_is_another(opened: Open, tmp_path: Path) -> None:
    driver = opened(tmp_path / "store")
    names = [f"entry {number}" for number in range(driver.max_batch)]
    driver.swap([Swap(names[7], None, "somebody was first"), Swap(names[-1], None, "old")])
    batch = [Swap(name, None, f"record of {name}") for name in names[:-1]] + [Swap(names[-1], "old", "new")]
    assert [answer.won for answer in driver.swap(batch)] == [name != names[7] for name in names]
    expected = [f"record of {name}" for name in names]
    expected[7], expected[-1] = "somebody was first", "new"
    assert driver.read(names) == expected
    assert driver.read([*reversed(names[300:]), "not there"]) == [*reversed(expected[300:]), None]
    # Nobody has, in the part of the batch that was tried first, won what he then loses.
    assert [answer.won for answer in driver.swap(batch)] == [False] * len(names)


def test_a_forked_process_opens_the_file_itself(opened: Open, tmp_path: Path) -> None:
    driver = opened(tmp_path / "store")
    driver.join("me", "info")

    def child() -> None:
        with io_of_this_thread() as seen:
            driver.renew("me", "child")
        assert any(event.startswith("sqlite3.connect") for event in seen), seen

    ended_well(forked(child), within_s=10.0)
    assert driver.members()["me"].info == "child"


def test_what_is_no_database_is_said_and_left_alone(opened: Open, tmp_path: Path) -> None:
    path = tmp_path / "letter"
    path.write_text("Dear reader, this is no database. " * 100)
    before = path.read_bytes()
    with pytest.raises(StoreUnavailable, match="not a database"):
        opened(path).join("me", "info")
    assert path.read_bytes() == before
    with pytest.raises(StoreUnavailable, match="No such file or directory"):
        opened(tmp_path / "no" / "folder").members()


READ_ONLY = """
    import sys
    from pathlib import Path
    from celery_distsched.drivers import StoreUrl, open_driver
    from celery_distsched.errors import StoreUnavailable

    path = Path(sys.argv[1])

    def opened():
        return open_driver(StoreUrl.parse(f"sqlite:///{path}"), namespace="n", ttl_s=5.0, timeout_s=1.0, options={})

    def refused(driver):
        try:
            driver.join("me", "info")
        except StoreUnavailable as exc:
            return str(exc)

    before = opened()
    before.join("before", "info")
    path.chmod(0o400)
    path.parent.chmod(0o500)
    # Who has opened it already goes on.
    before.renew("before", "info")
    late = opened()
    print(refused(late))
    path.chmod(0o600)
    late.join("late", "info")
    # Without the logs, which go with the last connection, the directory is needed too.
    for driver in (before, late):
        driver.close()
    path.parent.chmod(0o700)
    for log in path.parent.glob(f"{path.name}-*"):
        log.unlink()
    path.parent.chmod(0o500)
    print(refused(late))
    path.parent.chmod(0o700)
    late.renew("late", "info")
"""


def test_a_file_that_was_read_only_is_written_to_as_soon_as_that_is_mended(tmp_path: Path) -> None:
    folder = tmp_path / "of its own"
    folder.mkdir()
    ran = subprocess.run(
        [*ORDINARY_USER, sys.executable, "-c", textwrap.dedent(READ_ONLY), str(folder / "store")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    for line in ran.stdout.splitlines():
        assert "readonly" in line
        assert "must be allowed to write the file and its directory" in line


def test_a_writer_that_holds_the_file_costs_no_more_than_the_timeout(opened: Open, tmp_path: Path) -> None:
    driver = opened(tmp_path / "store")
    driver.join("me", "info")
    with closing(sqlite3.connect(tmp_path / "store", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked"):
            driver.swap([Swap("entry", None, "1")], fence="me")
        assert driver.read(["entry"]) == [None]
        other.execute("ROLLBACK")
    assert driver.swap([Swap("entry", None, "1")], fence="me")[0].won
