"""Whole trees over FUSE, held against the kernel's own view of the same index."""

from __future__ import annotations

import mmap
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gear_plugin.digest import Digest
from gear_plugin.image import Directory, Inode, Kind, Tree, write_erofs
from gear_plugin.rootfs import mount_index
from gear_plugin.rootfs.syscalls import mounts, unmount

from . import fuse_daemon

pytestmark = pytest.mark.root

PROGRAM = b"#!/bin/sh\necho it runs\n"
LARGE = os.urandom(3 << 20)
CAPABILITY = bytes.fromhex("01000002 00200000 00000000 00000000 00000000")
ACL = bytes.fromhex("02000000 01000600ffffffff 04000400ffffffff 10000600ffffffff 20000400ffffffff")


def odd_tree() -> Tree:
    """One of everything that an index can hold."""

    def file(content: bytes, mode: int = 0o644, **fields: object) -> Inode:
        digest = Digest.of(content) if content else None
        return Inode(Kind.FILE, mode, 0, 0, 0, len(content), digest=digest, **fields)  # type: ignore[arg-type]

    program = file(
        PROGRAM, 0o4755, xattrs={b"user.note": b"kept", b"security.capability": CAPABILITY}
    )
    program.mtime_ns = 1_500_000_000_123_456_789
    program.uid, program.gid = 1000, 4294967294
    tree = Tree(Directory(0o750, 1, 2, 1_000_000_001))
    tree.root.children.update(
        {
            b"program": program,
            b"again": program,
            b"large": file(LARGE),
            b"zero": file(b""),
            b"acl": file(b"acl", 0o664, xattrs={b"system.posix_acl_access": ACL}),
            b"link": Inode(Kind.SYMLINK, 0o777, 0, 0, 5, target=b"program"),
            b"long": Inode(Kind.SYMLINK, 0o777, 0, 0, 5, target=b"x" * 4095),
            b"null": Inode(Kind.CHAR, 0o666, 0, 0, 0, major=1, minor=3),
            b"disk": Inode(Kind.BLOCK, 0o660, 0, 6, 0, major=259, minor=70000),
            b"fifo": Inode(Kind.FIFO, 0o600, 7, 8, 0),
            b"latin-\xe9": file(b"x"),
            b"n" * 255: Directory(0o1777),
            b"many": Directory(
                children={b"%05d" % number: file(b"%d" % (number % 7)) for number in range(5000)}
            ),
        }
    )
    return tree


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """The odd tree on `tree`, the kernel's view of its index on `kernel`."""
    for name in ("tree", "kernel", "private", "supply"):
        (tmp_path / name).mkdir()
    (tmp_path / "index.erofs").write_bytes(write_erofs(odd_tree()))
    mount_index(tmp_path / "index.erofs", tmp_path / "kernel", loop=False)
    for content in (PROGRAM, LARGE, b"acl", b"x", *(b"%d" % number for number in range(7))):
        target = tmp_path / "supply" / Digest.of(content).shard_path
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(content)
    paths = [str(tmp_path / name) for name in ("tree", "private", "supply", "index.erofs")]
    daemon = subprocess.Popen(
        [sys.executable, fuse_daemon.__file__, *paths, "alone"], stdout=subprocess.PIPE, text=True
    )
    assert daemon.stdout is not None
    try:
        assert daemon.stdout.readline() == "ready\n"
        yield tmp_path / "tree"
    finally:
        for point in [point for point, _ in mounts() if tmp_path in point.parents][::-1]:
            unmount(point, lazy=True)
        try:
            # Unmounting is how it is stopped.
            assert daemon.wait(20) == 0
        finally:
            daemon.kill()
            daemon.wait()
            daemon.stdout.close()


def seen(root: Path) -> dict[bytes, tuple[object, ...]]:
    """Every path with all that can be asked of it without opening it."""
    found: dict[bytes, tuple[object, ...]] = {}
    stack = [os.fsencode(root)]
    while stack:
        path = stack.pop()
        status = os.lstat(path)
        is_directory = stat.S_ISDIR(status.st_mode)
        xattrs = {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
            if not name.startswith("trusted.overlay.")
        }
        found[path.removeprefix(os.fsencode(root))] = (
            *(status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_rdev),
            *(status.st_nlink, 0 if is_directory else status.st_size),
            os.readlink(path) if stat.S_ISLNK(status.st_mode) else b"",
            xattrs,
        )
        if is_directory:
            stack += [path + b"/" + name for name in os.listdir(path)]
    return found


def test_metadata_is_what_the_kernel_reads_from_the_index(tree: Path) -> None:
    """
    Two readers of one EROFS image, ours and the kernel's, agree on every inode.
    """
    assert seen(tree) == seen(tree.with_name("kernel"))


def test_files_read_and_run(tree: Path) -> None:
    """
    Content, exec, mmap and a large file at an offset.
    """
    assert subprocess.check_output([tree / "program"]) == b"it runs\n"
    assert (tree / "large").read_bytes() == LARGE
    with (tree / "large").open("rb") as file:
        assert os.pread(file.fileno(), 100, 2_000_001) == LARGE[2_000_001:2_000_101]
    assert (tree / "zero").read_bytes() == b""
    assert (tree / "many/00012").read_bytes() == b"5"


def test_hard_links_are_one_inode(tree: Path) -> None:
    """
    What `tar`, `rsync -H` and `du` go by.
    """
    assert (tree / "program").stat().st_ino == (tree / "again").stat().st_ino


@pytest.mark.parametrize(
    "command",
    [
        "cp -a tree/. copy",
        "rsync -aHAX --devices --specials tree/ copy",
        "tar -C tree --xattrs --xattrs-include=* --acls -cf - . | tar -C copy --xattrs "
        "--xattrs-include=* --acls -xpf -",
    ],
    ids=["cp", "rsync", "tar"],
)
def test_it_can_be_copied_whole(tree: Path, command: str) -> None:
    """
    The usual tools give the same tree again.
    """
    copy = tree.with_name("copy")
    copy.mkdir()
    subprocess.run(command, shell=True, cwd=tree.parent, check=True)
    assert seen(copy) == seen(tree)
    assert (copy / "large").read_bytes() == LARGE


def test_find_and_mmap_work(tree: Path) -> None:
    """
    What readdir says of types, and pages of a mapped file.
    """
    found = subprocess.check_output(["find", tree, "-type", "f", "-name", "0001?"]).splitlines()
    assert len(found) == 10
    with (tree / "large").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as m:
        assert m[1_000_000:1_000_100] == LARGE[1_000_000:1_000_100]


def test_nothing_can_be_written(tree: Path) -> None:
    """
    An image never changes.
    """
    for change in (
        lambda: (tree / "program").write_bytes(b"x"),
        (tree / "new").mkdir,
        (tree / "zero").unlink,
        lambda: (tree / "zero").chmod(0o777),
    ):
        with pytest.raises(OSError, match="Read-only file system"):
            change()


def test_a_missing_object_is_eio_and_reads_once_it_is_there(tree: Path) -> None:
    """
    Never an empty file, and no memory of the failure.
    """
    kept = tree.with_name("supply") / Digest.of(PROGRAM).shard_path
    kept.rename(tree.with_name("away"))
    with pytest.raises(OSError, match="Input/output error"):
        (tree / "program").read_bytes()
    tree.with_name("away").rename(kept)
    assert (tree / "program").read_bytes() == PROGRAM
