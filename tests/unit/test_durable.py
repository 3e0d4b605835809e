"""Write-once files: whole and durable, or not there."""

from __future__ import annotations

import errno
import os
import stat
import time
from pathlib import Path

import pytest

from gear_plugin.durable import TEMP_PREFIX, is_local, remove_stale, write_once
from gear_plugin.errors import StorageFull


def test_file_appears_whole_and_read_only(tmp_path: Path) -> None:
    """Nothing is under the name before the block ends; then all is, mode 0444."""
    target = tmp_path / "file"
    with write_once(target) as file:
        file.write(b"con")
        assert not target.exists()
        file.write(b"tent")
    assert target.read_bytes() == b"content"
    assert stat.S_IMODE(target.stat().st_mode) == 0o444
    assert os.listdir(tmp_path) == ["file"]


def test_file_and_directory_are_synced_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes are on disk before they have a name, the name before we return."""
    synced: list[tuple[bool, bool]] = []
    real = os.fsync

    def spy(handle: int) -> None:
        is_directory = stat.S_ISDIR(os.fstat(handle).st_mode)
        synced.append((is_directory, (tmp_path / "file").exists()))
        real(handle)

    monkeypatch.setattr(os, "fsync", spy)
    with write_once(tmp_path / "file") as file:
        file.write(b"x")
    assert synced == [(False, False), (True, True)]


def test_failed_block_leaves_nothing(tmp_path: Path) -> None:
    """When the writer raises, the older file stands and no temporary is left."""
    target = tmp_path / "file"
    target.write_bytes(b"old")
    with pytest.raises(KeyError), write_once(target) as file:
        file.write(b"new")
        raise KeyError
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_replacing_and_not_replacing(tmp_path: Path) -> None:
    """`replace` decides who wins; the loser leaves nothing behind."""
    target = tmp_path / "file"
    with write_once(target) as file:
        file.write(b"1")
    with write_once(target) as file:
        file.write(b"2")
    with pytest.raises(FileExistsError), write_once(target, replace=False) as file:
        file.write(b"3")
    assert target.read_bytes() == b"2"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_room_is_storage_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A full filesystem is an expected error that names the place."""

    def full(_handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("gear_plugin.durable.os.fsync", full)
    with pytest.raises(StorageFull, match=str(tmp_path)), write_once(tmp_path / "file") as file:
        file.write(b"x")
    assert os.listdir(tmp_path) == []


def test_other_os_errors_stay_themselves(tmp_path: Path) -> None:
    """Only "no room" is translated; a missing directory is the caller's business."""
    with pytest.raises(FileNotFoundError), write_once(tmp_path / "no" / "file"):
        pass


def test_remove_stale_spares_the_young_and_the_named(tmp_path: Path) -> None:
    """Only temporaries, and only those that nobody can be writing any more."""
    old, young, named = (tmp_path / name for name in (f"{TEMP_PREFIX}1", f"{TEMP_PREFIX}2", "x"))
    for path in (old, young, named):
        path.touch()
    hour_ago = time.time() - 3600
    os.utime(old, (hour_ago, hour_ago))
    os.utime(named, (hour_ago, hour_ago))
    assert remove_stale(tmp_path, older_than_s=600) == 1
    assert sorted(os.listdir(tmp_path)) == sorted([young.name, "x"])


def test_remove_stale_goes_by_the_clock_it_is_given(tmp_path: Path) -> None:
    """A time as far in the future as a stale one is in the past is nobody's either."""
    ages = {"past": -700.0, "now": 0.0, "soon": 500.0, "future": 700.0}
    for name, offset_s in ages.items():
        path = tmp_path / f"{TEMP_PREFIX}{name}"
        path.touch()
        os.utime(path, (1_000_000 + offset_s, 1_000_000 + offset_s))
    assert remove_stale(tmp_path, older_than_s=600, now_s=1_000_000) == 2
    assert set(os.listdir(tmp_path)) == {f"{TEMP_PREFIX}now", f"{TEMP_PREFIX}soon"}


def test_a_filesystem_of_this_machine_is_local(tmp_path: Path) -> None:
    """Where no other machine can move a file."""
    assert is_local(tmp_path)
    assert not is_local(Path("/proc"))
