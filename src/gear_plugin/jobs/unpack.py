"""
A layer's blob into its plain tar: gzip, zstd or not compressed at all.

What it is, its first bytes say: media types are wrong often enough.  Output is
made in pieces of bounded size, however well the input is packed.  Every plain
tar is checked against its digest (`diff_id`).  Safe from any thread.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zstandard

from gear_plugin.digest import Digest
from gear_plugin.errors import ArchiveMalformed, ContentCorrupt, Unsupported

HEAD_BYTES = 6
PIECE_BYTES = 1 << 20
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_OTHERS = {b"BZh": "bzip2", b"\xfd7zXZ\0": "xz"}
_GZIP_FORMAT = 31
"""zlib's wbits for gzip's header and checksum, with the largest window."""

Read = Callable[[int], bytes]
"""Up to so many bytes, at least one but at the end; safe to call again there."""


def is_packed(head: bytes) -> bool:
    """Whether a blob that begins with *head* (HEAD_BYTES of it) is compressed."""
    return head.startswith((_GZIP, _ZSTD, *_OTHERS))


def plain(read: Read, what: str) -> Iterator[bytes]:
    """
    The plain bytes of the blob that *read* gives; *what* names it in errors.

    Raises ArchiveMalformed (damaged), Unsupported (bzip2, xz).  A zstd blob
    that is cut short shows by the plain bytes' digest alone.
    """
    head = b""
    while len(head) < HEAD_BYTES and (piece := read(HEAD_BYTES - len(head))):
        head += piece
    for mark, name in _OTHERS.items():
        if head.startswith(mark):
            raise Unsupported(f"{what} is compressed with {name}; Gear reads gzip, zstd and plain")
    if head.startswith(_GZIP):
        return _gunzip(head, read, what)
    if head.startswith(_ZSTD):
        return _unzstd(head, read, what)
    return _pieces(head, read)


def store(pieces: Iterator[bytes], target: Path, diff_id: Digest | None, what: str) -> None:
    """
    Write *pieces* to *target* and check what they hash to; None: not known.

    Raises ContentCorrupt, OSErrors as they are; the file may be left then.
    """
    found = hashlib.sha256()
    with target.open("wb", buffering=0) as out:
        for piece in pieces:
            found.update(piece)
            _write(out, piece)
    check(found.digest(), diff_id, what)


def check(found: bytes, wanted: Digest | None, what: str) -> None:
    """Raise ContentCorrupt unless the raw digest *found* is *wanted*; None: it may be any."""
    if wanted is not None and found != wanted.raw:
        raise ContentCorrupt(f"{what} is damaged or cut short: it is not {wanted}")


def _write(out: io.FileIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[out.write(rest) :]


def _pieces(head: bytes, read: Read) -> Iterator[bytes]:
    piece = head
    while piece:
        yield piece
        piece = read(PIECE_BYTES)


def _gunzip(data: bytes, read: Read, what: str) -> Iterator[bytes]:
    """Every member one after the other; zeros may stand after the last."""
    unpacker = zlib.decompressobj(_GZIP_FORMAT)
    try:
        while True:
            at_end = not data and not (data := read(PIECE_BYTES))
            if unpacker.eof:
                if at_end:
                    return
                data = data.lstrip(b"\0")
                if data:
                    unpacker = zlib.decompressobj(_GZIP_FORMAT)
                continue
            piece = unpacker.decompress(data, PIECE_BYTES)
            if piece:
                yield piece
            elif at_end and not unpacker.eof:
                raise ArchiveMalformed(f"{what} is cut short: its gzip has no end")
            data = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
    except zlib.error as error:
        raise ArchiveMalformed(f"{what} is damaged gzip: {error}") from error


def _unzstd(head: bytes, read: Read, what: str) -> Iterator[bytes]:
    source = io.BufferedReader(_Rest(head, read), PIECE_BYTES)
    reader = zstandard.ZstdDecompressor().stream_reader(source, read_across_frames=True)
    try:
        while piece := reader.read(PIECE_BYTES):
            yield piece
    except zstandard.ZstdError as error:
        raise ArchiveMalformed(f"{what} is damaged zstd: {error}") from error


class _Rest(io.RawIOBase):
    """What a reader gives, with the bytes before it that were taken already."""

    def __init__(self, head: bytes, read: Read) -> None:
        super().__init__()
        self._head = head
        self._read = read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        data = self._head[: len(buffer)] or self._read(len(buffer))
        self._head = self._head[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)
