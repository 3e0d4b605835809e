"""What a stack of layers looks like once it is merged."""

from __future__ import annotations

import io
import struct

import pytest

from gear_plugin.errors import ArchiveMalformed, Unsupported
from gear_plugin.image import Directory, Inode, Kind, Member, TarReader, Tree, flatten
from tests.unit.image.tars import info, member, tar

FILE, DIR, LINK, HARD = Kind.FILE, Kind.DIR, Kind.SYMLINK, Kind.HARDLINK


def _paths(tree: Tree) -> dict[bytes, str]:
    """Every path but the root's, with its kind."""
    return {path: node.kind.name for path, node in tree.walk() if path}


def _merged(*layers: list[Member]) -> Tree:
    return flatten(layers).tree


WHITEOUTS: dict[str, tuple[list[list[Member]], dict[bytes, str]]] = {
    "a whiteout hides a file of a lower layer": (
        [[member(b"a"), member(b"b")], [member(b".wh.a")]],
        {b"b": "FILE"},
    ),
    "a whiteout hides a whole directory": (
        [[member(b"d", DIR), member(b"d/x")], [member(b".wh.d")]],
        {},
    ),
    "a whiteout spares its own layer, wherever it stands": (
        [[member(b"d", DIR), member(b"d/x")], [member(b"d"), member(b".wh.d")]],
        {b"d": "FILE"},
    ),
    "a whiteout of nothing is nothing": ([[member(b"x/.wh.y"), member(b".wh.z")]], {}),
    "an opaque directory hides what lower layers have in it": (
        [[member(b"d/x"), member(b"d/e/y")], [member(b"d", DIR), member(b"d/.wh..wh..opq")]],
        {b"d": "DIR"},
    ),
    "an opaque whiteout after its siblings spares them": (
        [
            [member(b"d/e/low"), member(b"d/x")],
            [member(b"d/e/new"), member(b"d/y"), member(b"d/.wh..wh..opq")],
        ],
        {b"d": "DIR", b"d/e": "DIR", b"d/e/new": "FILE", b"d/y": "FILE"},
    ),
    "an opaque root starts anew": ([[member(b"a")], [member(b".wh..wh..opq")]], {}),
    "AUFS's own files are ignored": (
        [[member(b".wh..wh.plnk", DIR), member(b".wh..wh.plnk/1.2"), member(b".wh..wh.aufs")]],
        {},
    ),
    "hard links lead to AUFS's own files": (
        [
            [
                member(b".wh..wh.plnk/1.2"),
                member(b"a", Kind.HARDLINK, link=b".wh..wh.plnk/1.2"),
                member(b"d/b", Kind.HARDLINK, link=b".wh..wh.plnk/1.2"),
            ]
        ],
        {b"a": "FILE", b"d": "DIR", b"d/b": "FILE"},
    ),
    "a 0:0 device is overlayfs's whiteout": (
        [[member(b"a"), member(b"b")], [member(b"a", Kind.CHAR), member(b"c", Kind.CHAR)]],
        {b"b": "FILE"},
    ),
    "a layer above brings a name back": (
        [[member(b"a")], [member(b".wh.a")], [member(b"a", DIR)]],
        {b"a": "DIR"},
    ),
    "a whiteout through a lower layer's link does not reach its target": (
        [[member(b"real/x"), member(b"l", LINK, link=b"real")], [member(b"l/.wh.x")]],
        {b"real": "DIR", b"real/x": "FILE", b"l": "SYMLINK"},
    ),
}


@pytest.mark.parametrize(("layers", "left"), WHITEOUTS.values(), ids=WHITEOUTS.keys())
def test_whiteouts(layers: list[list[Member]], left: dict[bytes, str]) -> None:
    """
    Whiteouts hide what lower layers have, and nothing else (OCI image-spec, layer.md).
    """
    assert _paths(_merged(*layers)) == left


@pytest.mark.parametrize("name", [b".wh.", b"d/.wh..", b"d/.wh..."])
def test_a_whiteout_needs_a_name(name: bytes) -> None:
    """
    `.wh.` alone would hide its own directory.
    """
    with pytest.raises(ArchiveMalformed, match="whiteout of nothing"):
        _merged([member(name)])


def test_a_directory_over_a_directory_changes_metadata_alone() -> None:
    """
    The children of the lower one stay; mode, owner, time and xattrs are the upper one's.
    """
    xattrs = {b"user.a": b"1"}
    tree = _merged(
        [member(b"d", DIR, mode=0o700, xattrs={b"user.b": b""}), member(b"d/x")],
        [member(b"d", DIR, mode=0o1777, uid=5, gid=6, mtime_ns=7, xattrs=xattrs)],
    )
    directory = tree.lookup(b"d")
    assert isinstance(directory, Directory)
    assert (directory.mode, directory.uid, directory.gid) == (0o1777, 5, 6)
    assert (directory.mtime_ns, directory.xattrs) == (7, xattrs)
    assert list(directory.children) == [b"x"]


@pytest.mark.parametrize(
    ("lower", "upper", "left"),
    [
        (member(b"a", DIR), member(b"a"), {b"a": "FILE"}),
        (member(b"a/x"), member(b"a", LINK, link=b"y"), {b"a": "SYMLINK"}),
        (member(b"a", LINK, link=b"/"), member(b"a", DIR), {b"a": "DIR"}),
        (member(b"a"), member(b"a/x"), {b"a": "DIR", b"a/x": "FILE"}),
    ],
)
def test_anything_else_replaces(lower: Member, upper: Member, left: dict[bytes, str]) -> None:
    """
    Only two directories merge.
    """
    assert _paths(_merged([lower], [upper])) == left


def test_missing_parents_are_made_and_the_root_entry_counts() -> None:
    """
    Parents without an entry are 0755 root:root at time 0; the root has what its entry says.
    """
    tree = _merged([member(b"", DIR, mode=0o750, uid=9), member(b"a/b/c")])
    made = tree.lookup(b"a/b")
    assert made is not None
    assert (made.mode, made.uid, made.gid, made.mtime_ns) == (0o755, 0, 0, 0)
    assert (tree.root.mode, tree.root.uid) == (0o750, 9)


def test_a_root_that_is_no_directory_is_malformed() -> None:
    """
    The root cannot be replaced.
    """
    with pytest.raises(ArchiveMalformed, match="the root is a symbolic link"):
        _merged([member(b"", LINK, link=b"x")])


def test_hard_links_share_their_inode_until_one_is_replaced() -> None:
    """
    Two names, one inode; a new file under one of them leaves the other alone.
    """
    lower = [member(b"a", size=3), member(b"d/b", HARD, link=b"a")]
    tree = _merged(lower)
    assert tree.lookup(b"a") is tree.lookup(b"d/b")
    flattened = flatten([lower, [member(b"a", size=5)]])
    sizes = {path: node.size for path, node in flattened.tree.walk() if node.kind is FILE}
    assert sizes == {b"a": 5, b"d/b": 3}
    places = [(content.layer, content.offset, content.size) for content in flattened.contents]
    assert places == [(0, 0, 3), (1, 0, 5)]


def test_a_hard_link_s_own_header_counts_for_all_its_names() -> None:
    """
    As docker unpacks it: owner, mode, time and xattrs of the last name; the new owner costs
    the capability, as in Linux.
    """
    xattrs = {b"security.capability": b"c", b"user.kept": b"k", b"user.old": b"o"}
    first = member(b"a", size=1, mode=0o4755, uid=1, gid=1, mtime_ns=1, xattrs=xattrs)
    again = {b"user.old": b"n"}
    link = member(b"b", HARD, link=b"a", mode=0o600, uid=5, gid=6, mtime_ns=7, xattrs=again)
    inode = _merged([first, link]).lookup(b"a")
    assert inode is not None
    assert (inode.mode, inode.uid, inode.gid, inode.mtime_ns) == (0o600, 5, 6, 7)
    assert inode.xattrs == {b"user.kept": b"k", b"user.old": b"n"}


def test_a_hard_link_to_a_symlink_changes_its_owner_alone() -> None:
    """
    There is no chmod of a symlink, and docker leaves its time as well.
    """
    first = member(b"s", LINK, link=b"x", mode=0o777, mtime_ns=1)
    again = member(b"t", HARD, link=b"s", mode=0o600, uid=5, mtime_ns=7)
    inode = _merged([first, again]).lookup(b"s")
    assert inode is not None
    assert (inode.mode, inode.uid, inode.mtime_ns) == (0o777, 5, 1)


def test_equal_xattrs_are_one_mapping() -> None:
    """
    A label on each of 100,000 files costs nothing.
    """
    label = {b"security.selinux": b"system_u:object_r:usr_t:s0"}
    tree = _merged([member(b"a", xattrs=dict(label)), member(b"b", xattrs=dict(label))])
    first, second = tree.lookup(b"a"), tree.lookup(b"b")
    assert first is not None
    assert second is not None
    assert first.xattrs is second.xattrs
    assert first.xattrs == label


def test_a_hard_link_may_lead_to_a_lower_layer_and_outlive_its_target() -> None:
    """
    The merged tree is what a link resolves in; a symlink itself can be its target.
    """
    tree = _merged(
        [member(b"a", size=1), member(b"s", LINK, link=b"a")],
        [member(b"b", HARD, link=b"a"), member(b"t", HARD, link=b"s")],
        [member(b".wh.a")],
    )
    assert _paths(tree) == {b"b": "FILE", b"s": "SYMLINK", b"t": "SYMLINK"}
    assert tree.lookup(b"s") is tree.lookup(b"t")


@pytest.mark.parametrize(("link", "reason"), [(b"gone", "not there"), (b"d", "to a directory")])
def test_a_hard_link_needs_a_file(link: bytes, reason: str) -> None:
    """
    A link to nothing, or to a directory, is no layer that any untar could unpack.
    """
    with pytest.raises(ArchiveMalformed, match=reason):
        _merged([member(b"d", DIR), member(b"x", HARD, link=link)])


@pytest.mark.parametrize(
    ("target", "lands"),
    [
        (b"/etc", b"etc/x"),
        (b"etc", b"etc/x"),
        (b"../../../etc", b"etc/x"),
        (b"./usr/../etc/.", b"etc/x"),
        (b"new/deep", b"new/deep/x"),
    ],
)
def test_a_linked_parent_is_followed_inside_the_tree(target: bytes, lands: bytes) -> None:
    """
    As in a chroot: absolute targets start at the image's root, and `..` stops there.
    """
    tree = _merged(
        [
            member(b"etc", DIR),
            member(b"usr", DIR),
            member(b"a", LINK, link=target),
            member(b"a/x", size=4),
        ]
    )
    found = tree.lookup(lands)
    assert found is not None
    assert found.size == 4
    assert tree.lookup(b"a") is not None


def test_a_parent_that_is_a_lower_layers_link_becomes_a_directory() -> None:
    """
    docker unpacks each layer by itself, so a container shows the directory.
    """
    lower = [member(b"usr/lib/a"), member(b"lib", LINK, link=b"usr/lib")]
    assert _paths(_merged(lower, [member(b"lib/b")])) == {
        b"usr": "DIR",
        b"usr/lib": "DIR",
        b"usr/lib/a": "FILE",
        b"lib": "DIR",
        b"lib/b": "FILE",
    }


def test_a_relinked_parent_leads_to_its_new_place() -> None:
    """
    What a path resolved to before is forgotten when a link on it is replaced.
    """
    tree = _merged(
        [member(b"l", LINK, link=b"one"), member(b"l/x")],
        [member(b"l", LINK, link=b"two"), member(b"l/y")],
        [member(b"l", DIR), member(b"l/z")],
    )
    files = {path for path, kind in _paths(tree).items() if kind == "FILE"}
    assert files == {b"one/x", b"two/y", b"l/z"}


def test_a_loop_of_links_is_malformed() -> None:
    """
    Resolving is bounded, as in Linux.
    """
    loop = [member(b"a", LINK, link=b"b"), member(b"b", LINK, link=b"a"), member(b"a/x")]
    with pytest.raises(ArchiveMalformed, match="too many symbolic links"):
        _merged(loop)


def test_nesting_deeper_than_any_path_is_unsupported() -> None:
    """
    Links that lead ever deeper cannot grow a tree without bound.
    """
    deep = b"/".join([b"d"] * 2000)
    with pytest.raises(Unsupported, match="nested deeper"):
        _merged([member(b"l", LINK, link=deep), member(b"l/m", LINK, link=deep), member(b"l/m/x")])


def test_only_xattrs_that_a_container_would_see_survive() -> None:
    """
    overlayfs's own go, and those that Linux refuses on this kind of file.
    """
    xattrs = {
        b"trusted.overlay.redirect": b"/etc/shadow",
        b"trusted.overlay.opaque": b"y",
        b"trusted.x": b"1",
        b"security.capability": b"2",
        b"system.posix_acl_access": ACL,
        b"system.posix_acl_default": ACL,  # for directories alone
        b"system.nfs4_acl": b"4",
        b"com.apple.provenance": b"5",
        b"user.x": b"6",
    }
    tree = _merged([member(b"f", xattrs=xattrs), member(b"l", LINK, link=b"f", xattrs=xattrs)])
    left = [b"security.capability", b"system.posix_acl_access", b"trusted.x", b"user.x"]
    file, link = tree.lookup(b"f"), tree.lookup(b"l")
    assert file is not None
    assert link is not None
    assert list(file.xattrs) == left
    assert list(link.xattrs) == [b"security.capability", b"trusted.x"]


ACL_ENTRIES = ((1, 6, 2**32 - 1), (2, 4, 1000), (4, 4, 2**32 - 1), (16, 4, 2**32 - 1))


def acl_of(*entries: tuple[int, int, int]) -> bytes:
    """A POSIX ACL as an xattr: tag, permissions, id; see tests of `image.acl`."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


ACL = acl_of(*ACL_ENTRIES, (32, 0, 2**32 - 1))
"""u::rw-, u:1000:r--, g::r--, m::r--, o::---"""


def test_acls_are_set_before_the_mode_and_inherited_within_a_layer() -> None:
    """
    As unpacking does: mask and others are the mode's, and lower layers' defaults count for nothing.
    """
    default = {b"system.posix_acl_default": ACL}
    lower = [member(b"d", DIR, mode=0o755, xattrs=default), member(b"low", DIR, xattrs=default)]
    lower += [member(b"d/f", mode=0o666), member(b"d/e", DIR, mode=0o700)]
    tree = _merged(lower, [member(b"low/f")])
    file, inner = tree.lookup(b"d/f"), tree.lookup(b"d/e")
    assert file is not None
    assert inner is not None
    masked = [(16, 6, 2**32 - 1), (32, 6, 2**32 - 1)]
    assert file.xattrs == {b"system.posix_acl_access": acl_of(*ACL_ENTRIES[:3], *masked)}
    assert inner.xattrs[b"system.posix_acl_default"] == ACL
    upper = tree.lookup(b"low/f")
    assert upper is not None
    assert upper.xattrs == {}


@pytest.mark.parametrize("name", [b"d/new", b"d/.wh.old", b"d/.wh..wh..opq"])
def test_a_directory_that_a_layer_uses_and_does_not_name_is_roots(name: bytes) -> None:
    """
    docker makes it anew in the layer's folder, and it hides the lower layer's; its time stays.
    """
    lower = [member(b"d", DIR, mode=0o1777, uid=5, mtime_ns=7, xattrs={b"user.x": b"1"})]
    tree = _merged([*lower, member(b"d/old")], [member(name)])
    found = tree.lookup(b"d")
    assert found is not None
    assert (found.mode, found.uid, found.gid, found.mtime_ns) == (0o755, 0, 0, 7)
    assert found.xattrs == {}
    named = _merged([*lower, member(b"d/old")], [member(name), member(b"d", DIR, mode=0o1777)])
    again = named.lookup(b"d")
    assert again is not None
    assert again.mode == 0o1777


def test_an_owner_that_chown_does_not_take_is_root() -> None:
    """
    To chown(2), 2**32 - 1 means "leave it"; docker's unpacked file stays root's.
    """
    none = 2**32 - 1
    tree = _merged([member(b"f", uid=none, gid=none), member(b"d", DIR, uid=none, gid=none)])
    assert {(node.uid, node.gid) for _, node in tree.walk()} == {(0, 0)}


@pytest.mark.parametrize(
    ("mtime_ns", "seen"), [(-1, 0), (0, 0), (2**63 - 1, 2**63 - 1), (2**63, 0)]
)
def test_times_that_docker_does_not_apply_become_1970(mtime_ns: int, seen: int) -> None:
    """
    Before 1970, or past what 64 bits of nanoseconds hold, is 1970 for files and directories.
    """
    tree = _merged([member(b"f", mtime_ns=mtime_ns), member(b"d", DIR, mtime_ns=mtime_ns)])
    assert {node.mtime_ns for path, node in tree.walk() if path} == {seen}


@pytest.mark.parametrize(("mtime_ns", "seen"), [(-1, -1), (-(2**63), -(2**63)), (2**63, 0)])
def test_symbolic_links_keep_their_time_before_1970(mtime_ns: int, seen: int) -> None:
    """
    docker sets a link's time by another call, which does not cut it off.
    """
    tree = _merged([member(b"s", LINK, link=b"x", mtime_ns=mtime_ns)])
    assert {node.mtime_ns for path, node in tree.walk() if path} == {seen}


def test_contents_are_those_that_won_in_reading_order() -> None:
    """
    Replaced, hidden and empty files are not read; the rest comes layer by layer, forwards.
    """
    lower = tar((info("z"), b"zz"), (info("a"), b"old"), (info("e"), b""), (info("h"), b"gone"))
    upper = tar((info("a"), b"new!"), info(".wh.h"))
    layers = [lower, upper]
    flattened = flatten([TarReader(io.BytesIO(layer), seekable=True) for layer in layers])
    read: dict[Inode | None, bytes] = {
        content: layers[content.layer][content.offset : content.offset + content.size]
        for content in flattened.contents
    }
    tree = flattened.tree
    assert list(read.values()) == [b"zz", b"new!"]
    assert [read.get(tree.root.children[name]) for name in (b"a", b"e", b"z")] == [
        b"new!",
        None,
        b"zz",
    ]
