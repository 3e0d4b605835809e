"""
The file of a SQLite catalog: its tables, transactions, and errors in Gear's words.

On a local filesystem the journal is a write-ahead log.  WAL needs memory
that all users of the file share, which machines do not have, so anywhere
else (NFS above all) it is a rollback journal; locks are then as good as the
share's.  Commits are fsynced either way.

One connection, used under a lock: calls are short, and none is on the path
of a running container.  Safe from any thread, and from several processes.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from gear_plugin.durable import is_local
from gear_plugin.errors import (
    BadConfig,
    Damaged,
    SourceUnavailable,
    StorageFull,
    TimedOut,
    Unsupported,
)

_VERSION = 1
_SCHEMA = (
    """
    -- One row per image that was pushed.  Digests are their 32 raw bytes.
    CREATE TABLE images (
        id          INTEGER PRIMARY KEY,
        name        TEXT NOT NULL,       -- of the original, as given to gear build
        tag         TEXT NOT NULL,
        gear_name   TEXT NOT NULL,       -- of the index image in the registry
        gear_tag    TEXT NOT NULL,
        index_cid   BLOB NOT NULL,       -- of index.erofs
        original    BLOB NOT NULL,       -- the original's image id
        manifest    BLOB NOT NULL,       -- of .gear/manifest
        objects     INTEGER NOT NULL,    -- distinct
        size_bytes  INTEGER NOT NULL,    -- distinct, uncompressed
        created_s   INTEGER NOT NULL,    -- Unix time
        UNIQUE (name, tag)
    ) STRICT
    """,
    """
    -- One row per regular file of each image.  An OID is made from the image's
    -- name, so it belongs to exactly one image and goes with it.
    CREATE TABLE objects (
        oid         BLOB PRIMARY KEY,    -- 32 raw bytes
        cid         BLOB NOT NULL,
        image       INTEGER NOT NULL REFERENCES images (id) ON DELETE CASCADE
    ) STRICT, WITHOUT ROWID
    """,
    # For objects_of and the cascade; holds the cid, so that the table is not read.
    "CREATE INDEX objects_by_image ON objects (image, cid)",
    f"PRAGMA user_version = {_VERSION}",
)

# What an older Gear can do without, and passes over: no new version of the format.
_ADDED = (
    """
    -- Content named by hand (POST /put), not yet or never by an image.
    CREATE TABLE IF NOT EXISTS loose (
        oid         BLOB PRIMARY KEY,    -- 32 raw bytes
        cid         BLOB NOT NULL
    ) STRICT, WITHOUT ROWID
    """,
    """
    -- The cluster's token, in one row once there is one.
    CREATE TABLE IF NOT EXISTS identity (
        one         INTEGER PRIMARY KEY CHECK (one = 1),
        token       TEXT NOT NULL
    ) STRICT
    """,
    """
    CREATE TABLE IF NOT EXISTS nodes (
        node        TEXT PRIMARY KEY,    -- 32 hex digits
        address     TEXT NOT NULL,       -- HOST:PORT
        is_live     INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID
    """,
    """
    -- Of the list of nodes, in one row once it has changed.
    CREATE TABLE IF NOT EXISTS nodes_version (
        one         INTEGER PRIMARY KEY CHECK (one = 1),
        version     INTEGER NOT NULL
    ) STRICT
    """,
    """
    -- What each manager saw in its latest round of checks.
    CREATE TABLE IF NOT EXISTS reports (
        manager     TEXT PRIMARY KEY,    -- 32 hex digits
        round       INTEGER NOT NULL,
        seen        BLOB NOT NULL        -- nodes that answered, 16 raw bytes each
    ) STRICT, WITHOUT ROWID
    """,
)
_TABLES = sum("CREATE TABLE" in statement for statement in (*_SCHEMA, *_ADDED))
_COUNT_TABLES = "SELECT count(*) FROM sqlite_master WHERE type = 'table'"


class SqliteFile:
    """
    The file *path*, made if it is not there (its directory must be); to read
    alone where it may not be written.

    *timeout_s*: how long a call waits for others who have it locked.
    Raises BadConfig (cannot be opened), Unsupported (a newer Gear wrote it),
    Damaged (not a catalog).
    """

    def __init__(self, path: Path, *, timeout_s: float = 15.0) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        try:
            self._db = self._connected("mode=rwc")
        except sqlite3.Error as error:
            raise BadConfig(f"cannot open the catalog {path}: {error}") from error
        try:
            with self._translated():
                try:
                    self._prepare()
                except sqlite3.Error as error:
                    if not _is_refusal(error) or not path.is_file():
                        raise
                    self._reopen_to_read()
        except BaseException:
            self._db.close()
            raise

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One consistent state of the database."""
        with self._begun("BEGIN") as db:
            yield db

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, durable at the end; takes the write lock at once."""
        with self._begun("BEGIN IMMEDIATE") as db:
            yield db

    def hide(self) -> None:
        """From now on nobody reads it who is neither its owner nor of its group."""
        for suffix in ("", "-wal", "-shm", "-journal"):
            with contextlib.suppress(FileNotFoundError):
                file = Path(f"{self._path}{suffix}")
                file.chmod(file.stat().st_mode & 0o770)

    def close(self) -> None:
        """Free what is open."""
        with self._lock:
            self._db.close()

    def _connected(self, mode: str) -> sqlite3.Connection:
        return sqlite3.connect(
            f"{self._path.absolute().as_uri()}?{mode}",
            uri=True,
            timeout=self._timeout_s,
            isolation_level=None,
            check_same_thread=False,
        )

    def _reopen_to_read(self) -> None:
        """
        For who may not write the file, or beside it.

        A write-ahead log wants a file beside it even to read.  If none is there,
        nobody writes now, and all there is is in the file (sqlite.org/wal.html,
        "Read-Only Databases").
        """
        self._db.close()
        has_log = Path(f"{self._path}-wal").exists()
        self._db = self._connected("mode=ro" if has_log else "mode=ro&immutable=1")
        version, _ = self._format()
        self._check(version)
        if version == 0:
            raise BadConfig(f"{self._path} is no catalog yet, and cannot be written")

    def _format(self) -> tuple[int, int]:
        """Its version, and how many tables it has."""
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        (tables,) = self._db.execute(_COUNT_TABLES).fetchone()
        return version, tables

    def _prepare(self) -> None:
        # A WAL needs memory that all users share, which other machines do not.
        journal = "WAL" if is_local(self._path.parent) else "DELETE"
        self._db.execute(f"PRAGMA journal_mode = {journal}")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        version, tables = self._format()
        if version == _VERSION and tables >= _TABLES:
            return  # Readers wait for no writer.
        # Two processes may find a new file at once: look again under the lock.
        self._db.execute("BEGIN IMMEDIATE")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            for statement in _SCHEMA:
                self._db.execute(statement)
        for statement in _ADDED:
            self._db.execute(statement)
        self._db.execute("COMMIT")
        self._check(version)

    def _check(self, version: int) -> None:
        if version > _VERSION:
            raise Unsupported(
                f"catalog {self._path} has format {version}, this Gear knows {_VERSION}; update it"
            )

    @contextlib.contextmanager
    def _begun(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._lock, self._translated():
            self._db.execute(begin)
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """SQLite's errors in Gear's words (sqlite.org/rescode.html)."""
        try:
            yield
        except sqlite3.Error as error:
            # Extended codes keep the primary one in their low byte.
            match getattr(error, "sqlite_errorcode", 0) & 0xFF:
                case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                    raise TimedOut(
                        f"catalog {self._path} was locked by others for {self._timeout_s:g} s"
                    ) from error
                case sqlite3.SQLITE_FULL:
                    raise StorageFull(f"no room for the catalog {self._path}") from error
                case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                    raise Damaged(f"{self._path} is no sound catalog: {error}") from error
                case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
                    raise BadConfig(f"cannot use the catalog {self._path}: {error}") from error
                case sqlite3.SQLITE_IOERR:
                    raise SourceUnavailable(f"catalog {self._path}: {error}") from error
                case _:
                    raise


def _is_refusal(error: sqlite3.Error) -> bool:
    """Whether the file or its folder may not be written."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM)
