"""What only the SQLite catalog promises: a file, several users, clear errors."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gear_plugin.catalog import (
    ImageRecord,
    SqliteCatalog,
    SqliteRoster,
    is_unmade,
    open_catalog,
    sqlite_file,
)
from gear_plugin.digest import Digest, object_id
from gear_plugin.errors import BadConfig, Damaged, ImageNotFound, TimedOut, Unsupported
from gear_plugin.names import ImageId

IMAGE = ImageId("nginx", "1")
RECORD = ImageRecord(
    image=IMAGE,
    gear_image=IMAGE.gear,
    index=Digest.of(b"index"),
    original=Digest.of(b"original"),
    manifest=Digest.of(b"manifest"),
    objects=1,
    size_bytes=1,
    created_s=1,
)
OID = object_id(str(IMAGE), b"a")
OBJECTS = {OID: Digest.of(b"a")}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "catalog.sqlite"


def journal_mode(path: Path) -> str:
    with sqlite3.connect(path) as db:
        (mode,) = db.execute("PRAGMA journal_mode").fetchone()
    db.close()
    return str(mode)


@pytest.mark.parametrize("slashes", ["sqlite://", "sqlite:///"])
def test_url_names_an_absolute_path(path: Path, slashes: str) -> None:
    """With three slashes or four."""
    open_catalog(f"{slashes}{path}").close()
    assert path.exists()


@pytest.mark.parametrize("url", ["", "sqlite:", "sqlite:///", "/var/x", "mysql://host/gear"])
def test_other_urls_are_bad_config(url: str) -> None:
    """The message shows the form that is understood."""
    with pytest.raises(BadConfig, match="sqlite:///<absolute path>"):
        open_catalog(url)


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of its own."""
    volume = tmp_path / "volume"
    volume.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", volume], check=True)
    yield volume
    subprocess.run(["umount", "-l", volume], check=True)


def remount(volume: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", volume], check=True)


@pytest.mark.root
@pytest.mark.parametrize("is_local", [True, False])
def test_what_may_not_be_written_can_be_read(
    volume: Path, monkeypatch: pytest.MonkeyPatch, is_local: bool
) -> None:
    """
    As on a share that is mounted so; writing says why it does not work.
    """
    monkeypatch.setattr(sqlite_file, "is_local", lambda _path: is_local)
    path = volume / "catalog.sqlite"
    with closing(SqliteCatalog(path)) as catalog:
        catalog.put_image(RECORD, OBJECTS)
    remount(volume, "ro")
    with closing(SqliteCatalog(path)) as catalog:
        assert catalog.list_images() == [RECORD]
        assert catalog.resolve(OID) == OBJECTS[OID]
        with pytest.raises(BadConfig, match="readonly"):
            catalog.remove_image(IMAGE)
    assert [file.name for file in volume.iterdir()] == ["catalog.sqlite"]
    remount(volume, "rw")
    path.write_bytes(b"")
    remount(volume, "ro")
    with pytest.raises(BadConfig, match="no catalog yet"):
        SqliteCatalog(path)
    with pytest.raises(BadConfig):
        SqliteCatalog(volume / "other")


def test_only_who_makes_a_catalog_makes_one(path: Path) -> None:
    """
    A file that is not there, or empty, is none.
    """
    url = f"sqlite://{path}"
    assert is_unmade(url)
    path.touch()
    assert is_unmade(url)
    SqliteCatalog(path).close()
    assert not is_unmade(url)
    assert is_unmade(f"sqlite://{path}/below/a/file")
    assert not is_unmade("etcd://host")


def test_records_survive_a_reopening(path: Path) -> None:
    """The file is the catalog."""
    catalog = SqliteCatalog(path)
    catalog.put_image(RECORD, OBJECTS)
    catalog.close()
    assert open_catalog(f"sqlite://{path}").resolve(OID) == Digest.of(b"a")


def test_two_processes_see_each_other(path: Path) -> None:
    """What one has recorded, the other finds at once."""
    mine, theirs = SqliteCatalog(path), SqliteCatalog(path)
    mine.put_image(RECORD, OBJECTS)
    assert theirs.get_image(IMAGE) == RECORD
    theirs.remove_image(IMAGE)
    with pytest.raises(ImageNotFound):
        mine.get_image(IMAGE)


def test_killed_writer_leaves_no_half_image(path: Path) -> None:
    """Killed in the middle of put_image, the older record stands, whole."""
    SqliteCatalog(path).put_image(RECORD, OBJECTS)
    writer = f"""
import os
from tests.unit.catalog.test_sqlite import *
from collections import UserDict
class Deadly(UserDict):
    def items(self):
        yield OID, Digest.of(b"other")
        os.kill(os.getpid(), 9)
SqliteCatalog(Path({str(path)!r})).put_image(RECORD, Deadly())
"""
    done = subprocess.run([sys.executable, "-c", writer], cwd=Path(__file__).parents[3])
    assert done.returncode == -9
    catalog = SqliteCatalog(path)
    assert catalog.get_image(IMAGE) == RECORD
    assert catalog.resolve(OID) == Digest.of(b"a")


def test_failed_put_changes_nothing(path: Path) -> None:
    """An error in the middle rolls everything back, and the catalog goes on."""
    catalog = SqliteCatalog(path)
    catalog.put_image(RECORD, OBJECTS)

    class Broken(dict[str, Digest]):
        def items(self) -> object:  # type: ignore[override]
            raise KeyError

    with pytest.raises(KeyError):
        catalog.put_image(RECORD, Broken())
    assert catalog.objects_of(IMAGE) == {Digest.of(b"a")}


def test_wal_only_where_memory_is_shared(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a share the journal is a rollback journal, also for a file that was WAL before."""
    monkeypatch.setattr(sqlite_file, "is_local", lambda _folder: True)
    SqliteCatalog(path).close()
    assert journal_mode(path) == "wal"
    monkeypatch.setattr(sqlite_file, "is_local", lambda _folder: False)
    SqliteCatalog(path).close()
    assert journal_mode(path) == "delete"


def test_locked_for_too_long_times_out(path: Path) -> None:
    """Another writer that does not end is waited for, not for ever."""
    catalog = SqliteCatalog(path, timeout_s=0.05)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(TimedOut, match="locked"):
        catalog.put_image(RECORD, OBJECTS)
    other.execute("ROLLBACK")
    catalog.put_image(RECORD, OBJECTS)
    other.close()


def test_a_reader_waits_for_no_writer(path: Path) -> None:
    """
    `gear images` answers while a push is recording, where the journal is a WAL.
    """
    catalog = SqliteCatalog(path)
    catalog.put_image(RECORD, OBJECTS)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    other.execute("DELETE FROM images")
    reader = SqliteCatalog(path, timeout_s=0.1)
    assert reader.list_images() == [RECORD]
    other.execute("ROLLBACK")
    for opened in (reader, catalog, other):
        opened.close()


def test_newer_format_is_refused(path: Path) -> None:
    """A catalog of a later Gear is not touched."""
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(Unsupported, match="99"):
        SqliteCatalog(path)


def test_not_a_database_is_damaged(path: Path) -> None:
    """Whatever it is, it is not overwritten."""
    path.write_bytes(os.urandom(8192))
    with pytest.raises(Damaged, match=str(path)):
        SqliteCatalog(path)


def test_missing_directory_is_bad_config(tmp_path: Path) -> None:
    """The setting is wrong; nothing is made up."""
    with pytest.raises(BadConfig, match="no/such"):
        SqliteCatalog(tmp_path / "no" / "such" / "catalog")


def test_the_clusters_secret_is_not_for_everyone(path: Path) -> None:
    """From the token's making on, only the owner and its group read the file."""
    catalog = SqliteCatalog(path)
    path.chmod(0o664)
    roster = SqliteRoster(path)
    roster.identity()
    files = sorted(path.parent.iterdir())
    assert len(files) > 1  # there is a journal
    assert [file.stat().st_mode & 0o007 for file in files] == [0] * len(files)
    assert path.stat().st_mode & 0o777 == 0o660
    roster.close()
    catalog.close()


def test_an_older_file_gets_the_clusters_tables(path: Path) -> None:
    """What was there stays, and the format is the same: the older Gear goes on using it."""
    SqliteCatalog(path).put_image(RECORD, OBJECTS)
    with sqlite3.connect(path) as db:
        for table in ("loose", "identity", "nodes", "nodes_version", "reports"):
            db.execute(f"DROP TABLE {table}")
        version = db.execute("PRAGMA user_version").fetchone()
    roster = SqliteRoster(path)
    assert len(roster.join("a" * 32, "10.0.0.1:2020").nodes) == 1
    assert SqliteCatalog(path).get_image(IMAGE) == RECORD
    assert sqlite3.connect(path).execute("PRAGMA user_version").fetchone() == version
