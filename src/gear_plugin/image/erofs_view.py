"""
Random access to an `index.erofs`: one inode or one directory at a time.

For whoever serves a tree without holding it: memory does not grow with the
image.  The buffer must have passed `check_index`, so nothing is checked here
again; on anything else the answers are meaningless, but reading stays within
the buffer.  Safe from any thread.
"""

from __future__ import annotations

import functools
import stat
from collections.abc import Mapping
from dataclasses import dataclass

from gear_plugin.digest import Digest
from gear_plugin.image import erofs_xattrs
from gear_plugin.image.entry import NO_XATTRS
from gear_plugin.image.erofs_format import (
    BLOCK,
    INODE,
    LAYOUT_INLINE,
    LAYOUT_SHIFT,
    SLOT_BITS,
    SUPER,
    SUPER_OFFSET,
    Buffer,
    RawInode,
    decode_device,
)
from gear_plugin.image.erofs_reader import dirents

_CACHED_DIRECTORIES = 256
"""Parsed ones are kept: a look-up in a directory of 20,000 names would else parse them all."""


@dataclass(frozen=True, slots=True)
class Status:
    """
    What `stat` tells of one inode.

    `mode` has the type bits; `size` is 0 for devices and fifos; `device` is
    (major, minor), zeros for what is none.
    """

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    links: int
    device: tuple[int, int]


class ErofsView:
    """The inodes of *buffer*, by their number (nid)."""

    def __init__(self, buffer: Buffer) -> None:
        self._data = memoryview(buffer)
        self.root: int = SUPER.unpack_from(self._data, SUPER_OFFSET)[5]
        """The root directory's nid."""
        # Not on the method itself: that would keep every view alive.
        self._directory = functools.lru_cache(_CACHED_DIRECTORIES)(self._read_directory)

    def status(self, nid: int) -> Status:
        """The metadata of *nid*."""
        raw = self._raw(nid)
        device = (0, 0)
        if stat.S_ISCHR(raw.mode) or stat.S_ISBLK(raw.mode):
            device = decode_device(raw.union)
        mtime_ns = raw.seconds * 1_000_000_000 + raw.nanoseconds
        return Status(raw.mode, raw.uid, raw.gid, mtime_ns, raw.size, raw.links, device)

    def lookup(self, nid: int, name: bytes) -> int | None:
        """The nid of *name* in the directory *nid*; None: no such name, or no directory."""
        if not stat.S_ISDIR(self._raw(nid).mode):
            return None
        return self._directory(nid).get(name)

    def entries(self, nid: int) -> Mapping[bytes, int]:
        """The names in the directory *nid* with their nids, `.` and `..` included, by name."""
        return self._directory(nid)

    def target(self, nid: int) -> bytes:
        """The text of the symbolic link *nid*."""
        return self._content(nid, self._raw(nid))

    def xattrs(self, nid: int) -> Mapping[bytes, bytes]:
        """The image's own extended attributes of *nid*."""
        return self._attributes(nid)[0]

    def digest(self, nid: int) -> Digest | None:
        """What the regular file *nid* holds; None: nothing, or it is no regular file."""
        return self._attributes(nid)[1]

    def _raw(self, nid: int) -> RawInode:
        return RawInode._make(INODE.unpack_from(self._data, nid << SLOT_BITS))

    def _attributes(self, nid: int) -> tuple[Mapping[bytes, bytes], Digest | None]:
        size = erofs_xattrs.body_size(self._raw(nid).xattr_count)
        start = (nid << SLOT_BITS) + INODE.size
        body = bytes(self._data[start : start + size])
        return erofs_xattrs.decode(body) if body else (NO_XATTRS, None)

    def _read_directory(self, nid: int) -> dict[bytes, int]:
        names, entries = dirents(self._content(nid, self._raw(nid)))
        return {name: entry[0] for name, entry in zip(names, entries, strict=True)}

    def _content(self, nid: int, raw: RawInode) -> bytes:
        whole = raw.size
        if raw.format >> LAYOUT_SHIFT == LAYOUT_INLINE:
            whole = (raw.size - 1) // BLOCK * BLOCK
        inline = (nid << SLOT_BITS) + INODE.size + erofs_xattrs.body_size(raw.xattr_count)
        start = raw.union * BLOCK
        rest = self._data[inline : inline + raw.size - whole]
        return bytes(self._data[start : start + whole]) + bytes(rest)
