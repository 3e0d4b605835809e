"""
The index layer: the one tar layer of a Gear image.

`.gear/`, `.gear/index.erofs` and `.gear/manifest`, owned by root, modes 0755
and 0644, mtime 0, in plain ustar: the same index gives the same layer digest
wherever it is written.  Pure but for the stream it is given.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Protocol

from gear_plugin.image.archive import BLOCK, Source
from gear_plugin.image.erofs_format import Buffer

FOLDER = ".gear"
INDEX_NAME = ".gear/index.erofs"
MANIFEST_NAME = ".gear/manifest"

_WRITE_BYTES = 2**20
# name, mode, uid, gid, size, mtime, checksum, type, magic and version, zeros
_HEADER = struct.Struct("<100s8s8s8s12s12s8sc100x8s247x")


class Sink(Protocol):
    """A binary file object to write to."""

    def write(self, data: bytes, /) -> object:
        """Take all of *data*."""
        ...


def write_layer(erofs: Buffer, manifest: bytes, out: Sink) -> None:
    """Write the whole layer, end marker included, to *out*."""
    size = len(erofs)
    pieces = (bytes(erofs[at : at + _WRITE_BYTES]) for at in range(0, size, _WRITE_BYTES))
    _write(pieces, size, manifest, out)


def copy_layer(erofs: Source, size: int, manifest: bytes, out: Sink) -> None:
    """As `write_layer`, with the index in a file: *size* bytes from where it stands."""
    _write(iter(lambda: erofs.read(_WRITE_BYTES), b""), size, manifest, out)


def _write(erofs: Iterable[bytes], size: int, manifest: bytes, out: Sink) -> None:
    out.write(_header(FOLDER + "/", b"5", 0o755, 0))
    for name, pieces, length in (
        (INDEX_NAME, erofs, size),
        (MANIFEST_NAME, [manifest], len(manifest)),
    ):
        out.write(_header(name, b"0", 0o644, length))
        for piece in pieces:
            out.write(piece)
        out.write(bytes(-length % BLOCK))
    out.write(bytes(2 * BLOCK))


def _header(name: str, flag: bytes, mode: int, size: int) -> bytes:
    blank = _HEADER.pack(
        name.encode(),
        _octal(mode, 8),
        _octal(0, 8),
        _octal(0, 8),
        _octal(size, 12),
        _octal(0, 12),
        b" " * 8,
        flag,
        b"ustar\x0000",
    )
    checksum = b"%06o\0 " % sum(blank)
    return blank[:148] + checksum + blank[156:]


def _octal(number: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, number)
