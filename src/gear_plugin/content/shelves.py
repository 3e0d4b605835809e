"""
The files of a directory store one by one, for those who look after it.

Both forms of an object are a file of their own here.  Whatever else people put
there is passed over.  May block as long as the filesystem does.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from gear_plugin.digest import Digest
from gear_plugin.errors import BadDigest

COMPRESSED = ".zst"
"""The end of the name of an object that is one zstd frame."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One object in one form, as it stands in `<folder>/<3 hex>/<61 hex>[.zst]`."""

    digest: Digest
    folder: str
    is_compressed: bool
    size_bytes: int
    """What it takes: compressed."""
    mtime_s: float

    @property
    def name(self) -> str:
        """Its place in the folder."""
        return self.digest.shard_path + (COMPRESSED if self.is_compressed else "")

    @property
    def path(self) -> str:
        """Where it is."""
        return f"{self.folder}/{self.name}"


def stored_files(folder: str) -> Iterator[StoredFile]:
    """
    Every file below *folder*, by digest; each name once, also if the folder changes.

    Nothing if there is no such folder.  Those that come or go meanwhile may be missed.
    """
    with contextlib.suppress(FileNotFoundError):
        for shard in sorted(os.listdir(folder)):
            yield from _in_shard(folder, shard)


def files_of(folder: str, digest: Digest) -> Iterator[StoredFile]:
    """The files of one object."""
    for is_compressed in (False, True):
        name = digest.shard_path + (COMPRESSED if is_compressed else "")
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(f"{folder}/{name}")
            yield StoredFile(digest, folder, is_compressed, found.st_size, found.st_mtime)


def _in_shard(folder: str, shard: str) -> Iterator[StoredFile]:
    try:
        # Not scandir: some filesystems give a name twice that is made anew meanwhile.
        names = sorted(set(os.listdir(f"{folder}/{shard}")))
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        with contextlib.suppress(BadDigest, FileNotFoundError):
            digest = Digest.from_shard_path(f"{shard}/{name.removesuffix(COMPRESSED)}")
            found = os.stat(f"{folder}/{shard}/{name}")
            yield StoredFile(
                digest, folder, name.endswith(COMPRESSED), found.st_size, found.st_mtime
            )
