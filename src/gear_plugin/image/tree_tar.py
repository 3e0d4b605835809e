"""
A whole tree as one layer tar: the way back from a Gear image.

`flatten` of the result is the same tree again.  Members come in the order of
`Tree.walk`, the root as `./`; hard links repeat the metadata of what they link
to, xattrs included, because who unpacks one sets owner and attributes anew
(a chown takes file capabilities away).  Pure.
"""

from __future__ import annotations

from collections.abc import Iterator

from gear_plugin.errors import Unsupported
from gear_plugin.image.entry import Inode, Kind
from gear_plugin.image.tar_header import BLOCK, tar_header, tar_padding
from gear_plugin.image.tree import Tree

_WHITEOUT = b".wh."
_WHITEOUT_DEVICE = (0, 0)


def write_tree(tree: Tree) -> Iterator[bytes | Inode]:
    """
    The tar in pieces: bytes to be written as they are, and regular files, each
    of which stands for its `size` bytes of content.

    Raises Unsupported for what no layer tar can say, and no image that was
    built from one has: names that mean a whiteout, empty xattrs, `=` in an
    xattr's name.
    """
    first_names: dict[Inode, bytes] = {}
    for path, inode in tree.walk():
        if inode.kind is not Kind.DIR:
            first = first_names.setdefault(inode, path)
            if first is not path:
                yield _header(path, inode, link=first)
                continue
        yield _header(path, inode)
        if inode.size:
            yield inode
            yield tar_padding(inode.size)
    yield bytes(2 * BLOCK)


def _header(path: bytes, inode: Inode, *, link: bytes | None = None) -> bytes:
    _check(path, inode)
    is_dir = inode.kind is Kind.DIR
    return tar_header(
        (path or b".") + b"/" if is_dir else path,
        inode.kind if link is None else Kind.HARDLINK,
        inode.mode,
        inode.uid,
        inode.gid,
        size=inode.size if link is None else 0,
        mtime_ns=inode.mtime_ns,
        link=inode.target if link is None else link,
        xattrs=inode.xattrs,
        device=(inode.major, inode.minor),
    )


def _check(path: bytes, inode: Inode) -> None:
    name = path.rpartition(b"/")[2]
    is_whiteout = inode.kind is Kind.CHAR and (inode.major, inode.minor) == _WHITEOUT_DEVICE
    if name.startswith(_WHITEOUT) or is_whiteout:
        raise Unsupported(f"{path!r} would delete a file instead of being one in a docker layer")
    for key, value in inode.xattrs.items():
        if not value or b"=" in key:
            raise Unsupported(f"{path!r} has the xattr {key!r}, which no docker layer can carry")
