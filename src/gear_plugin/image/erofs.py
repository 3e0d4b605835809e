"""
The writer of `index.erofs`: a tree as a metadata-only EROFS image.

Same tree, same bytes: nothing but the tree goes in.  Two passes: the first
gives every inode its place, the second writes.  docs/index-format.md is the
specification.  Pure; a call shares nothing with another.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator

from gear_plugin.errors import Unsupported
from gear_plugin.image import erofs_xattrs
from gear_plugin.image.entry import MAX_NAME_BYTES, MAX_PATH_BYTES, NO_OWNER, Directory, Inode, Kind
from gear_plugin.image.erofs_format import (
    BLOCK,
    CHECKSUM_OFFSET,
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
    UUID_OFFSET,
    chunk_bits,
    encode_device,
    encode_super,
    super_checksum,
)
from gear_plugin.image.tree import Tree

_HOLE = NULL_BLOCK.to_bytes(4, "little")
_RESERVED = bytes(16)


def write(tree: Tree) -> bytes:
    """
    The `index.erofs` of *tree*; every non-empty regular file must have its digest.

    Raises Unsupported for what Linux or EROFS cannot hold: names over 255
    bytes, paths and symlinks over 4,095, files over 8 TiB, device numbers,
    owners and xattrs out of range.
    """
    plan = _Plan(tree)
    parts = [bytes(FIRST_INODE)]
    at = FIRST_INODE
    for slot in plan.slots:
        record = _record(slot, plan)
        parts += (bytes(slot.at - at), record)
        at = slot.at + len(record)
    parts.append(bytes(-at % BLOCK))
    for slot in plan.slots:
        if slot.blocks:
            data = _block_data(slot, plan)
            parts += (data, bytes(-len(data) % BLOCK))
    return _sealed(bytearray(b"".join(parts)), plan)


class _Slot:
    """
    One inode's place: byte offset, and the number of blocks outside of it.

    A directory's data is `chunks`, lists of the names that share one block;
    `inline` says that the last of them (or a symlink's text) follows the inode.
    """

    __slots__ = ("at", "block", "blocks", "chunks", "inline", "inode", "parent", "size", "xattrs")

    def __init__(self, inode: Inode, parent: Directory, xattrs: bytes) -> None:
        self.inode = inode
        self.parent = parent
        self.xattrs = xattrs
        self.at = 0
        self.size = inode.size
        self.inline = False
        self.blocks = 0
        self.block = 0
        self.chunks: list[list[bytes]] = []


class _Plan:
    """Where everything goes: the root first, then what each directory holds, together."""

    def __init__(self, tree: Tree) -> None:
        self.slots: list[_Slot] = []
        self.nids: dict[Inode, int] = {}
        self.names: Counter[Inode] = Counter()
        self._end = FIRST_INODE
        self._place(tree.root, tree.root)
        stack = [(tree.root, 0)]
        while stack:
            directory, depth_bytes = stack.pop()
            inner = []
            for name, child in sorted(directory.children.items()):
                path_bytes = depth_bytes + len(name)
                if not 0 < len(name) <= MAX_NAME_BYTES or path_bytes > MAX_PATH_BYTES:
                    raise Unsupported(f"index: a name longer than Linux allows: {name[:100]!r}...")
                self.names[child] += 1
                if child not in self.nids:
                    self._place(child, directory)
                    if isinstance(child, Directory):
                        inner.append((child, path_bytes + 1))
            stack.extend(reversed(inner))
        block = (self._end + BLOCK - 1) // BLOCK
        for slot in self.slots:
            if slot.blocks:
                slot.block = block
                block += slot.blocks
        self.blocks = block

    def _place(self, inode: Inode, parent: Directory) -> None:
        slot = _Slot(inode, parent, erofs_xattrs.encode(inode.xattrs, inode.digest))
        after = _data_after_inode(slot)
        at = (self._end + SLOT - 1) // SLOT * SLOT
        # What is read together stays in one block: the inode itself, and
        # inline data with its inode, as the kernel demands.
        together = INODE.size + (len(slot.xattrs) + after if slot.inline else 0)
        if at % BLOCK + together > BLOCK:
            at = (at + BLOCK - 1) // BLOCK * BLOCK
        slot.at = at
        self.nids[inode] = at >> SLOT_BITS
        self._end = at + INODE.size + len(slot.xattrs) + after
        self.slots.append(slot)


def _data_after_inode(slot: _Slot) -> int:
    """Choose how the inode's data is kept; return how many bytes follow its xattrs."""
    inode = slot.inode
    if NO_OWNER in (inode.uid, inode.gid):
        raise Unsupported(f"index: no file in Linux has the owner {NO_OWNER}")
    if inode.kind is Kind.FILE:
        if inode.size > MAX_FILE_BYTES:
            raise Unsupported(f"index: a file of {inode.size} bytes; the limit is {MAX_FILE_BYTES}")
        if (inode.digest is None) != (inode.size == 0):
            raise ValueError("a regular file has a digest exactly when it is not empty")
        return len(_HOLE) if inode.size else 0
    if isinstance(inode, Directory):
        slot.chunks, tail = _share_out(inode)
        slot.size = (len(slot.chunks) - 1) * BLOCK + tail
    elif inode.kind is Kind.SYMLINK:
        tail = slot.size = len(inode.target)
        if not 0 < tail <= MAX_PATH_BYTES:
            raise Unsupported(f"index: a symbolic link of {tail} bytes")
    else:
        if inode.major > MAX_MAJOR or inode.minor > MAX_MINOR:
            raise Unsupported(f"index: no such device in Linux: {inode.major}:{inode.minor}")
        return 0
    slot.inline = INODE.size + len(slot.xattrs) + tail <= BLOCK
    slot.blocks = (slot.size + BLOCK - 1) // BLOCK - slot.inline
    return tail if slot.inline else 0


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


def _record(slot: _Slot, plan: _Plan) -> bytes:
    """The inode with its xattrs and what follows them."""
    inode = slot.inode
    layout, union, after = LAYOUT_PLAIN, 0, b""
    if inode.kind is Kind.FILE:
        if inode.size:
            layout, union, after = LAYOUT_CHUNKED, chunk_bits(inode.size), _HOLE
        links = plan.names[inode]
    elif isinstance(inode, Directory):
        links = 2 + sum(child.kind is Kind.DIR for child in inode.children.values())
        if slot.inline:
            after = _dirents(slot.chunks[-1], slot, plan)
    else:
        links = plan.names[inode]
        if slot.inline:
            after = inode.target
        elif inode.kind is not Kind.SYMLINK:
            union = encode_device(inode.major, inode.minor)
    if slot.inline:
        layout = LAYOUT_INLINE
    if slot.blocks:
        union = slot.block
    seconds, nanoseconds = divmod(inode.mtime_ns, 1_000_000_000)
    head = INODE.pack(
        FORMAT_EXTENDED | layout << LAYOUT_SHIFT,
        erofs_xattrs.count_field(len(slot.xattrs)),
        TYPE_BITS[inode.kind] | inode.mode,
        0,
        slot.size,
        union,
        plan.nids[inode] & 0xFFFFFFFF,
        inode.uid,
        inode.gid,
        seconds,
        nanoseconds,
        links,
        _RESERVED,
    )
    return head + slot.xattrs + after


def _block_data(slot: _Slot, plan: _Plan) -> bytes:
    """What lies in the slot's own blocks."""
    if slot.inode.kind is Kind.SYMLINK:
        return slot.inode.target
    parts = (_dirents(names, slot, plan) for names in slot.chunks[: slot.blocks])
    return b"".join(part.ljust(BLOCK, b"\0") for part in parts)


def _dirents(names: list[bytes], slot: _Slot, plan: _Plan) -> bytes:
    """One directory block: the entries, then their names."""
    return b"".join([*_entries(names, slot, plan), *names])


def _entries(names: list[bytes], slot: _Slot, plan: _Plan) -> Iterator[bytes]:
    directory = slot.inode
    assert isinstance(directory, Directory)
    children, nids, pack = directory.children, plan.nids, DIRENT.pack
    offset = DIRENT.size * len(names)
    for name in names:
        if name == b".":
            inode: Inode = directory
        elif name == b"..":
            inode = slot.parent
        else:
            inode = children[name]
        yield pack(nids[inode], offset, FILE_TYPES[inode.kind], 0)
        offset += len(name)


def _sealed(image: bytearray, plan: _Plan) -> bytes:
    """*image* with its superblock; the UUID is made from all the rest."""
    image[SUPER_OFFSET:FIRST_INODE] = encode_super(
        root_nid=plan.slots[0].at >> SLOT_BITS,
        inodes=len(plan.slots),
        blocks=plan.blocks,
        uuid=bytes(16),
        checksum=0,
    )
    uuid = bytearray(hashlib.sha256(image).digest()[:16])
    uuid[6] = uuid[6] & 0x0F | 0x80  # version 8, RFC 9562: made as the application likes
    uuid[8] = uuid[8] & 0x3F | 0x80
    image[UUID_OFFSET : UUID_OFFSET + 16] = uuid
    image[CHECKSUM_OFFSET : CHECKSUM_OFFSET + 4] = super_checksum(image).to_bytes(4, "little")
    return bytes(image)
