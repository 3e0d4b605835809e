"""
The catalog in one SQLite file, for one machine or a few that share a directory.

`sqlite_file` says what the file promises.  Safe from any thread, and from
several processes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path

from gear_plugin.catalog.base import ImageRecord
from gear_plugin.catalog.sqlite_file import SqliteFile
from gear_plugin.digest import Digest
from gear_plugin.errors import ContentNotFound, ImageNotFound
from gear_plugin.names import ImageId

_Row = tuple[int, str, str, str, str, bytes, bytes, bytes, int, int, int]
"""A row of images, in the order of the schema."""


class SqliteCatalog:
    """The catalog in the file *path*; opening it is as `SqliteFile` says."""

    def __init__(self, path: Path, *, timeout_s: float = 15.0) -> None:
        self._file = SqliteFile(path, timeout_s=timeout_s)

    def put_image(self, record: ImageRecord, objects: Mapping[str, Digest]) -> None:
        with self._file.transaction() as db:
            self._delete(db, record.image)
            image_row = db.execute(
                "INSERT INTO images VALUES (NULL,?,?,?,?,?,?,?,?,?,?)", _to_row(record)
            ).lastrowid
            db.executemany(
                "INSERT INTO objects (oid, cid, image) VALUES (?,?,?)",
                ((Digest.from_hex(oid).raw, cid.raw, image_row) for oid, cid in objects.items()),
            )
            db.execute(
                "DELETE FROM loose WHERE oid IN (SELECT oid FROM objects WHERE image = ?)",
                (image_row,),
            )

    def get_image(self, image: ImageId) -> ImageRecord:
        with self._file.reading() as db:
            row = db.execute(
                "SELECT * FROM images WHERE name = ? AND tag = ?",
                (image.name, image.tag),
            ).fetchone()
        if row is None:
            raise ImageNotFound(f"the catalog has no image {image}; push it first")
        return _from_row(row)

    def list_images(self) -> list[ImageRecord]:
        with self._file.reading() as db:
            rows = db.execute("SELECT * FROM images ORDER BY name, tag").fetchall()
        return [_from_row(row) for row in rows]

    def remove_image(self, image: ImageId) -> bool:
        with self._file.transaction() as db:
            return self._delete(db, image)

    def resolve(self, oid: str) -> Digest:
        with self._file.reading() as db:
            row = db.execute(
                "SELECT cid FROM objects WHERE oid = :oid "
                "UNION ALL SELECT cid FROM loose WHERE oid = :oid",
                {"oid": Digest.from_hex(oid).raw},
            ).fetchone()
        if row is None:
            raise ContentNotFound(f"no image has an object {oid}")
        return Digest(row[0])

    def objects_of(self, image: ImageId) -> frozenset[Digest]:
        with self._file.reading() as db:
            found = db.execute(
                "SELECT id FROM images WHERE name = ? AND tag = ?", (image.name, image.tag)
            ).fetchone()
            if found is None:
                raise ImageNotFound(f"the catalog has no image {image}; push it first")
            rows = db.execute("SELECT DISTINCT cid FROM objects WHERE image = ?", found).fetchall()
        return frozenset(Digest(cid) for (cid,) in rows)

    def name_object(self, oid: str, digest: Digest) -> None:
        row = (Digest.from_hex(oid).raw, digest.raw)
        with self._file.transaction() as db:
            db.execute("INSERT OR REPLACE INTO loose (oid, cid) VALUES (?,?)", row)

    def loose_objects(self) -> frozenset[Digest]:
        with self._file.reading() as db:
            rows = db.execute("SELECT DISTINCT cid FROM loose").fetchall()
        return frozenset(Digest(cid) for (cid,) in rows)

    def close(self) -> None:
        self._file.close()

    @staticmethod
    def _delete(db: sqlite3.Connection, image: ImageId) -> bool:
        done = db.execute("DELETE FROM images WHERE name = ? AND tag = ?", (image.name, image.tag))
        return done.rowcount > 0


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
