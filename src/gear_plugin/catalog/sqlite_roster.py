"""
The cluster's records in the file of a SQLite catalog: for one manager, or a
few on one machine.

`sqlite_file` says what the file promises.  Safe from any thread, and from
several processes.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from gear_plugin.catalog.roster import Report
from gear_plugin.catalog.sqlite_file import SqliteFile
from gear_plugin.cluster import Member, Members, Token

_POLL_S = 0.5
"""How often `wait` looks; SQLite tells nobody of changes."""
_NODE_BYTES = 16


class SqliteRoster:
    """The roster in the file *path*; opening it is as `SqliteFile` says."""

    def __init__(self, path: Path, *, timeout_s: float = 15.0) -> None:
        self._file = SqliteFile(path, timeout_s=timeout_s)

    def identity(self) -> Token:
        with self._file.reading() as db:
            row = db.execute("SELECT token FROM identity").fetchone()
        if row is None:
            self._file.hide()  # before there is a secret in it
            with self._file.transaction() as db:
                db.execute("INSERT OR IGNORE INTO identity VALUES (1, ?)", (Token.new().text(),))
                row = db.execute("SELECT token FROM identity").fetchone()
        return Token.parse(row[0])

    def join(self, node: str, address: str) -> Members:
        with self._file.transaction() as db:
            return _changed(
                db,
                """
                INSERT INTO nodes (node, address, is_live) VALUES (?, ?, 1)
                ON CONFLICT (node) DO UPDATE SET address = excluded.address, is_live = 1
                WHERE address != excluded.address OR NOT is_live
                """,
                [(node, address)],
            )

    def leave(self, node: str) -> Members:
        with self._file.transaction() as db:
            return _changed(db, "DELETE FROM nodes WHERE node = ?", [(node,)])

    def set_live(self, changes: Mapping[str, bool]) -> Members:
        with self._file.transaction() as db:
            return _changed(
                db,
                "UPDATE nodes SET is_live = ?1 WHERE node = ?2 AND is_live != ?1",
                [(int(is_live), node) for node, is_live in changes.items()],
            )

    def members(self) -> Members:
        with self._file.reading() as db:
            return _members(db)

    def wait(self, version: int, timeout_s: float) -> Members:
        deadline_s = time.monotonic() + timeout_s
        while True:
            with self._file.reading() as db:
                if _version(db) != version or time.monotonic() >= deadline_s:
                    return _members(db)
            time.sleep(max(0.0, min(_POLL_S, deadline_s - time.monotonic())))

    def report(self, manager: str, seen: Collection[str]) -> None:
        packed = b"".join(bytes.fromhex(node) for node in sorted(seen))
        with self._file.transaction() as db:
            db.execute(
                """
                INSERT INTO reports (manager, round, seen) VALUES (?, 1, ?)
                ON CONFLICT (manager) DO UPDATE SET round = round + 1, seen = excluded.seen
                """,
                (manager, packed),
            )

    def reports(self) -> dict[str, Report]:
        with self._file.reading() as db:
            rows = db.execute("SELECT manager, round, seen FROM reports").fetchall()
        return {manager: Report(number, _unpacked(seen)) for manager, number, seen in rows}

    def close(self) -> None:
        self._file.close()


def _changed(db: sqlite3.Connection, statement: str, rows: Iterable[tuple[object, ...]]) -> Members:
    """The nodes after *statement* for each of *rows*; a new version if that changed any."""
    if db.executemany(statement, rows).rowcount > 0:
        db.execute(
            """
            INSERT INTO nodes_version (one, version) VALUES (1, 1)
            ON CONFLICT (one) DO UPDATE SET version = version + 1
            """
        )
    return _members(db)


def _version(db: sqlite3.Connection) -> int:
    row = db.execute("SELECT version FROM nodes_version").fetchone()
    return int(row[0]) if row else 0


def _members(db: sqlite3.Connection) -> Members:
    rows = db.execute("SELECT node, address, is_live FROM nodes ORDER BY node").fetchall()
    nodes = tuple(Member(node, address, bool(is_live)) for node, address, is_live in rows)
    return Members(_version(db), nodes)


def _unpacked(seen: bytes) -> frozenset[str]:
    starts = range(0, len(seen), _NODE_BYTES)
    return frozenset(seen[at : at + _NODE_BYTES].hex() for at in starts)
