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
        for path in self._files():
            os.utime(path, ns=(0, path.stat().st_mtime_ns))

    def read(self) -> set[str]:
        """The digests (hex) of the objects that were read."""
        return {self._digest(path) for path in self._files() if path.stat().st_atime_ns}

    def everything(self) -> set[str]:
        """The digests (hex) of all objects."""
        return {self._digest(path) for path in self._files()}

    def path(self, digest: str) -> Path:
        """Where the object is kept, compressed or not."""
        return next((self._objects / digest[:3]).glob(f"{digest[3:]}*"))

    def _files(self) -> Iterator[Path]:
        return (path for path in self._objects.glob("[0-9a-f]*/*") if path.is_file())

    @staticmethod
    def _digest(path: Path) -> str:
        return path.parent.name + path.name.removesuffix(".zst")
