"""
The whole check of an index that came from outside, before anything uses it.

Linear in its input, but an index may be large: callers run it in a process
that may die.  Pure.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from gear_plugin.digest import Digest
from gear_plugin.errors import IndexDamaged
from gear_plugin.image import erofs_reader
from gear_plugin.image.erofs_format import Buffer
from gear_plugin.image.manifest import Manifest, chunk_count
from gear_plugin.image.objects import ObjectTable


@dataclass(frozen=True, slots=True)
class CheckedIndex:
    """An index that holds together; `objects` are the bytes of its ObjectTable."""

    manifest: Manifest
    objects: bytes


def check_index(erofs: Buffer, manifest: bytes) -> CheckedIndex:
    """
    Check `index.erofs` and manifest, each for itself and against one another.

    Raises IndexDamaged: one line that says what does not hold.
    """
    decoded = Manifest.decode(manifest)
    if Digest(hashlib.sha256(erofs).digest()) != decoded.index_digest:
        raise IndexDamaged("index: index.erofs is not the one that the manifest names")
    found = erofs_reader.scan(erofs)
    if found.totals != decoded.totals:
        raise IndexDamaged("index: index.erofs holds not as much as the manifest says")
    objects = ObjectTable.build(found.sizes)
    table = ObjectTable(objects)
    for digest, chunks in decoded.chunks.items():
        size = table.size(digest)
        if size is None or not chunks or len(chunks) != chunk_count(size):
            raise IndexDamaged(f"index: the chunk digests of {digest} fit no object")
    large = sum(map(bool, map(chunk_count, found.sizes.values())))
    if large != len(decoded.chunks):
        raise IndexDamaged("index: a large object has no chunk digests")
    for digest in decoded.profile:
        if digest not in table:
            raise IndexDamaged(f"index: the start profile names {digest}, no object of this image")
    return CheckedIndex(decoded, objects)
