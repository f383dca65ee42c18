"""The embedded store: one file, for beats on one host, with nothing to install."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from celery_distsched.drivers.base import Answer, Driver, Member, Swap
from celery_distsched.errors import ConfigError, LeaseLost, StoreUnavailable

logger = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS node (
    namespace TEXT, membership TEXT, pulse INTEGER NOT NULL, info TEXT NOT NULL, PRIMARY KEY (namespace, membership)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS ledger (
    namespace TEXT, entry TEXT, record TEXT NOT NULL, PRIMARY KEY (namespace, entry)
) WITHOUT ROWID;
"""
_CREATE = "INSERT INTO ledger VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
_CHANGE = "UPDATE ledger SET record = ? WHERE namespace = ? AND entry = ? AND record = ?"
_READ = "SELECT entry, record FROM ledger WHERE namespace = ? AND entry"
#: Keys in one statement: SQLite before 3.32 takes 999 values.
_MOST_VARIABLES = 500
#: What a full disk is called, or one whose quota or limit has been reached.
_FULL = ("is full", "disk I/O error")
#: Seconds after which a disk that was full is tried again for room, at the price of a call if there is none.
_FULL_S = 60.0


class SQLiteDriver(Driver):
    """``sqlite:///file`` (relative) or ``sqlite:////path/to/file``.

    Keyspace: table ``node``: (namespace, membership) → pulse, info; rows stay until somebody removes them.
    Table ``ledger``: (namespace, entry) → record; rows stay.

    The write-ahead log needs memory shared by all who open the file: beats on one host, never a network file system.
    On a full disk it is written over, for which it has room: see https://www.sqlite.org/wal.html, 2.1 Checkpointing.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        if self.url.hosts or self.url.path in ("", "/", "/:memory:"):
            raise ConfigError(
                f"distsched_url {self.url.masked!r} names no file: write sqlite:///name.sqlite3 for one in the "
                "working directory, or sqlite:////path/to/name.sqlite3"
            )
        if "\0" in self.url.path:
            raise ConfigError(f"distsched_url {self.url.masked!r} has a NUL in its path, which no file's name has")
        self._path = Path(self.url.path[1:])
        # One connection a process: SQLite has a single writer anyhow, so a second would only queue in the kernel
        # where this lock queues in order.
        self._connection: sqlite3.Connection | None = None
        self._full_until = float("-inf")
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._inherited: list[sqlite3.Connection | None] = []

    def join(self, membership: str, info: str) -> int:
        with self._transaction() as db:
            db.execute(
                "INSERT INTO node VALUES (?, ?, 1, ?)"
                " ON CONFLICT DO UPDATE SET pulse = pulse + 1, info = excluded.info",
                (self.namespace, membership, info),
            )
        return time.time_ns() // 1000

    def renew(self, membership: str, info: str) -> int:
        with self._transaction() as db:
            found = db.execute(
                "UPDATE node SET pulse = pulse + 1, info = ? WHERE namespace = ? AND membership = ?",
                (info, self.namespace, membership),
            ).rowcount
            if not found:
                raise LeaseLost(f"{membership} is not a member any more")
        return time.time_ns() // 1000

    def members(self) -> dict[str, Member]:
        with self._connected() as db:
            # Others' tools may have put bytes there.
            rows = db.execute(
                "SELECT membership, pulse, CAST(info AS TEXT) FROM node"
                " WHERE namespace = ? AND typeof(membership) = 'text'",
                (self.namespace,),
            ).fetchall()
        return {membership: Member(str(pulse), info) for membership, pulse, info in rows}

    def remove(self, membership: str, pulse: str | None = None) -> bool:
        where = "FROM node WHERE namespace = ? AND membership = ?"
        with self._transaction() as db:
            db.execute(
                f"DELETE {where} AND (? IS NULL OR pulse = CAST(? AS INTEGER))",
                (self.namespace, membership, pulse, pulse),
            )
            return db.execute(f"SELECT 1 {where}", (self.namespace, membership)).fetchone() is None

    def read(self, keys: Sequence[str]) -> list[str | None]:
        records: dict[str, str] = {}
        with self._connected() as db:
            for start in range(0, len(keys), _MOST_VARIABLES):
                some = keys[start : start + _MOST_VARIABLES]
                holes = ", ".join("?" * len(some))
                found = db.execute(f"{_READ} IN ({holes})", (self.namespace, *some))
                records.update((key, str(record)) for key, record in found)
        return [records.get(key) for key in keys]

    def swap(self, swaps: Sequence[Swap], fence: str | None = None) -> list[Answer]:
        with self._transaction() as db:
            if fence is not None:
                here = "SELECT 1 FROM node WHERE namespace = ? AND membership = ?"
                if db.execute(here, (self.namespace, fence)).fetchone() is None:
                    raise LeaseLost(f"{fence} is not a member any more")
            # Nearly always all of them win, and then nobody has to ask after each.
            db.execute("SAVEPOINT untouched")
            if self._swap_all(db, swaps) == len(swaps):
                return [Answer(True, swap.new) for swap in swaps]
            db.execute("ROLLBACK TO untouched")
            return [self._swap(db, swap) for swap in swaps]

    def _swap_all(self, db: sqlite3.Connection, swaps: Sequence[Swap]) -> int:
        """Return how many of them have won."""
        created = [(self.namespace, key, new) for key, expected, new in swaps if expected is None]
        changed = [(new, self.namespace, key, expected) for key, expected, new in swaps if expected is not None]
        return sum(db.executemany(sql, rows).rowcount for sql, rows in ((_CREATE, created), (_CHANGE, changed)) if rows)

    def _swap(self, db: sqlite3.Connection, swap: Swap) -> Answer:
        if swap.expected is None:
            won = db.execute(_CREATE, (self.namespace, swap.key, swap.new)).rowcount
        else:
            won = db.execute(_CHANGE, (swap.new, self.namespace, swap.key, swap.expected)).rowcount
        if won:
            return Answer(True, swap.new)
        row = db.execute(f"{_READ} = ?", (self.namespace, swap.key)).fetchone()
        return Answer(False, None if row is None else str(row[1]))

    def close(self) -> None:
        self._notice_fork()
        if self._lock.acquire(timeout=self.timeout_s):
            try:
                self._disconnect()
            finally:
                self._lock.release()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._connected() as db:
            if time.monotonic() < self._full_until:
                _rewind(db)
            # IMMEDIATE takes the write lock first: a transaction that reads and then writes may find that it cannot.
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                # Of some errors, such as a full disk, SQLite has rolled back by itself.
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
            # The connection rolls back by itself if this fails.
            db.execute("COMMIT")

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        self._notice_fork()
        if not self._lock.acquire(timeout=self.timeout_s):
            raise StoreUnavailable(f"{self._path}: busy for {self.timeout_s:g} s")
        try:
            self._notice_replaced()
            if self._connection is None:
                self._connection = self._open()
                self.incarnation = _identity(self._path)
            yield self._connection
        except (sqlite3.Error, OSError) as exc:
            if "readonly" in str(exc):
                # What was opened while the file could not be written to stays like that when it can.
                self._disconnect()
            failed = f"{self._path}: {exc}{_mend(exc)}"
            if any(said in str(exc) for said in _FULL):
                if time.monotonic() >= self._full_until:
                    logger.warning("%s; going on with the room that its log has, if that is enough", failed)
                self._full_until = time.monotonic() + _FULL_S
            raise StoreUnavailable(failed) from exc
        finally:
            self._lock.release()

    def _notice_replaced(self) -> None:
        """Let go of a file that somebody has removed or replaced: others would open the one that is there now."""
        if self._connection is not None and _identity(self._path) != self.incarnation:
            self._disconnect()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _notice_fork(self) -> None:
        if self._pid != os.getpid():
            # The connection is the parent's. SQLite would break its locks if it were so much as closed here.
            self._inherited.append(self._connection)
            self._pid, self._connection, self._lock = os.getpid(), None, threading.Lock()

    def _open(self) -> sqlite3.Connection:
        self._close_to_others()
        db = sqlite3.connect(self._path, timeout=self.timeout_s, isolation_level=None, check_same_thread=False)
        # What is no text was written by somebody else: it must lose a swap, not break the reading of all others.
        db.text_factory = lambda stored: stored.decode(errors="backslashreplace")
        try:
            self._switch_to_wal(db)
            # NORMAL could forget the last claims when the power fails, and they would be sent again.
            db.execute("PRAGMA synchronous = FULL")
            db.executescript(_SCHEMA)
            # The database has its size from now on, should the disk be full later.
            _rewind(db)
        except BaseException:
            db.close()
            raise
        return db

    def _close_to_others(self) -> None:
        """Make the file, or take it from those that it is nobody's business of: SQLite gives its logs the same mode."""
        with suppress(FileExistsError):
            self._path.touch(mode=0o600, exist_ok=False)
        if not self._path.is_file():
            raise ConfigError(f"distsched_url {self.url.masked!r} names {self._path}, which is no file: name one")
        mode = self._path.stat().st_mode & 0o777
        # Somebody may have given it to a group; and what is no database is no file of ours.
        if mode & 0o007 and _may_be_database(self._path):
            logger.warning("%s was open to every user of this host, with mode %o: it is no more", self._path, mode)
            self._path.chmod(mode & 0o770)

    def _switch_to_wal(self, db: sqlite3.Connection) -> None:
        """Wait for others that switch the same new file, since SQLite does not: it waits for all else by itself."""
        deadline = time.monotonic() + self.timeout_s
        while True:
            try:
                db.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as exc:
                if "locked" not in str(exc) or time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
            else:
                return


_MENDS = {
    "readonly": "This beat's user must be allowed to write the file and its directory, and the disk not be read-only",
    "unable to open": "This beat's user must be allowed to write the file and its directory",
    "ermission denied": "This beat's user must be allowed to write the file and its directory",
    "not permitted": "The file must belong to this beat's user",
    "No such file": "Make the directory",
    "Not a directory": "What stands before its name must be directories",
    "not a database": "Name another file, one that is not there yet, or that is an SQLite database",
    "is full": "Make room on its disk",
    "disk I/O error": "Has its disk room, and can it be written to? The system's log may say more",
    "locked": "Another program keeps its lock: a copy, a check, a vacuum",
}


def _rewind(db: sqlite3.Connection) -> None:
    """Bring what is in the log into the database, so that the next transaction begins at the log's start."""
    with suppress(sqlite3.Error):
        db.execute("PRAGMA wal_checkpoint(PASSIVE)")


def _mend(exc: Exception) -> str:
    return next((f". {mend}" for said, mend in _MENDS.items() if said in str(exc)), "")


def _may_be_database(path: Path) -> bool:
    with path.open("rb") as file:
        # See https://www.sqlite.org/fileformat.html, 1.3.
        return file.read(16) in (b"", b"SQLite format 3\0")


def _identity(path: Path) -> str:
    try:
        found = path.stat()
    except FileNotFoundError:
        return ""
    return f"{found.st_dev:x}:{found.st_ino:x}"
