"""
An object store in memory: the contract's simplest reading, for tests.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gear_plugin.content.base import CHUNK_BYTES, Announcement, Put
from gear_plugin.digest import Digest
from gear_plugin.errors import ContentCorrupt, ContentNotFound


class MemoryStore:
    """Objects in a dictionary; gone with the process."""

    def __init__(self, name: str = "memory") -> None:
        self.name = name
        self._objects: dict[Digest, bytes] = {}
        self._lock = threading.Lock()

    def announce(self) -> Announcement:
        return _Announcement()

    @contextlib.contextmanager
    def read(self, digest: Digest) -> Iterator[Iterator[bytes]]:
        content = self._get(digest)
        yield (content[at : at + CHUNK_BYTES] for at in range(0, len(content), CHUNK_BYTES))

    def has(self, digest: Digest) -> bool:
        return digest in self._objects

    def put(self, digest: Digest, path: Path) -> bool:
        if self.has(digest):
            return False
        content = path.read_bytes()
        if Digest.of(content) != digest:
            raise ContentCorrupt(f"{path} is not {digest}; it changed while it was stored")
        with self._lock:
            is_new = digest not in self._objects
            self._objects[digest] = content
            return is_new

    def put_all(
        self, objects: Sequence[tuple[Digest, Path]], advance: Callable[[int], None]
    ) -> list[Put]:
        puts = []
        for digest, path in objects:
            puts.append(Put(self.put(digest, path), self.size(digest)))
            advance(self.size(digest))
        return puts

    def sweep(self) -> int:
        return 0

    def list(self) -> Iterator[Digest]:
        with self._lock:
            return iter(tuple(self._objects))

    def delete(self, digest: Digest) -> bool:
        with self._lock:
            return self._objects.pop(digest, None) is not None

    def size(self, digest: Digest) -> int:
        return len(self._get(digest))

    def _get(self, digest: Digest) -> bytes:
        try:
            return self._objects[digest]
        except KeyError:
            raise ContentNotFound(f"{self.name} has no object {digest}") from None


class _Announcement:
    """Nobody collects here."""

    def renew(self) -> None:
        pass

    def stands(self) -> bool:
        return True

    def withdraw(self) -> bool:
        return True
