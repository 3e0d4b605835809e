"""Small filesystems of a test's own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mount:
    """A mounted filesystem; needs root."""

    path: Path

    @classmethod
    @contextmanager
    def tmpfs(cls, path: Path, *, size_bytes: int) -> Iterator[Mount]:
        """An empty one, so large, for as long as the block runs."""
        path.mkdir()
        words = ("mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "gear-test", str(path))
        subprocess.run(words, check=True)
        try:
            yield cls(path)
        finally:
            subprocess.run(["umount", "-l", str(path)], check=True)

    def remount(self, options: str) -> None:
        """Such as `ro`."""
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.path)], check=True)
