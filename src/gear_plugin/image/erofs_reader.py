"""
The reader of `index.erofs`, which is also its structure check.

What a registry sent is not trusted: this runs before a kernel mounts it.  It
takes exactly the part of EROFS that docs/index-format.md allows, wherever in
the file a writer has put it, and refuses the rest.  Safe on any input: time
and memory grow linearly with the buffer, because every directory is entered
once and all parts that were read may together not be larger than the buffer
(so they cannot overlap to be read over and over).  Pure; a call shares
nothing with another.
"""

from __future__ import annotations

import stat
from collections import Counter
from typing import NamedTuple

from gear_plugin.digest import Digest
from gear_plugin.errors import IndexDamaged
from gear_plugin.image import erofs_plain, erofs_xattrs
from gear_plugin.image.entry import (
    MAX_NAME_BYTES,
    MAX_PATH_BYTES,
    NO_OWNER,
    NO_XATTRS,
    Directory,
    Inode,
    Kind,
)
from gear_plugin.image.erofs_format import (
    BLOCK,
    DIRENT,
    FILE_TYPES,
    FIRST_INODE,
    FORMAT_EXTENDED,
    INCOMPAT_CHUNKED,
    INODE,
    KINDS,
    LAYOUT_CHUNKED,
    LAYOUT_INLINE,
    LAYOUT_PLAIN,
    LAYOUT_SHIFT,
    MAGIC,
    MAX_FILE_BYTES,
    NULL_BLOCK,
    SLOT_BITS,
    SUPER,
    SUPER_OFFSET,
    Buffer,
    RawInode,
    chunk_bits,
    decode_device,
    encode_super,
    super_checksum,
)
from gear_plugin.image.tree import Totals, Tree

_LAYOUTS = {
    FORMAT_EXTENDED | layout << LAYOUT_SHIFT: layout
    for layout in (LAYOUT_PLAIN, LAYOUT_INLINE, LAYOUT_CHUNKED)
}
_DIRECTORY, _FILE = FILE_TYPES[Kind.DIR], FILE_TYPES[Kind.FILE]
_HOLE = NULL_BLOCK.to_bytes(4, "little")
_NO_RESERVED = bytes(16)


def read(buffer: Buffer) -> Tree:
    """
    The tree of an `index.erofs`.

    Raises IndexDamaged for anything out of bounds, of a wrong type, out of
    order or unknown; never anything else, whatever the bytes are.
    """
    with memoryview(buffer) as data:
        return _Reader(data).tree()


class Scan(NamedTuple):
    """What an index holds altogether: its totals, and each object's size by its raw digest."""

    totals: Totals
    sizes: dict[bytes, int]


def scan(buffer: Buffer) -> Scan:
    """
    Check an `index.erofs` exactly as `read` does, without making its tree.

    Raises IndexDamaged, also if one object has two sizes.
    """
    with memoryview(buffer) as data:
        return _Scanner(data).scan()


class _Place(NamedTuple):
    """Where an inode is: its number, its offset, the offset after its xattrs, its layout."""

    nid: int
    at: int
    after: int
    layout: int


class _Reader:
    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._unread = len(data)
        self._inodes: dict[int, Inode] = {}
        self._links: dict[int, int] = {}
        self._names: dict[int, int] = {}

    def tree(self) -> Tree:
        """Read everything, from the superblock on."""
        root_nid, inodes = self._super()
        root, content = self._directory(root_nid)
        # A directory still to be read: its nid, itself, its data, its
        # parent's nid and how long its path is with a slash.
        stack = [(root_nid, root, content, root_nid, 0)]
        while stack:
            nid, directory, content, parent_nid, depth_bytes = stack.pop()
            subdirectories = 0
            dots = {b".": nid, b"..": parent_nid}
            names, found = dirents(content)
            room = min(MAX_NAME_BYTES, MAX_PATH_BYTES - depth_bytes)
            # Looked at one by one only near the end of the longest paths,
            # where `.` and `..`, which are in no path, still fit.
            if max(map(len, names), default=0) > room and any(
                len(name) > room for name in names if name not in dots
            ):
                raise IndexDamaged("index: a name longer than Linux allows")
            children = directory.children
            for name, (child_nid, _, file_type, _) in zip(names, found, strict=True):
                if file_type != _DIRECTORY:
                    children[name] = self._other(child_nid, file_type)
                elif name not in dots:
                    child, child_content = self._directory(child_nid)
                    stack.append(
                        (child_nid, child, child_content, nid, depth_bytes + len(name) + 1)
                    )
                    children[name] = child
                    subdirectories += 1
                elif dots.pop(name) != child_nid:
                    raise IndexDamaged("index: '.' or '..' leads somewhere else")
            if dots:
                raise IndexDamaged("index: a directory without '.' or '..'")
            if self._links[nid] != 2 + subdirectories:
                raise IndexDamaged(f"index: wrong link count of inode {nid}")
        if not self._names.items() <= self._links.items():
            raise IndexDamaged("index: wrong link count of a file")
        if len(self._inodes) != inodes:
            raise IndexDamaged(f"index: {len(self._inodes)} inodes found, {inodes} announced")
        return Tree(root)

    def _super(self) -> tuple[int, int]:
        """Check the superblock; return the root's nid and the number of inodes."""
        size = len(self._data)
        if size < BLOCK or size % BLOCK:
            raise IndexDamaged(f"index: {size} bytes are no whole EROFS image")
        first = bytes(self._data[:BLOCK])
        fields = SUPER.unpack_from(first, SUPER_OFFSET)
        magic, checksum, root_nid, inodes, uuid, incompat = (
            fields[i] for i in (0, 1, 5, 6, 12, 14)
        )
        if magic != MAGIC:
            raise IndexDamaged("index: not an EROFS image")
        if incompat & ~INCOMPAT_CHUNKED:
            raise IndexDamaged(f"index: unknown EROFS features {incompat:#x}; a newer Gear made it")
        if super_checksum(first) != checksum:
            raise IndexDamaged("index: the superblock's checksum is wrong")
        expected = encode_super(
            root_nid=root_nid,
            inodes=inodes,
            blocks=size // BLOCK,
            uuid=uuid,
            checksum=checksum,
        )
        if first[SUPER_OFFSET:FIRST_INODE] != expected or any(first[:SUPER_OFFSET]):
            raise IndexDamaged("index: a superblock that Gear does not write")
        return root_nid, inodes

    def _directory(self, nid: int) -> tuple[Directory, bytes]:
        """The directory at *nid*, its children still to be read from the bytes beside it."""
        if nid in self._inodes:
            raise IndexDamaged(f"index: the directory at inode {nid} has two names")
        inode, content = self._inode(nid)
        if not isinstance(inode, Directory):
            raise IndexDamaged(f"index: inode {nid} is no directory")
        self._inodes[nid] = inode
        return inode, content

    def _other(self, nid: int, file_type: int) -> Inode:
        """The inode at *nid*, which is no directory; the same one for each of its names."""
        inode = self._inodes.get(nid)
        if inode is None:
            inode = self._inodes[nid] = self._new(nid)
        if FILE_TYPES[inode.kind] != file_type:
            raise IndexDamaged(f"index: inode {nid} is of another type than its name says")
        self._names[nid] = self._names.get(nid, 0) + 1
        return inode

    def _new(self, nid: int) -> Inode:
        """The inode at *nid*, which is no directory, read for the first time."""
        plain = self._plain(nid)
        if plain is None:
            return self._inode(nid)[0]
        return Inode(
            Kind.FILE,
            plain.mode,
            plain.uid,
            plain.gid,
            plain.mtime_ns,
            plain.size,
            digest=Digest(plain.digest),
        )

    def _plain(self, nid: int) -> erofs_plain.PlainFile | None:
        """The inode at *nid* if it is a plain file, accounted for; else nothing happened."""
        plain = erofs_plain.read(self._data, nid << SLOT_BITS)
        if plain is None or self._unread < erofs_plain.RECORD_BYTES:
            return None
        self._unread -= erofs_plain.RECORD_BYTES
        self._links[nid] = plain.links
        return plain

    def _inode(self, nid: int) -> tuple[Inode, bytes]:
        """The inode at *nid*, and its data if it is a directory."""
        at = nid << SLOT_BITS
        if not FIRST_INODE <= at <= len(self._data) - INODE.size or at % BLOCK > BLOCK - INODE.size:
            raise IndexDamaged(f"index: inode {nid} is out of bounds")
        raw = RawInode._make(INODE.unpack_from(self._data, at))
        layout = _LAYOUTS.get(raw.format)
        kind = KINDS.get(stat.S_IFMT(raw.mode))
        if layout is None or kind is None or raw.unused or raw.nanoseconds > 999_999_999:
            raise IndexDamaged(f"index: inode {nid} is none that Gear writes")
        if raw.reserved != _NO_RESERVED or NO_OWNER in (raw.uid, raw.gid):
            raise IndexDamaged(f"index: inode {nid} has unknown fields or no owner")
        self._links[nid] = raw.links
        body_size = erofs_xattrs.body_size(raw.xattr_count)
        place = _Place(nid, at, at + INODE.size + body_size, layout)
        self._charge(nid, INODE.size + body_size, place.after)
        body = bytes(self._data[at + INODE.size : place.after])
        xattrs, digest = erofs_xattrs.decode(body) if body else (NO_XATTRS, None)
        if (digest is not None) != (kind is Kind.FILE and raw.size > 0):
            raise IndexDamaged(f"index: inode {nid} has content where none can be, or none")
        mode = raw.mode & 0o7777
        mtime_ns = raw.seconds * 1_000_000_000 + raw.nanoseconds
        if kind is Kind.DIR:
            directory = Directory(mode, raw.uid, raw.gid, mtime_ns, xattrs=xattrs)
            return directory, self._content(place, raw)
        inode = Inode(kind, mode, raw.uid, raw.gid, mtime_ns, xattrs=xattrs, digest=digest)
        if kind is Kind.FILE:
            self._check_file(place, raw)
            inode.size = raw.size
        elif kind is Kind.SYMLINK:
            inode.target = self._target(place, raw)
        else:
            inode.major, inode.minor = _device(place, raw, kind)
        return inode, b""

    def _check_file(self, place: _Place, raw: RawInode) -> None:
        """A file has no data here: nothing at all if empty, else one hole."""
        if raw.size == 0:
            fits = place.layout == LAYOUT_PLAIN and raw.union == 0
        else:
            end = place.after + len(_HOLE)
            self._charge(place.nid, len(_HOLE), end)
            fits = (
                place.layout == LAYOUT_CHUNKED
                and raw.size <= MAX_FILE_BYTES
                and raw.union == chunk_bits(raw.size)
                and self._data[place.after : end] == _HOLE
            )
        if not fits:
            raise IndexDamaged(f"index: the file at inode {place.nid} is not a plain hole")

    def _target(self, place: _Place, raw: RawInode) -> bytes:
        if raw.size > MAX_PATH_BYTES:
            raise IndexDamaged(f"index: the symbolic link at inode {place.nid} is too long")
        target = self._content(place, raw)
        if b"\0" in target:
            raise IndexDamaged(f"index: the symbolic link at inode {place.nid} holds a zero byte")
        return target

    def _content(self, place: _Place, raw: RawInode) -> bytes:
        """The data of a directory or symbolic link; never empty."""
        if place.layout == LAYOUT_CHUNKED or raw.size == 0:
            raise IndexDamaged(f"index: inode {place.nid} has no readable data")
        whole = raw.size
        if place.layout == LAYOUT_INLINE:
            whole = (raw.size - 1) // BLOCK * BLOCK
        start = raw.union * BLOCK
        if whole == 0 and start:
            raise IndexDamaged(f"index: inode {place.nid} names a block it does not use")
        end = place.after + raw.size - whole
        self._charge(place.nid, raw.size, max(start + whole, end))
        if place.layout == LAYOUT_INLINE and place.at % BLOCK + end - place.at > BLOCK:
            raise IndexDamaged(f"index: the inline data of inode {place.nid} crosses a block")
        return bytes(self._data[start : start + whole]) + bytes(self._data[place.after : end])

    def _charge(self, nid: int, count: int, end: int) -> None:
        """Account for *count* bytes read, up to the offset *end*."""
        self._unread -= count
        if end > len(self._data) or self._unread < 0:
            raise IndexDamaged(f"index: inode {nid} reaches out of bounds or over another")


class _Scanner(_Reader):
    """Walks as the reader does and keeps only counts and sizes."""

    _PLAIN = Inode(Kind.FILE, 0, 0, 0, 0)
    """Stands for every plain file with one name; no other name may lead to it."""

    def __init__(self, data: memoryview) -> None:
        super().__init__(data)
        self._sizes: dict[bytes, int] = {}

    def scan(self) -> Scan:
        """Read everything; see the function."""
        self.tree()
        kinds = Counter(inode.kind for inode in self._inodes.values())
        others = len(self._inodes) - kinds[Kind.FILE] - kinds[Kind.DIR]
        total_bytes = sum(self._sizes.values())
        counts = (kinds[Kind.FILE], kinds[Kind.DIR], others, len(self._sizes), total_bytes)
        return Scan(Totals(*counts), self._sizes)

    def _other(self, nid: int, file_type: int) -> Inode:
        # The short way for nearly every name: a plain file that has no other.
        known = self._inodes.get(nid)
        if known is None and file_type == _FILE:
            plain = erofs_plain.read(self._data, nid << SLOT_BITS)
            if plain is not None and plain.links == 1:
                self._unread -= erofs_plain.RECORD_BYTES
                if self._unread < 0:
                    raise IndexDamaged(f"index: inode {nid} reaches over another")
                if self._sizes.setdefault(plain.digest, plain.size) != plain.size:
                    raise _two_sizes(plain.digest)
                self._inodes[nid] = self._PLAIN
                return self._PLAIN
        if known is self._PLAIN:
            raise IndexDamaged(f"index: inode {nid} has more names than links")
        return super()._other(nid, file_type)

    def _new(self, nid: int) -> Inode:
        inode, _ = self._inode(nid)
        if inode.digest is not None and (
            self._sizes.setdefault(inode.digest.raw, inode.size) != inode.size
        ):
            raise _two_sizes(inode.digest.raw)
        return inode


def _two_sizes(digest: bytes) -> IndexDamaged:
    return IndexDamaged(f"index: two files of different size are both sha256:{digest.hex()}")


def _device(place: _Place, raw: RawInode, kind: Kind) -> tuple[int, int]:
    """Major and minor of a device; both are 0 for a fifo."""
    if place.layout != LAYOUT_PLAIN or raw.size or (kind is Kind.FIFO and raw.union):
        raise IndexDamaged(f"index: the device at inode {place.nid} has data")
    if kind is Kind.CHAR and raw.union == 0:
        raise IndexDamaged(f"index: inode {place.nid} is an overlayfs whiteout")
    return decode_device(raw.union)


def dirents(content: bytes) -> tuple[list[bytes], list[tuple[int, int, int, int]]]:
    """The names of a directory's data, strictly in order, and beside them its entries (DIRENT)."""
    names: list[bytes] = []
    entries: list[tuple[int, int, int, int]] = []
    for start in range(0, len(content), BLOCK):
        block = content[start : start + BLOCK]
        names_at = int.from_bytes(block[8:10], "little")
        if names_at == 0 or names_at % DIRENT.size or names_at > len(block):
            raise IndexDamaged("index: a malformed directory block")
        # Only the last name of a block may be followed by zeros.
        end = len(block.rstrip(b"\0"))
        found = list(DIRENT.iter_unpack(block[:names_at]))
        offsets = [entry[1] for entry in found]
        # Where offsets do not ascend, a name is empty and so not in order.
        names += map(block.__getitem__, map(slice, offsets, [*offsets[1:], end]))
        entries += found
        text = block[names_at:end]
        if offsets[0] != names_at or b"/" in text or b"\0" in text or any(e[3] for e in found):
            raise IndexDamaged("index: a malformed name in a directory")
    if len(set(names)) != len(names) or sorted(names) != names or b"" in names[:1]:
        raise IndexDamaged("index: names of a directory out of order")
    return names, entries
