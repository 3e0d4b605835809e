"""Random trees, and a form of them that can be compared."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from gear_plugin.digest import Digest
from gear_plugin.image import NO_XATTRS, Directory, Inode, Kind, Tree

MAX_ID = 2**32 - 2
"""The largest owner that Linux shows as it is; 2**32 - 1 means "none"."""


def snapshot(tree: Tree) -> dict[bytes, tuple[Any, ...]]:
    """Every path with all that its inode holds, and the first path of the same inode."""
    first: dict[Inode, bytes] = {}
    return {
        path: (
            *(node.kind, node.mode, node.uid, node.gid, node.mtime_ns, node.size, node.target),
            *(node.major, node.minor, dict(node.xattrs), node.digest),
            first.setdefault(node, path),
        )
        for path, node in tree.walk()
    }


def file(content: bytes = b"content", **fields: Any) -> Inode:
    """A regular file; its digest is that of *content*."""
    inode = Inode(Kind.FILE, 0o644, 0, 0, 0, size=len(content), **fields)
    inode.digest = Digest.of(content) if content else None
    return inode


def tree_of(entries: dict[bytes, Inode]) -> Tree:
    """A tree with these paths; missing directories are made."""
    tree = Tree()
    for path, inode in entries.items():
        *folders, name = path.split(b"/")
        directory = tree.root
        for folder in folders:
            child = directory.children.setdefault(folder, Directory())
            assert isinstance(child, Directory)
            directory = child
        directory.children[name] = inode
    return tree


_bytes = st.integers(1, 255).filter(lambda byte: byte != 0x2F)
names = st.one_of(
    st.lists(_bytes, min_size=1, max_size=12).map(bytes),
    st.lists(_bytes, min_size=255, max_size=255).map(bytes),
    st.sampled_from([b"!", b"-", b"...", b".a", b"..a"]),
).filter(lambda name: name not in (b".", b".."))
_targets = st.lists(_bytes | st.just(0x2F), min_size=1, max_size=30).map(bytes) | st.integers(
    1, 4095
).map(lambda n: b"t" * n)
_suffixes = st.text("abc._-", min_size=1, max_size=20).map(str.encode)
_values = st.binary(max_size=40) | st.integers(0, 60_000).map(lambda n: b"v" * n)
_common: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "mode": st.integers(0, 0o7777),
        "uid": st.integers(0, MAX_ID),
        "gid": st.integers(0, MAX_ID),
        "mtime_ns": st.integers(-(2**31) * 10**9, 2**34 * 10**9),
    }
)


def _xattrs(*prefixes: bytes) -> st.SearchStrategy[Any]:
    keys = st.builds(
        lambda prefix, suffix: prefix + b"x" + suffix, st.sampled_from(prefixes), _suffixes
    )
    return st.just(NO_XATTRS) | st.dictionaries(keys, _values, max_size=2)


_any_xattrs = _xattrs(b"user.", b"trusted.", b"security.")
_no_user = _xattrs(b"trusted.", b"security.")


@st.composite
def _leaf(draw: st.DrawFn) -> Inode:
    kind = draw(st.sampled_from([Kind.FILE, Kind.FILE, *(k for k in Kind if k is not Kind.DIR)]))
    kind = Kind.FILE if kind is Kind.HARDLINK else kind
    inode = Inode(kind, **draw(_common))
    inode.xattrs = draw(_any_xattrs if kind is Kind.FILE else _no_user)
    if kind is Kind.FILE:
        inode.size = draw(st.integers(0, 10) | st.integers(0, 2**43))
        if inode.size:
            inode.digest = Digest.of(b"%d" % inode.size)
    elif kind is Kind.SYMLINK:
        inode.target = draw(_targets)
        inode.mode = 0o777
    elif kind in (Kind.CHAR, Kind.BLOCK):
        inode.major = draw(st.integers(1, 0xFFF))
        inode.minor = draw(st.integers(0, 0xFFFFF))
    return inode


@st.composite
def _directory(draw: st.DrawFn, children: st.SearchStrategy[Inode]) -> Inode:
    found = draw(st.dictionaries(names, children, max_size=5))
    directory = Directory(**draw(_common), children=found)
    directory.xattrs = draw(_any_xattrs)
    # Some leaves get a second name here.
    for child in list(found.values()):
        if not isinstance(child, Directory) and draw(st.integers(0, 4)) == 0:
            found[draw(names.filter(lambda name: name not in found))] = child
    return directory


def _as_root(inode: Inode) -> Tree:
    return Tree(inode if isinstance(inode, Directory) else Directory(children={b"only": inode}))


trees: st.SearchStrategy[Tree] = st.recursive(_leaf(), _directory, max_leaves=12).map(_as_root)
