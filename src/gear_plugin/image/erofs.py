"""
The writer of `index.erofs`: a tree as a metadata-only EROFS image.

Same tree, same bytes: nothing but the tree goes in.  Two passes: the first
gives every inode its place, the second makes and writes them one by one, so
that what is held is a few words an inode.  docs/index-format.md is the
specification.  Pure but for the file that it is given; a call shares nothing
with another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from io import BytesIO
from typing import NamedTuple, Protocol

from gear_plugin.errors import Unsupported
from gear_plugin.image import erofs_xattrs
from gear_plugin.image.entry import MAX_NAME_BYTES, MAX_PATH_BYTES, NO_OWNER, Directory, Inode, Kind
from gear_plugin.image.erofs_format import (
    BLOCK,
    DIRENT,
    FILE_TYPES,
    FIRST_INODE,
    FORMAT_EXTENDED,
    INODE,
    LAYOUT_CHUNKED,
    LAYOUT_INLINE,
    LAYOUT_PLAIN,
    LAYOUT_SHIFT,
    MAX_FILE_BYTES,
    MAX_MAJOR,
    MAX_MINOR,
    NULL_BLOCK,
    SLOT,
    SLOT_BITS,
    SUPER_OFFSET,
    TYPE_BITS,
    chunk_bits,
    encode_device,
    encode_super,
    super_checksum,
)
from gear_plugin.image.tree import Tree

_HOLE = NULL_BLOCK.to_bytes(4, "little")
_RESERVED = bytes(16)


class Target(Protocol):
    """A binary file that can be written twice at one place."""

    def write(self, data: bytes, /) -> object:
        """Take all of *data*."""
        ...

    def seek(self, offset: int, /) -> object:
        """Go to an absolute offset."""
        ...


def write(tree: Tree) -> bytes:
    """The `index.erofs` of *tree* in memory; see `write_to`."""
    out = BytesIO()
    write_to(tree, out)
    return out.getvalue()


def write_to(tree: Tree, out: Target) -> None:
    """
    Write the `index.erofs` of *tree* to *out*, which must be empty.

    Every non-empty regular file must have its digest.  Raises Unsupported for
    what Linux or EROFS cannot hold: names over 255 bytes, paths and symlinks
    over 4,095, files over 8 TiB, device numbers, owners and xattrs out of
    range.
    """
    plan = _Plan(tree)
    image = _Image(out)
    image.put(bytes(SUPER_OFFSET) + _super(plan, bytes(16), 0))
    for inode in plan.inodes:
        image.pad_to(plan.nids[inode] << SLOT_BITS)
        image.put(_record(inode, plan))
    image.pad()
    for inode in plan.blocks:
        for data in _block_data(inode, plan):
            image.put(data)
            image.pad()
    image.seal(plan)


class _Image:
    """The file on its way, written from its beginning to its end and hashed."""

    def __init__(self, out: Target) -> None:
        self._out = out
        self._at = 0
        self._hash = hashlib.sha256()
        self._first_block = bytearray()

    def put(self, data: bytes) -> None:
        self._out.write(data)
        self._hash.update(data)
        self._at += len(data)
        if len(self._first_block) < BLOCK:
            self._first_block += data

    def pad_to(self, offset: int) -> None:
        if offset > self._at:
            self.put(bytes(offset - self._at))

    def pad(self) -> None:
        """Go to the next block."""
        self.pad_to(self._at + -self._at % BLOCK)

    def seal(self, plan: _Plan) -> None:
        """Complete the superblock; the UUID is made from all that was written."""
        uuid = bytearray(self._hash.digest()[:16])
        uuid[6] = uuid[6] & 0x0F | 0x80  # version 8, RFC 9562: made as the application likes
        uuid[8] = uuid[8] & 0x3F | 0x80
        self._first_block[SUPER_OFFSET:FIRST_INODE] = _super(plan, bytes(uuid), 0)
        checksum = super_checksum(self._first_block)
        self._out.seek(SUPER_OFFSET)
        self._out.write(_super(plan, bytes(uuid), checksum))


class _Plan:
    """
    Where everything goes: the root first, then what each directory holds, together.

    `nids` has every inode's number, `inodes` their order.  `blocks` has those
    that own blocks, with the first block's number.  `links` counts only from
    the second name on.
    """

    def __init__(self, tree: Tree) -> None:
        self.inodes: list[Inode] = []
        self.nids: dict[Inode, int] = {}
        self.links: dict[Inode, int] = {}
        self.parents: dict[Directory, Directory] = {tree.root: tree.root}
        self.blocks: dict[Inode, int] = {}
        self._end = FIRST_INODE
        self._place(tree.root)
        stack = [(tree.root, 0)]
        while stack:
            directory, depth_bytes = stack.pop()
            inner = []
            for name, child in sorted(directory.children.items()):
                path_bytes = depth_bytes + len(name)
                if not 0 < len(name) <= MAX_NAME_BYTES or path_bytes > MAX_PATH_BYTES:
                    raise Unsupported(f"index: a name longer than Linux allows: {name[:100]!r}...")
                if child in self.nids:
                    self.links[child] = self.links.get(child, 1) + 1
                    continue
                self._place(child)
                if isinstance(child, Directory):
                    self.parents[child] = directory
                    inner.append((child, path_bytes + 1))
            stack.extend(reversed(inner))
        block = (self._end + BLOCK - 1) // BLOCK
        for inode, count in self.blocks.items():
            self.blocks[inode] = block
            block += count
        self.block_count = block

    def _place(self, inode: Inode) -> None:
        shape = _shape(inode)
        at = (self._end + SLOT - 1) // SLOT * SLOT
        # What is read together stays in one block: the inode itself, and
        # inline data with its inode, as the kernel demands.
        together = INODE.size + (shape.xattrs + shape.after if shape.inline else 0)
        if at % BLOCK + together > BLOCK:
            at = (at + BLOCK - 1) // BLOCK * BLOCK
        self.nids[inode] = at >> SLOT_BITS
        self._end = at + INODE.size + shape.xattrs + shape.after
        self.inodes.append(inode)
        if shape.blocks:
            self.blocks[inode] = shape.blocks


class _Shape(NamedTuple):
    """
    How an inode is kept: bytes of its data, bytes of its xattrs, bytes that
    follow the two, and blocks elsewhere.  `inline`: the data, or its last
    block, is what follows.
    """

    size: int
    xattrs: int
    after: int
    blocks: int
    inline: bool


def _shape(inode: Inode) -> _Shape:
    if NO_OWNER in (inode.uid, inode.gid):
        raise Unsupported(f"index: no file in Linux has the owner {NO_OWNER}")
    xattrs = erofs_xattrs.encoded_size(inode.xattrs, inode.digest)
    if inode.kind is Kind.FILE:
        if inode.size > MAX_FILE_BYTES:
            raise Unsupported(f"index: a file of {inode.size} bytes; the limit is {MAX_FILE_BYTES}")
        if (inode.digest is None) != (inode.size == 0):
            raise ValueError("a regular file has a digest exactly when it is not empty")
        return _Shape(inode.size, xattrs, len(_HOLE) if inode.size else 0, 0, False)
    if isinstance(inode, Directory):
        chunks, tail = _share_out(inode)
        size = (len(chunks) - 1) * BLOCK + tail
    elif inode.kind is Kind.SYMLINK:
        tail = size = len(inode.target)
        if not 0 < tail <= MAX_PATH_BYTES:
            raise Unsupported(f"index: a symbolic link of {tail} bytes")
    else:
        if inode.major > MAX_MAJOR or inode.minor > MAX_MINOR:
            raise Unsupported(f"index: no such device in Linux: {inode.major}:{inode.minor}")
        return _Shape(0, xattrs, 0, 0, False)
    inline = INODE.size + xattrs + tail <= BLOCK
    blocks = (size + BLOCK - 1) // BLOCK - inline
    return _Shape(size, xattrs, tail if inline else 0, blocks, inline)


def _share_out(directory: Directory) -> tuple[list[list[bytes]], int]:
    """The directory's names block by block, and how many bytes the last block holds."""
    chunks: list[list[bytes]] = []
    current: list[bytes] = []
    used = 0
    for name in sorted([*directory.children, b".", b".."]):
        needed = DIRENT.size + len(name)
        if used + needed > BLOCK:
            chunks.append(current)
            current = []
            used = 0
        current.append(name)
        used += needed
    chunks.append(current)
    return chunks, used


def _record(inode: Inode, plan: _Plan) -> bytes:
    """The inode with its xattrs and what follows them."""
    xattrs = erofs_xattrs.encode(inode.xattrs, inode.digest)
    layout, union, after, size = LAYOUT_PLAIN, 0, b"", inode.size
    links = plan.links.get(inode, 1)
    if inode.kind is Kind.FILE:
        if size:
            layout, union, after = LAYOUT_CHUNKED, chunk_bits(size), _HOLE
    elif isinstance(inode, Directory) or inode.kind is Kind.SYMLINK:
        shape = _shape(inode)
        size = shape.size
        if isinstance(inode, Directory):
            links = 2 + sum(child.kind is Kind.DIR for child in inode.children.values())
        if shape.inline:
            layout, after = LAYOUT_INLINE, _inline_data(inode, plan)
        union = plan.blocks.get(inode, 0)
    else:
        union = encode_device(inode.major, inode.minor)
    seconds, nanoseconds = divmod(inode.mtime_ns, 1_000_000_000)
    head = INODE.pack(
        FORMAT_EXTENDED | layout << LAYOUT_SHIFT,
        erofs_xattrs.count_field(len(xattrs)),
        TYPE_BITS[inode.kind] | inode.mode,
        0,
        size,
        union,
        plan.nids[inode] & 0xFFFFFFFF,
        inode.uid,
        inode.gid,
        seconds,
        nanoseconds,
        links,
        _RESERVED,
    )
    return head + xattrs + after


def _inline_data(inode: Inode, plan: _Plan) -> bytes:
    """What follows the inode: a symlink's text, or a directory's last block."""
    if isinstance(inode, Directory):
        return _dirents(_share_out(inode)[0][-1], inode, plan)
    return inode.target


def _block_data(inode: Inode, plan: _Plan) -> Iterator[bytes]:
    """What lies in the inode's own blocks; each piece begins one."""
    if not isinstance(inode, Directory):
        yield inode.target
        return
    chunks, _ = _share_out(inode)
    for names in chunks[:-1] if _shape(inode).inline else chunks:
        yield _dirents(names, inode, plan)


def _dirents(names: list[bytes], directory: Directory, plan: _Plan) -> bytes:
    """One directory block: the entries, then their names."""
    return b"".join([*_entries(names, directory, plan), *names])


def _entries(names: list[bytes], directory: Directory, plan: _Plan) -> Iterator[bytes]:
    children, nids, pack = directory.children, plan.nids, DIRENT.pack
    offset = DIRENT.size * len(names)
    for name in names:
        if name == b".":
            inode: Inode = directory
        elif name == b"..":
            inode = plan.parents[directory]
        else:
            inode = children[name]
        yield pack(nids[inode], offset, FILE_TYPES[inode.kind], 0)
        offset += len(name)


def _super(plan: _Plan, uuid: bytes, checksum: int) -> bytes:
    return encode_super(
        root_nid=plan.nids[plan.inodes[0]],
        inodes=len(plan.inodes),
        blocks=plan.block_count,
        uuid=uuid,
        checksum=checksum,
    )
