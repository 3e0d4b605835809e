"""
The catalog in one SQLite file, for one machine or a few that share a directory.

On a local filesystem the journal is a write-ahead log.  WAL needs memory
that all users of the file share, which machines do not have, so anywhere
else (NFS above all) it is a rollback journal; locks are then as good as the
share's.  Commits are fsynced either way.

One connection, used under a lock: calls are short, and none is on the path
of a running container.  Safe from any thread, and from several processes.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from gear_plugin.catalog.base import ImageRecord
from gear_plugin.digest import Digest
from gear_plugin.errors import (
    BadConfig,
    ContentNotFound,
    Damaged,
    ImageNotFound,
    SourceUnavailable,
    StorageFull,
    TimedOut,
    Unsupported,
)
from gear_plugin.names import ImageId

_VERSION = 1
# Those whose shared memory is known to work between processes; all others
# are treated as shared between machines.
_LOCAL_FILESYSTEMS = frozenset(
    ("bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs")
)

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

_Row = tuple[int, str, str, str, str, bytes, bytes, bytes, int, int, int]
"""A row of images, in the order of the schema."""


class SqliteCatalog:
    """
    The catalog in the file *path*, made if it is not there (its directory must be).

    *timeout_s*: how long a call waits for others who have it locked.
    Raises BadConfig (cannot be opened), Unsupported (a newer Gear wrote it),
    Damaged (not a catalog).
    """

    def __init__(self, path: Path, *, timeout_s: float = 15.0) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(
                path, timeout=timeout_s, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise BadConfig(f"cannot open the catalog {path}: {error}") from error
        try:
            with self._translated():
                self._prepare()
        except BaseException:
            self._db.close()
            raise

    def put_image(self, record: ImageRecord, objects: Mapping[str, Digest]) -> None:
        with self._transaction() as db:
            self._delete(db, record.image)
            image_row = db.execute(
                "INSERT INTO images VALUES (NULL,?,?,?,?,?,?,?,?,?,?)", _to_row(record)
            ).lastrowid
            db.executemany(
                "INSERT INTO objects (oid, cid, image) VALUES (?,?,?)",
                ((Digest.from_hex(oid).raw, cid.raw, image_row) for oid, cid in objects.items()),
            )

    def get_image(self, image: ImageId) -> ImageRecord:
        with self._reading() as db:
            row = db.execute(
                "SELECT * FROM images WHERE name = ? AND tag = ?",
                (image.name, image.tag),
            ).fetchone()
        if row is None:
            raise ImageNotFound(f"the catalog has no image {image}; push it first")
        return _from_row(row)

    def list_images(self) -> list[ImageRecord]:
        with self._reading() as db:
            rows = db.execute("SELECT * FROM images ORDER BY name, tag").fetchall()
        return [_from_row(row) for row in rows]

    def remove_image(self, image: ImageId) -> bool:
        with self._transaction() as db:
            return self._delete(db, image)

    def resolve(self, oid: str) -> Digest:
        with self._reading() as db:
            row = db.execute(
                "SELECT cid FROM objects WHERE oid = ?", (Digest.from_hex(oid).raw,)
            ).fetchone()
        if row is None:
            raise ContentNotFound(f"no image has an object {oid}")
        return Digest(row[0])

    def objects_of(self, image: ImageId) -> frozenset[Digest]:
        with self._reading() as db:
            found = db.execute(
                "SELECT id FROM images WHERE name = ? AND tag = ?", (image.name, image.tag)
            ).fetchone()
            if found is None:
                raise ImageNotFound(f"the catalog has no image {image}; push it first")
            rows = db.execute("SELECT DISTINCT cid FROM objects WHERE image = ?", found).fetchall()
        return frozenset(Digest(cid) for (cid,) in rows)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _prepare(self) -> None:
        journal = "WAL" if _filesystem(self._path) in _LOCAL_FILESYSTEMS else "DELETE"
        self._db.execute(f"PRAGMA journal_mode = {journal}")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == _VERSION:
            return  # Readers wait for no writer.
        # Two processes may find a new file at once: look again under the lock.
        self._db.execute("BEGIN IMMEDIATE")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            for statement in _SCHEMA:
                self._db.execute(statement)
        self._db.execute("COMMIT")
        if version > _VERSION:
            raise Unsupported(
                f"catalog {self._path} has format {version}, this Gear knows {_VERSION}; update it"
            )

    @staticmethod
    def _delete(db: sqlite3.Connection, image: ImageId) -> bool:
        done = db.execute("DELETE FROM images WHERE name = ? AND tag = ?", (image.name, image.tag))
        return done.rowcount > 0

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """One consistent state of the database."""
        with self._begun("BEGIN") as db:
            yield db

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, durable at the end; takes the write lock at once."""
        with self._begun("BEGIN IMMEDIATE") as db:
            yield db

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


def _to_row(record: ImageRecord) -> tuple[object, ...]:
    return (
        record.image.name,
        record.image.tag,
        record.gear_image.name,
        record.gear_image.tag,
        record.index.raw,
        record.original.raw,
        record.manifest.raw,
        record.objects,
        record.size_bytes,
        record.created_s,
    )


def _from_row(row: _Row) -> ImageRecord:
    _, name, tag, gear_name, gear_tag, index, original, manifest, objects, size_bytes, created_s = (
        row
    )
    return ImageRecord(
        image=ImageId(name, tag),
        gear_image=ImageId(gear_name, gear_tag),
        index=Digest(index),
        original=Digest(original),
        manifest=Digest(manifest),
        objects=objects,
        size_bytes=size_bytes,
        created_s=created_s,
    )


def _filesystem(path: Path) -> str:
    """The type of the filesystem that *path*'s directory is on; empty if it cannot be told."""
    device = path.parent.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    found = ""
    # Fields: proc(5), /proc/pid/mountinfo; the last line of a device is the topmost mount.
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        fields = line.split(" ")
        if fields[2] == wanted:
            found = fields[fields.index("-") + 1]
    return found
