"""
Choosing and removing what a full cache can do without.

A public entry with one link is used by no image on the node; its ctime is the
moment when the last image let go of it (`cache` explains why).  Reads
nothing but directory entries and inodes.  Safe beside a working cache.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

_BLOCK_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a data layer."""

    path: str
    size_bytes: int
    """On disk: whole blocks."""
    links: int
    released_ns: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Eviction:
    """What an eviction did: what it removed and what it left, objects and bytes on disk."""

    removed_objects: int
    removed_bytes: int
    kept_objects: int
    kept_bytes: int


def occupied(size_bytes: int) -> int:
    """The disk bytes of a file of *size_bytes*."""
    return -(-size_bytes // _BLOCK_BYTES) * _BLOCK_BYTES


def walk(layer: str) -> Iterator[Entry]:
    """Every file of the data layer (`<layer>/abc/<61 hex>`), some 200,000 a second."""
    with os.scandir(layer) as entries:
        shards = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    for shard in shards:
        with contextlib.suppress(FileNotFoundError), os.scandir(shard) as files:
            for file in files:
                if not file.is_file(follow_symlinks=False):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    stat = file.stat(follow_symlinks=False)
                    yield Entry(
                        file.path,
                        occupied(stat.st_size),
                        stat.st_nlink,
                        stat.st_ctime_ns,
                        stat.st_mtime_ns,
                    )


def evict(public: str, need_bytes: int) -> Eviction:
    """
    Remove unused objects, those first that were let go first, until *need_bytes* are free.

    Stops early when every object left is in use.  An object that an image
    takes up in the same instant loses its public name and keeps its private one.
    """
    unused: list[Entry] = []
    objects = total = 0
    for entry in walk(public):
        objects += 1
        total += entry.size_bytes
        if entry.links == 1:
            unused.append(entry)
    unused.sort(key=lambda entry: entry.released_ns)
    removed = removed_bytes = 0
    for entry in unused:
        if removed_bytes >= need_bytes:
            break
        with contextlib.suppress(FileNotFoundError):
            if os.lstat(entry.path).st_nlink == 1:
                os.unlink(entry.path)
                removed += 1
                removed_bytes += entry.size_bytes
    return Eviction(removed, removed_bytes, objects - removed, total - removed_bytes)
