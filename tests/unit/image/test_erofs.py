"""index.erofs: written, read back, checked by fsck.erofs and mounted by the kernel."""

from __future__ import annotations

import os
import random
import shutil
import stat
import struct
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from gear_plugin.digest import Digest
from gear_plugin.errors import Unsupported
from gear_plugin.image import Directory, Inode, Kind, Tree, read_erofs, write_erofs
from tests.unit.image.trees import MAX_ID, file, snapshot, tree_of, trees

_TYPES = {
    Kind.FILE: stat.S_ISREG,
    Kind.DIR: stat.S_ISDIR,
    Kind.SYMLINK: stat.S_ISLNK,
    Kind.CHAR: stat.S_ISCHR,
    Kind.BLOCK: stat.S_ISBLK,
    Kind.FIFO: stat.S_ISFIFO,
}
_NOBODY = 0xFFFFFFFF
_CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)  # net_raw, effective
_BIG = {b"user.big": b"v" * 60_000, b"security.capability": _CAPABILITY}
# version 2; owner, user 12, group, mask, others: tag, permissions, id
_ACL = struct.pack(
    "<I" + "HHI" * 5,
    *(2, 1, 7, _NOBODY, 2, 5, 12, 4, 5, _NOBODY, 16, 5, _NOBODY, 32, 0, _NOBODY),
)


def _everything() -> Tree:
    """One tree with every case that the format treats on its own."""
    linked = file(b"linked", xattrs=_BIG)
    entries: dict[bytes, Inode] = {
        b"empty": file(b""),
        b"empty-dir": Directory(mode=0o1777, mtime_ns=-1),
        b"linked": linked,
        b"d/again": linked,
        b"n" * 255: file(b"n", xattrs={b"user." + b"x" * 250: b"", b"trusted.y": b"y" * 3}),
        b"acl": file(b"acl", xattrs={b"system.posix_acl_access": _ACL}),
        b"acl-dir": Directory(xattrs={b"system.posix_acl_default": _ACL}),
        b"old": Inode(Kind.FILE, 0o6755, MAX_ID, MAX_ID, -(10**9) * 2**31 + 5),
        b"huge": Inode(Kind.FILE, 0o444, 1, 2, 2**34 * 10**9 + 999_999_999, size=2**43),
        b"fifo": Inode(Kind.FIFO, 0o600, 0, 0, 1),
        b"char": Inode(Kind.CHAR, 0o666, 0, 5, 1, major=0xFFF, minor=0xFFFFF),
        b"block": Inode(Kind.BLOCK, 0o660, 0, 6, 1, major=0, minor=0),
        b"short": Inode(Kind.SYMLINK, 0o777, 0, 0, 1, target=b"../x"),
        b"long": Inode(Kind.SYMLINK, 0o777, 0, 0, 1, target=b"t" * 4095),
        b"far": Inode(
            Kind.SYMLINK, 0o777, 0, 0, 1, target=b"t" * 40, xattrs={b"trusted.z": b"z" * 5000}
        ),
        b"heavy": Directory(xattrs={b"user.h": b"h" * 5000}),
        b"heavy/!": file(b"!"),
    }
    entries[b"huge"].digest = Digest.of(b"huge")
    for number in range(300):
        entries[b"wide/" + b"w%03d" % number * 30] = file(b"%d" % number)
    return tree_of(entries)


def _assert_mounted(root: Path, tree: Tree) -> None:
    """Every stat, xattr, readdir and readlink under *root* is what *tree* says."""
    names = Counter(node for _, node in tree.walk())
    numbers: dict[int, Inode] = {}
    for path, node in tree.walk():
        at = root / os.fsdecode(path)
        found = os.lstat(at)
        assert _TYPES[node.kind](found.st_mode)
        assert stat.S_IMODE(found.st_mode) == node.mode
        assert (found.st_uid, found.st_gid) == (node.uid, node.gid)
        assert found.st_mtime_ns == node.mtime_ns
        assert numbers.setdefault(found.st_ino, node) is node
        xattrs = {
            os.fsencode(name): os.getxattr(at, name, follow_symlinks=False)
            for name in os.listxattr(at, follow_symlinks=False)
        }
        expected = dict(node.xattrs)
        if node.digest is not None:
            expected[b"trusted.overlay.metacopy"] = b""
            expected[b"trusted.overlay.redirect"] = b"/" + node.digest.shard_path.encode()
        assert xattrs == expected
        if isinstance(node, Directory):
            assert sorted(os.fsencode(inner.name) for inner in at.iterdir()) == sorted(
                node.children
            )
            inner = sum(isinstance(child, Directory) for child in node.children.values())
            assert found.st_nlink == 2 + inner
            continue
        assert found.st_nlink == names[node]
        if node.kind is Kind.FILE:
            assert found.st_size == node.size
        elif node.kind is Kind.SYMLINK:
            assert os.fsencode(os.readlink(at)) == node.target
        else:
            device = (os.major(found.st_rdev), os.minor(found.st_rdev))
            assert device == (node.major, node.minor)


@settings(max_examples=120, deadline=None)
@given(trees)
def test_what_was_written_is_read(tree: Tree) -> None:
    """
    Reading gives the same tree back, hard links included, and writing that the same bytes.
    """
    image = write_erofs(tree)
    found = read_erofs(image)
    assert snapshot(found) == snapshot(tree)
    assert write_erofs(found) == image


def test_every_special_case_survives_the_round_trip() -> None:
    """
    Large xattrs, long names and links, odd times and devices, wide directories.
    """
    tree = _everything()
    assert snapshot(read_erofs(write_erofs(tree))) == snapshot(tree)


def test_the_order_in_which_a_tree_was_made_does_not_matter() -> None:
    """
    Same tree, same bytes.
    """
    entries = {b"d/%d" % number: file(b"%d" % number) for number in range(500)}
    entries[b"x"] = file(b"x", xattrs={b"user.a": b"1", b"user.b": b"2"})
    shuffled = list(entries.items())
    random.Random(7).shuffle(shuffled)
    again = file(b"x", xattrs={b"user.b": b"2", b"user.a": b"1"})
    assert write_erofs(tree_of(entries)) == write_erofs(tree_of({**dict(shuffled), b"x": again}))


def test_a_directory_of_ten_thousand_names() -> None:
    """
    Names are shared out over blocks in strict order, `.` and `..` among them.
    """
    tree = tree_of({b"d/!%d-%d" % (n * 7919 % 10_007, n): file(b"%d" % n) for n in range(10_000)})
    assert snapshot(read_erofs(write_erofs(tree))) == snapshot(tree)


def test_a_file_costs_192_bytes_and_its_name() -> None:
    """
    The size that docs/index-format.md promises.
    """
    few, many = (
        len(write_erofs(tree_of({b"%06d" % n: file(b"%d" % n) for n in range(count)})))
        for count in (1000, 11_000)
    )
    # 12 bytes and the name's own 6 in the directory.
    assert (many - few) / 10_000 == pytest.approx(192 + 12 + 6, abs=5)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({b"n" * 256: file()}, "name longer"),
        ({b"/".join([b"n" * 250] * 17): file()}, "name longer"),
        ({b"l": Inode(Kind.SYMLINK, 0o777, 0, 0, 0, target=b"t" * 4096)}, "symbolic link of 4096"),
        ({b"l": Inode(Kind.SYMLINK, 0o777, 0, 0, 0)}, "symbolic link of 0"),
        ({b"c": Inode(Kind.CHAR, 0, 0, 0, 0, major=0x1000)}, "no such device"),
        ({b"p": Inode(Kind.FIFO, 0, 2**32 - 1, 0, 0)}, "has the owner"),
        ({b"f": Inode(Kind.FILE, 0, 0, 0, 0, size=2**43 + 1, digest=Digest.of(b""))}, "limit"),
        ({b"f": file(b"", xattrs={b"user." + b"x" * 256: b""})}, "too large"),
        ({b"f": file(b"", xattrs={b"user.x": bytes(65_536)})}, "too large"),
        ({b"f": file(b"", xattrs={b"user.%d" % n: bytes(65_000) for n in range(5)})}, "xattrs on"),
        ({b"f": file(b"", xattrs={b"system.nfs4_acl": b""})}, "cannot hold"),
        ({b"f": file(b"", xattrs={b"trusted.overlay.opaque": b"y"})}, "cannot be carried"),
    ],
)
def test_what_cannot_be_written_is_unsupported(entries: dict[bytes, Inode], reason: str) -> None:
    """
    No limit of Linux or of the format is passed in silence.
    """
    with pytest.raises(Unsupported, match=reason):
        write_erofs(tree_of(entries))


@pytest.mark.skipif(shutil.which("fsck.erofs") is None, reason="needs erofs-utils")
def test_fsck_and_dump_accept_it(tmp_path: Path) -> None:
    """
    An independent implementation finds nothing to complain about.
    """
    image = tmp_path / "index.erofs"
    image.write_bytes(write_erofs(_everything()))
    checked = subprocess.run(["fsck.erofs", image], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout) == (0, "")
    command = ["dump.erofs", "--path=/d/again", str(image)]
    dumped = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Links: 2" in dumped.stdout
    assert "Layout: 4" in dumped.stdout


@pytest.mark.root
def test_the_kernel_sees_every_special_case(mount_erofs: Callable[[bytes], Path]) -> None:
    """
    The mounted image shows what the tree says, to the last xattr.
    """
    tree = _everything()
    _assert_mounted(mount_erofs(write_erofs(tree)), tree)


@pytest.mark.root
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(tree=trees)
def test_the_kernel_sees_random_trees(mount_erofs: Callable[[bytes], Path], tree: Any) -> None:
    """
    Random trees, mounted, show what they are.
    """
    _assert_mounted(mount_erofs(write_erofs(tree)), tree)
