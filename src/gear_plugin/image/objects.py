"""
The object table: which objects an index has, and how large they are.

Derived from `index.erofs` on each node at apply, never shipped.  Records of
40 bytes, sorted: the digest's 32 raw bytes and the size as an unsigned 64-bit
little-endian number.  Reading needs no loading, so it works over a mapped
file of any size.  Safe from any thread as long as the buffer stays.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

from gear_plugin.digest import Digest
from gear_plugin.errors import IndexDamaged
from gear_plugin.image.erofs_format import Buffer

_RECORD = struct.Struct("<32sQ")
_DIGEST_BYTES = 32


class ObjectTable:
    """A mapping from digest to size over a buffer that `build` filled."""

    __slots__ = ("_buffer", "_count")

    def __init__(self, buffer: Buffer) -> None:
        if len(buffer) % _RECORD.size:
            raise IndexDamaged(f"object table: {len(buffer)} bytes are no whole records")
        self._buffer = buffer
        self._count = len(buffer) // _RECORD.size

    @staticmethod
    def build(sizes: Mapping[bytes, int]) -> bytes:
        """The table of the objects with these *sizes*, by raw digest."""
        return b"".join([_RECORD.pack(raw, sizes[raw]) for raw in sorted(sizes)])

    def size(self, digest: Digest) -> int | None:
        """The object's size in bytes; None: not in the table.  A binary search."""
        wanted, low, high = digest.raw, 0, self._count
        while low < high:
            middle = (low + high) // 2
            at = middle * _RECORD.size
            if bytes(self._buffer[at : at + _DIGEST_BYTES]) < wanted:
                low = middle + 1
            else:
                high = middle
        if low == self._count:
            return None
        raw, size = _RECORD.unpack_from(self._buffer, low * _RECORD.size)
        return int(size) if raw == wanted else None

    def __contains__(self, digest: object) -> bool:
        return isinstance(digest, Digest) and self.size(digest) is not None

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[Digest, int]]:
        """Every object with its size, by digest."""
        for at in range(0, self._count * _RECORD.size, _RECORD.size):
            raw, size = _RECORD.unpack_from(self._buffer, at)
            yield Digest(raw), size

    @property
    def total_bytes(self) -> int:
        """The sum of all sizes; reads the whole table."""
        return sum(size for _, size in self)
