"""
Which objects of a store were read, told by the store's own filesystem.

The access time of every object is set to 1970; reading one brings it forward
(`relatime` updates an access time that is older than the modification time).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


class StoreWatch:
    """Reads of the objects in *store* since the last `reset`."""

    def __init__(self, store: Path) -> None:
        self._objects = store / "objects"
        self.reset()

    def reset(self) -> None:
        """Forget all reads so far."""
        for _, entry in self._objects_of_all_shards():
            status = entry.stat()
            if status.st_atime_ns:
                os.utime(entry.path, ns=(0, status.st_mtime_ns))

    def read(self) -> set[str]:
        """The digests (hex) of the objects that were read."""
        found = self._objects_of_all_shards()
        return {digest for digest, entry in found if entry.stat().st_atime_ns}

    def everything(self) -> set[str]:
        """The digests (hex) of all objects."""
        return {digest for digest, _ in self._objects_of_all_shards()}

    def path(self, digest: str) -> Path:
        """Where the object is kept, compressed or not."""
        return next((self._objects / digest[:3]).glob(f"{digest[3:]}*"))

    def _objects_of_all_shards(self) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """Each object's digest (hex) and file; scandir, as there are tens of thousands."""
        with os.scandir(self._objects) as shards:
            for shard in shards:
                if len(shard.name) == 3:
                    with os.scandir(shard) as entries:
                        for entry in entries:
                            yield shard.name + entry.name.removesuffix(".zst"), entry
