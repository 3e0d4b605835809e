"""What Linux makes of ACLs, which `image.acl` must say without it."""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path

import pytest

from gear_plugin.errors import ArchiveMalformed
from gear_plugin.image import acl

USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 0x10, 0x20
NOBODY = 0xFFFFFFFF


def xattr(*entries: tuple[int, int, int], version: int = 2) -> bytes:
    """An ACL: tag, permissions, id."""
    return struct.pack("<I", version) + b"".join(struct.pack("<HHI", *one) for one in entries)


ACLS = {
    "a named user": xattr(
        (USER_OBJ, 6, NOBODY),
        (USER, 4, 1000),
        (GROUP_OBJ, 4, NOBODY),
        (MASK, 6, NOBODY),
        (OTHER, 0, 0),
    ),
    "named groups": xattr(
        *((USER_OBJ, 7, 0), (USER, 7, 5), (USER, 0, 3), (GROUP_OBJ, 5, 0)),
        *((GROUP, 1, 9), (GROUP, 2, 8), (MASK, 7, 0), (OTHER, 5, 0)),
    ),
    "a mask and nobody named": xattr(
        (USER_OBJ, 6, 0), (GROUP_OBJ, 6, 0), (MASK, 4, 0), (OTHER, 4, 0)
    ),
    "no more than a mode": xattr((USER_OBJ, 6, 0), (GROUP_OBJ, 4, 0), (OTHER, 4, 0)),
    "empty": xattr(),
}
MODES = (0o000, 0o644, 0o4751, 0o777, 0o070)

REFUSED = {
    "another version": xattr((USER_OBJ, 6, 0), (GROUP_OBJ, 4, 0), (OTHER, 4, 0), version=1),
    "cut short": ACLS["a named user"][:-1],
    "no mask for a named user": xattr(
        (USER_OBJ, 6, 0), (USER, 4, 1000), (GROUP_OBJ, 4, 0), (OTHER, 4, 0)
    ),
    "unsorted": xattr((GROUP_OBJ, 4, 0), (USER_OBJ, 6, 0), (OTHER, 4, 0)),
    "twice the owner": xattr((USER_OBJ, 6, 0), (USER_OBJ, 6, 0), (GROUP_OBJ, 4, 0), (OTHER, 4, 0)),
    "no others": xattr((USER_OBJ, 6, 0), (GROUP_OBJ, 4, 0)),
    "unknown permissions": xattr((USER_OBJ, 8, 0), (GROUP_OBJ, 4, 0), (OTHER, 4, 0)),
    "unknown tag": xattr((USER_OBJ, 6, 0), (GROUP_OBJ, 4, 0), (OTHER, 4, 0), (0x40, 4, 0)),
    "a user without a number": xattr(
        (USER_OBJ, 6, 0), (USER, 4, NOBODY), (GROUP_OBJ, 4, 0), (MASK, 4, 0), (OTHER, 4, 0)
    ),
}


def get(path: Path, name: bytes) -> bytes | None:
    """An ACL as Linux tells it."""
    try:
        return os.getxattr(path, name)
    except OSError:
        return None


@pytest.mark.root
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("what", ACLS)
def test_the_mode_has_the_last_word(tmp_path: Path, what: str, mode: int) -> None:
    """
    Asked of Linux: setxattr, then chmod, as an untar does.
    """
    file = tmp_path / "file"
    file.touch()
    os.setxattr(file, acl.ACCESS, ACLS[what])
    file.chmod(mode)
    assert acl.after_chmod(ACLS[what], mode) == get(file, acl.ACCESS)
    assert stat.S_IMODE(file.stat().st_mode) == mode


@pytest.mark.root
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("what", ACLS)
def test_new_files_inherit(tmp_path: Path, what: str, mode: int) -> None:
    """
    Files and directories made in a directory with a default ACL; then their mode is set.
    """
    os.setxattr(tmp_path, acl.DEFAULT, ACLS[what])
    parents = acl.default(ACLS[what])
    assert parents == get(tmp_path, acl.DEFAULT)
    (tmp_path / "file").touch()
    (tmp_path / "dir").mkdir()
    for name, directory in (("file", False), ("dir", True)):
        made = tmp_path / name
        made.chmod(mode)
        said = {} if parents is None else acl.inherited(parents, mode, directory=directory)
        assert said.get(acl.ACCESS) == get(made, acl.ACCESS)
        assert said.get(acl.DEFAULT) == get(made, acl.DEFAULT)


@pytest.mark.root
@pytest.mark.parametrize("what", REFUSED)
def test_what_linux_refuses_is_malformed(tmp_path: Path, what: str) -> None:
    """
    Nothing that would make a file unreadable, or be left out without a word.
    """
    with pytest.raises(OSError, match=r"Invalid argument|not supported"):
        os.setxattr(tmp_path, acl.DEFAULT, REFUSED[what])
    with pytest.raises(ArchiveMalformed, match="ACL"):
        acl.default(REFUSED[what])
    with pytest.raises(ArchiveMalformed, match="ACL"):
        acl.after_chmod(REFUSED[what], 0o644)
