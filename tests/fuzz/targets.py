"""
What must hold whatever the bytes are, for each of the three parsers:

- nothing but a GearError of the expected class, its message one short line;
- what is accepted survives being written and read again.

Each target takes any bytes and returns whether they were accepted; time and
memory are bounded by whoever calls it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable

from gear_plugin.digest import Digest
from gear_plugin.errors import ArchiveMalformed, GearError, IndexDamaged, Unsupported
from gear_plugin.image import (
    Content,
    Directory,
    ErofsView,
    Inode,
    Kind,
    Manifest,
    Member,
    TarReader,
    Tree,
    check_index,
    flatten,
    read_erofs,
    write_erofs,
)
from tests.fuzz import repair
from tests.fuzz.members import encode
from tests.unit.image import ways
from tests.unit.image.indexes import index
from tests.unit.image.tars import Dribble, member
from tests.unit.image.trees import snapshot

Target = Callable[[bytes], bool]

_MESSAGE_BYTES = 1000
_EROFS, _ = index()
_BELOW = [member(b"d/x", size=3), member(b"d", size=0), member(b"f/g/h", size=1)]


def manifest(data: bytes) -> bool:
    """The manifest's parser, on the bytes as they are and with a fixed part that fits."""
    return any([_manifest(data), _manifest(repair.manifest(data))])


def erofs(data: bytes) -> bool:
    """The reader of `index.erofs`, on the bytes as they are and with a superblock that fits."""
    return any([_erofs(data), _erofs(repair.erofs(data))])


def layer(data: bytes) -> bool:
    """The tar reader and the merge of layers, as the bytes are and with checksums that fit."""
    return any([_layer(data), _layer(repair.tar(data))])


TARGETS: dict[str, Target] = {"manifest": manifest, "erofs": erofs, "layer": layer}


def _manifest(data: bytes) -> bool:
    try:
        decoded = Manifest.decode(data)
    except IndexDamaged as error:
        _check_message(error)
        return False
    assert decoded.encode() == data
    try:
        check_index(_EROFS, data)
    except IndexDamaged as error:
        _check_message(error)
    return True


def _erofs(data: bytes) -> bool:
    try:
        tree = ways.read(data)
    except IndexDamaged as error:
        _check_message(error)
        return False
    _check_view(ErofsView(data), tree)
    written = write_erofs(tree)
    again = read_erofs(written)
    assert snapshot(again) == snapshot(tree)
    assert write_erofs(again) == written
    assert again.totals() == tree.totals()
    return True


def _check_view(view: ErofsView, tree: Tree) -> None:
    """What serves single inodes says the same as the tree."""
    todo: list[tuple[int, Inode]] = [(view.root, tree.root)]
    while todo:
        nid, node = todo.pop()
        status = view.status(nid)
        assert (status.mode & 0o7777, status.uid, status.gid) == (node.mode, node.uid, node.gid)
        assert (status.mtime_ns, status.device) == (node.mtime_ns, (node.major, node.minor))
        assert view.xattrs(nid) == node.xattrs
        assert view.digest(nid) == node.digest
        if isinstance(node, Directory):
            names = dict(view.entries(nid))
            assert names.pop(b".") == nid
            names.pop(b"..")
            assert set(names) == set(node.children)
            todo += [(inner, node.children[name]) for name, inner in names.items()]
        elif node.kind is Kind.SYMLINK:
            assert view.target(nid) == node.target
        elif node.kind is Kind.FILE:
            assert status.size == node.size


def _layer(data: bytes) -> bool:
    try:
        members = _scan(data)
    except (ArchiveMalformed, Unsupported) as error:
        _check_message(error)
        return False
    again = io.BytesIO(b"".join(encode(*pair) for pair in members) + bytes(1024))
    reader = TarReader(again, seekable=False)
    assert [_placeless(found) for found in reader] == [_placeless(m) for m, _ in members]
    only = [found for found, _ in members]
    for layers in ([only], [_BELOW, only]):
        try:
            flattened = flatten(layers)
        except (ArchiveMalformed, Unsupported) as error:
            _check_message(error)
            continue
        top = len(layers) - 1
        for content in flattened.contents:
            content.digest = _digest(content, data if content.layer == top else b"")
        try:
            written = write_erofs(flattened.tree)
        except Unsupported as error:
            _check_message(error)
        else:
            assert snapshot(read_erofs(written)) == snapshot(flattened.tree)
    return True


def _scan(data: bytes) -> list[tuple[Member, bytes]]:
    """Every member with its data; a file and a pipe must give the same, or the same error."""
    found: list[tuple[Member, bytes]] = []
    failure: GearError | None = None
    reader = TarReader(io.BytesIO(data), seekable=True)
    try:
        for each in reader:
            content = reader.read_data(each.size)
            assert content == data[each.data_offset : each.data_offset + each.size]
            found.append((each, content))
    except GearError as error:
        failure = error
    piped: list[Member] = []
    try:
        for each in TarReader(
            Dribble(data) if len(data) < 4096 else io.BytesIO(data), seekable=False
        ):
            piped.append(each)
    except GearError as error:
        assert failure is not None
        assert type(error) is type(failure)
    else:
        assert failure is None
        assert piped == [each for each, _ in found]
    if failure is not None:
        raise failure
    return found


def _placeless(found: Member) -> tuple[object, ...]:
    """The member without where its data is."""
    return (
        *(found.name, found.kind, found.mode, found.uid, found.gid, found.mtime_ns, found.size),
        *(found.link, found.major, found.minor, dict(found.xattrs)),
    )


def _digest(content: Content, data: bytes) -> Digest:
    return Digest(hashlib.sha256(data[content.offset : content.offset + content.size]).digest())


def _check_message(error: GearError) -> None:
    text = str(error)
    assert text
    assert "\n" not in text
    assert len(text) < _MESSAGE_BYTES
