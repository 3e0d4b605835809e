"""A tree as one layer tar, read back by Gear's own scanner and by Python's tarfile."""

from __future__ import annotations

import io
import os
import tarfile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gear_plugin.digest import Digest
from gear_plugin.errors import Unsupported
from gear_plugin.image import (
    Directory,
    Inode,
    Kind,
    TarReader,
    Tree,
    flatten,
    tar_header,
    write_tree,
)
from tests.unit.image.tars import scan
from tests.unit.image.trees import MAX_ID, file, snapshot, tree_of, trees

SECOND = 10**9


def content_of(inode: Inode) -> bytes:
    """Content that is the inode's own: its size, repeated."""
    text = b"%d|" % inode.size
    return (text * (inode.size // len(text) + 1))[: inode.size]


def pack(tree: Tree) -> bytes:
    pieces = (content_of(p) if isinstance(p, Inode) else p for p in write_tree(tree))
    return b"".join(pieces)


def unpack(data: bytes) -> Tree:
    merged = flatten([TarReader(io.BytesIO(data), seekable=True)])
    for content in merged.contents:
        content.inode.digest = Digest.of(data[content.offset : content.offset + content.size])
    return merged.tree


def as_docker_keeps_it(tree: Tree) -> Tree:
    """Small contents, and nothing that a layer tar, or docker's way with times, cannot hold."""
    for path, inode in tree.walk():
        inode.mtime_ns = min(max(inode.mtime_ns, 0), 2**63 - 1)
        inode.xattrs = {key: value for key, value in inode.xattrs.items() if value}
        if path.rpartition(b"/")[2].startswith(b".wh."):
            raise AssertionError("the strategy makes no such names")
        if inode.kind is Kind.FILE:
            inode.size %= 3000
            inode.digest = Digest.of(content_of(inode)) if inode.size else None
    return tree


@settings(max_examples=50, deadline=None)
@given(trees.map(as_docker_keeps_it))
def test_unpacking_gives_the_same_tree(tree: Tree) -> None:
    """
    Every name, time, owner, xattr, link and device, the root's own metadata included.
    """
    assert snapshot(unpack(pack(tree))) == snapshot(tree)


@settings(max_examples=30, deadline=None)
@given(trees.map(as_docker_keeps_it))
def test_tarfile_reads_the_same(tree: Tree) -> None:
    """
    An oracle that shares no code with Gear.
    """
    with tarfile.open(fileobj=io.BytesIO(pack(tree)), errors="surrogateescape") as archive:
        members = archive.getmembers()
    paths = [(path or b".", inode) for path, inode in tree.walk()]
    assert [os.fsencode(m.name) for m in members] == [path for path, _ in paths]
    for member, (_, inode) in zip(members, paths, strict=True):
        assert (member.mode, member.uid, member.gid) == (inode.mode, inode.uid, inode.gid)
        assert int(member.mtime) == inode.mtime_ns // SECOND
        shown = {
            os.fsencode(key.removeprefix("SCHILY.xattr.")): os.fsencode(value)
            for key, value in member.pax_headers.items()
            if key.startswith("SCHILY.xattr.")
        }
        assert shown == dict(inode.xattrs)
        if member.type == tarfile.SYMTYPE:
            assert os.fsencode(member.linkname) == inode.target
        if member.type in (tarfile.CHRTYPE, tarfile.BLKTYPE):
            assert (member.devmajor, member.devminor) == (inode.major, inode.minor)


def test_the_same_tree_gives_the_same_bytes() -> None:
    """
    Whatever the order in which its directories were filled: the restored image's id is stable.
    """
    one, two = file(b"1"), file(b"2")
    ahead = Tree(Directory(children={b"a": one, b"b": two}))
    back = Tree(Directory(children={b"b": two, b"a": one}))
    assert pack(ahead) == pack(back)


def test_a_hard_link_repeats_owner_mode_time_and_xattrs() -> None:
    """
    Docker sets them on every name in turn, and a chown drops file capabilities.
    """
    inode = file(b"x", xattrs={b"security.capability": b"cap"})
    inode.mode, inode.uid, inode.mtime_ns = 0o4755, 33, 5 * SECOND
    first, second = scan(pack(tree_of({b"a": inode, b"b": inode})))[1:]
    assert (second.kind, second.link) == (Kind.HARDLINK, b"a")
    for field in ("mode", "uid", "gid", "mtime_ns", "xattrs"):
        assert getattr(first, field) == getattr(second, field)


@pytest.mark.parametrize("kind", [Kind.SYMLINK, Kind.FIFO, Kind.CHAR, Kind.BLOCK])
def test_anything_but_a_directory_may_be_hard_linked(kind: Kind) -> None:
    """
    Symbolic links and devices too, as on disk.
    """
    inode = Inode(kind, 0o777, 0, 0, 0, target=b"t" if kind is Kind.SYMLINK else b"")
    if kind in (Kind.CHAR, Kind.BLOCK):
        inode.major, inode.minor = 1, 3
    tree = tree_of({b"a": inode, b"d/b": inode})
    assert snapshot(unpack(pack(tree))) == snapshot(tree)


@pytest.mark.parametrize(
    ("entries", "what"),
    [
        ({b".wh.a": file()}, ".wh.a"),
        ({b"d/.wh..wh..opq": file()}, "opq"),
        ({b"c": Inode(Kind.CHAR, 0o600, 0, 0, 0)}, "'c'"),
        ({b"x": file(xattrs={b"user.a=b": b"v"})}, "user.a=b"),
        ({b"x": file(xattrs={b"user.a": b""})}, "user.a"),
    ],
)
def test_what_no_layer_can_say_is_refused(entries: dict[bytes, Inode], what: str) -> None:
    """
    Never a layer that deletes, or that silently lacks something.
    """
    with pytest.raises(Unsupported, match=what.replace(".", r"\.")):
        list(write_tree(tree_of(entries)))


_numbers = st.sampled_from([0, 1, 8**7 - 1, 8**7, MAX_ID])


@settings(max_examples=100, deadline=None)
@given(
    name=st.binary(min_size=1, max_size=300).filter(lambda n: not set(n) & {0, 0x2E, 0x2F}),
    ids=st.tuples(_numbers, _numbers),
    size=st.sampled_from([0, 8**11 - 1, 8**11, 2**62]),
    mtime_ns=st.integers(-(2**62), 2**62) | st.sampled_from([8**11 * SECOND, -1, 1, -SECOND]),
    xattr=st.binary(min_size=1, max_size=1200),
)
def test_a_header_says_whatever_linux_can_hold(
    name: bytes, ids: tuple[int, int], size: int, mtime_ns: int, xattr: bytes
) -> None:
    """
    Beyond ustar's fields too: names of any bytes, 64-bit sizes, nanoseconds before 1970.
    """
    fields: dict[str, Any] = {"size": size, "mtime_ns": mtime_ns, "xattrs": {b"user.x": xattr}}
    header = tar_header(name, Kind.FILE, 0o7777, *ids, **fields)
    member = next(iter(TarReader(io.BytesIO(header), seekable=True)))
    assert (member.name, member.mode, member.uid, member.gid) == (name, 0o7777, *ids)
    assert {field: getattr(member, field) for field in fields} == fields
