"""
EROFS as Gear uses it: the constants that writer and reader share.

The format is described in Linux's Documentation/filesystems/erofs.rst and
fs/erofs/erofs_fs.h; docs/index-format.md says byte by byte which part of it
an `index.erofs` is made of.  All integers are little-endian.  Pure values.
"""

from __future__ import annotations

import mmap
import stat
import struct
from typing import NamedTuple

from gear_plugin.image.entry import Kind

Buffer = bytes | bytearray | memoryview | mmap.mmap
"""What parsers take: the whole file, in memory or mapped."""

BLOCK_BITS = 12
BLOCK = 1 << BLOCK_BITS
SLOT_BITS = 5
SLOT = 1 << SLOT_BITS
"""An inode's number is its byte offset divided by this."""

SUPER_OFFSET = 1024
# magic, checksum, compatible features, block bits, extension slots, root nid,
# inodes, epoch s, epoch ns, blocks, metadata block, shared xattr block, uuid,
# label, incompatible features, and what Gear does not use, all zero
SUPER = struct.Struct("<IIIBBHQQIIII16s16sI44s")
MAGIC = 0xE0F5E1E2
COMPAT_CHECKSUM = 0x1
COMPAT_MTIME = 0x2
COMPAT_FEATURES = COMPAT_CHECKSUM | COMPAT_MTIME
INCOMPAT_CHUNKED = 0x4
FIRST_INODE = SUPER_OFFSET + SUPER.size
CHECKSUM_OFFSET = SUPER_OFFSET + 4
UUID_OFFSET = SUPER_OFFSET + 48

INODE = struct.Struct("<HHHHQIIIIqII16s")
"""An extended inode; `RawInode` names its fields."""
FORMAT_EXTENDED = 0x1
LAYOUT_SHIFT = 1
LAYOUT_PLAIN = 0
LAYOUT_INLINE = 2
LAYOUT_CHUNKED = 4
NULL_BLOCK = 0xFFFFFFFF
"""As a chunk's address: nothing is stored for it."""
MAX_CHUNK_BITS = 31
MAX_FILE_BYTES = BLOCK << MAX_CHUNK_BITS
"""8 TiB: the largest file that is one chunk."""

DIRENT = struct.Struct("<QHBB")
"""nid, name offset, file type, zero."""

FILE_TYPES = {
    Kind.FILE: 1,
    Kind.DIR: 2,
    Kind.CHAR: 3,
    Kind.BLOCK: 4,
    Kind.FIFO: 5,
    Kind.SYMLINK: 7,
}
TYPE_BITS = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIR: stat.S_IFDIR,
    Kind.CHAR: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.SYMLINK: stat.S_IFLNK,
}
KINDS = {bits: kind for kind, bits in TYPE_BITS.items()}

MAX_MAJOR = 0xFFF
MAX_MINOR = 0xFFFFF


class RawInode(NamedTuple):
    """
    The fields of an extended inode on disk.

    `union` is a block number, a device number or a chunk format, as the kind
    and layout in `format` and `mode` demand; `unused` and `reserved` are zero.
    """

    format: int
    xattr_count: int
    mode: int
    unused: int
    size: int
    union: int
    ino: int
    uid: int
    gid: int
    seconds: int
    nanoseconds: int
    links: int
    reserved: bytes


def chunk_bits(size: int) -> int:
    """log2 of how many blocks one chunk needs to hold *size* bytes."""
    return max((size - 1).bit_length() - BLOCK_BITS, 0)


def encode_device(major: int, minor: int) -> int:
    """Linux's 32-bit form of a device number (new_encode_dev)."""
    return (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12


def decode_device(device: int) -> tuple[int, int]:
    """The inverse of `encode_device`: major and minor."""
    return device >> 8 & 0xFFF, (device & 0xFF) | (device >> 12 & 0xFFF00)


def encode_super(*, root_nid: int, inodes: int, blocks: int, uuid: bytes, checksum: int) -> bytes:
    """The superblock; all that is not given is the same in every index."""
    return SUPER.pack(
        MAGIC,
        checksum,
        COMPAT_FEATURES,
        BLOCK_BITS,
        0,
        root_nid,
        inodes,
        0,
        0,
        blocks,
        0,
        0,
        uuid,
        b"",
        INCOMPAT_CHUNKED,
        b"",
    )


def super_checksum(first_block: bytes | bytearray) -> int:
    """
    The checksum that belongs into the superblock.

    CRC-32C without the final inversion, over the first block from the
    superblock on, the checksum field itself counted as zero.
    """
    block = bytearray(first_block[SUPER_OFFSET:BLOCK])
    block[4:8] = bytes(4)
    crc = 0xFFFFFFFF
    for byte in block:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


_CRC_TABLE = _crc_table()
