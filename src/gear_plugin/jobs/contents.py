"""
The regular files of a saved image, hashed and copied, each distinct content once.

Reading is by `pread` into small buffers, not by mmap: mapped pages count as
the process's own memory, all of a large image's.  hashlib and the copies
release the GIL, so threads hash in parallel.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from gear_plugin.digest import Digest
from gear_plugin.durable import READ_ONLY
from gear_plugin.errors import ArchiveMalformed
from gear_plugin.image import CHUNK_BYTES, LARGE_OBJECT_BYTES, Content
from gear_plugin.jobs.parallel import for_each
from gear_plugin.jobs.progress import Progress
from gear_plugin.jobs.saved import Layer

Chunks = dict[Digest, tuple[bytes, ...]]
"""The chunk digests of each large object, as in `Manifest.chunks`."""


def store_contents(
    contents: Sequence[Content], layers: Sequence[Layer], files: Path, progress: Progress
) -> Chunks:
    """
    Copy every distinct content to its place below *files*, and set each inode's digest.

    *files* must be empty and nobody else's: files get their names at once.
    Raises ArchiveMalformed (a layer ends within a file); OSErrors as they are.
    """
    work = _Contents(layers, files)

    def store(content: Content) -> None:
        work.store(content)
        progress.advance(content.size)

    for_each(store, contents, threads=os.cpu_count() or 1)
    return work.chunks


class _Contents:
    """One run's state; any thread may store."""

    def __init__(self, layers: Sequence[Layer], files: Path) -> None:
        self.chunks: Chunks = {}
        self._layers = layers
        self._files = str(files)
        self._lock = threading.Lock()
        self._claimed: set[Digest] = set()
        self._shards: set[str] = set()

    def store(self, content: Content) -> None:
        layer = self._layers[content.layer]
        start = layer.start + content.offset
        # Before anything is read: the region after a layer is other people's bytes.
        if content.offset + content.size > layer.size:
            raise ArchiveMalformed("a saved layer ends within a file")
        if content.size <= CHUNK_BYTES:
            self._store_small(content, layer.handle, start)
        else:
            self._store_large(content, layer.handle, start)

    def _store_small(self, content: Content, source: int, start: int) -> None:
        data = _read(source, content.size, start)
        digest = content.inode.digest = Digest(hashlib.sha256(data).digest())
        if self._claim(digest):
            target = self._create(digest)
            try:
                _write(target, data)
            finally:
                os.close(target)

    def _store_large(self, content: Content, source: int, start: int) -> None:
        """Hash in chunks, then copy inside the kernel, if at all."""
        whole, chunks = hashlib.sha256(), []
        has_chunks = content.size >= LARGE_OBJECT_BYTES
        end = start + content.size
        for at in range(start, end, CHUNK_BYTES):
            data = _read(source, min(CHUNK_BYTES, end - at), at)
            whole.update(data)
            if has_chunks:
                chunks.append(hashlib.sha256(data).digest())
        digest = content.inode.digest = Digest(whole.digest())
        if not self._claim(digest):
            return
        if has_chunks:
            self.chunks[digest] = tuple(chunks)
        target = self._create(digest)
        try:
            while start < end:
                start += os.copy_file_range(source, target, end - start, start)
        finally:
            os.close(target)

    def _claim(self, digest: Digest) -> bool:
        """Whether the caller is the first with this content."""
        with self._lock:
            if digest in self._claimed:
                return False
            self._claimed.add(digest)
            return True

    def _create(self, digest: Digest) -> int:
        shard, _, name = digest.shard_path.partition("/")
        folder = f"{self._files}/{shard}"
        if shard not in self._shards:
            Path(folder).mkdir(exist_ok=True)
            self._shards.add(shard)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return os.open(f"{folder}/{name}", flags, READ_ONLY)


def _write(target: int, data: bytes) -> None:
    # A disk that is about to be full takes a part first, and fails then.
    while data:
        data = data[os.write(target, data) :]


def _read(source: int, size: int, start: int) -> bytes:
    data = os.pread(source, size, start)
    if len(data) != size:
        raise ArchiveMalformed("the saved image ends within a file")
    return data
