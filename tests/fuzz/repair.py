"""
Bytes made to pass the outermost checks, so that a fuzzer reaches what is behind them.
"""

from __future__ import annotations

import struct

from tests.unit.image.damage import BLOCKS, SUPER, sealed

_TAR_BLOCK = 512
_MANIFEST_HEAD = 32


def erofs(data: bytes) -> bytes:
    """*data* as whole blocks with magic, block count and checksum of a superblock that fit."""
    data = data.ljust(4096, b"\0")
    data = data.ljust(-(-len(data) // 4096) * 4096, b"\0")
    image = bytearray(data)
    image[SUPER : SUPER + 4] = struct.pack("<I", 0xE0F5E1E2)
    image[BLOCKS : BLOCKS + 4] = struct.pack("<I", len(image) // 4096)
    return sealed(bytes(image))


def manifest(data: bytes) -> bytes:
    """
    *data* behind a fixed part whose numbers add up.

    Its first three bytes choose how many large objects, chunk digests and
    profile digests its end is taken for.
    """
    large, chunks, profile = (byte % 4 for byte in data[:3].ljust(3, b"\0"))
    body = data[3:]
    tables = large * 36 + (chunks + profile) * 32
    body = body.rjust(tables, b"\0")
    return (
        struct.pack("<8sIIIIII", b"GEARMF\r\n", 1, len(body) - tables, large, chunks, profile, 0)
        + body
    )


def tar(data: bytes) -> bytes:
    """*data* as whole blocks with right checksums wherever a reader looks for a header."""
    archive = bytearray(data.ljust(-(-len(data) // _TAR_BLOCK) * _TAR_BLOCK, b"\0"))
    at = 0
    while at < len(archive) and any(archive[at : at + _TAR_BLOCK]):
        archive[at + 148 : at + 156] = b" " * 8
        archive[at + 148 : at + 156] = b"%06o\0 " % sum(archive[at : at + _TAR_BLOCK])
        at += _TAR_BLOCK
        size = bytes(archive[at - _TAR_BLOCK + 124 : at - _TAR_BLOCK + 136]).strip(b" \0")
        # Types without data have none, whatever their size field says.
        has_data = archive[at - _TAR_BLOCK + 156] not in b"123456"
        if has_data and size.isdigit() and not size.strip(b"01234567"):
            at += -(-int(size, 8) // _TAR_BLOCK) * _TAR_BLOCK
    return bytes(archive) + bytes(2 * _TAR_BLOCK)
