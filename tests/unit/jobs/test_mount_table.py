"""The kernel's list of mounts."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from gear_plugin.jobs.mount_table import Mounted, mounts_at
from gear_plugin.rootfs import unmount

_TABLE = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
90 22 0:50 / /mnt/two\\040words ro,nosuid shared:2 - nfs4 h:/a\\134b ro,vers=4.2,softerr,port=2050
91 22 0:51 / /mnt/twice rw - tmpfs first rw
92 91 0:52 / /mnt/twice ro - nfs4 h:/second rw,vers=4.1
93 22 0:53 / /mnt/\udcff rw - fuse.x y rw
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "mountinfo"
    path.write_text(_TABLE, errors="surrogateescape")
    return path


def test_a_mount_is_read_with_its_options(table: Path) -> None:
    """
    Escaped blanks and backslashes included; flags have no value.
    """
    assert mounts_at(Path("/mnt/two words"), table) == [
        Mounted(
            Path("/mnt/two words"),
            "nfs4",
            "h:/a\\b",
            is_read_only=True,
            options={"ro": "", "vers": "4.2", "softerr": "", "port": "2050"},
        )
    ]


def test_the_topmost_is_last(table: Path) -> None:
    """
    Read-only is said of the mount, not of the filesystem.
    """
    found = mounts_at(Path("/mnt/twice"), table)
    assert [(mounted.source, mounted.is_read_only) for mounted in found] == [
        ("first", False),
        ("h:/second", True),
    ]


def test_what_is_not_there_is_nothing(table: Path) -> None:
    """
    Names that are not UTF-8 are no trouble.
    """
    assert mounts_at(Path("/mnt"), table) == []
    assert [mounted.kind for mounted in mounts_at(Path(os.fsdecode(b"/mnt/\xff")), table)] == [
        "fuse.x"
    ]


@pytest.mark.root
def test_a_real_mount_is_found(tmp_path: Path) -> None:
    """
    By the kernel's own list.
    """
    target = tmp_path / "a b"
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "host:/export", target], check=True)
    try:
        (found,) = mounts_at(target)
    finally:
        unmount(target)
    assert (found.kind, found.source, found.is_read_only) == ("tmpfs", "host:/export", True)
    assert mounts_at(target) == []
