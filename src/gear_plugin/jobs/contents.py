"""
The regular files of a saved image, hashed and copied, each distinct content once.

Reading is by `pread` into small buffers, not by mmap: mapped pages count as
the process's own memory, all of a large image's.  hashlib and the copies
release the GIL, so threads hash in parallel.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gear_plugin.digest import Digest
from gear_plugin.durable import READ_ONLY
from gear_plugin.errors import ArchiveMalformed
from gear_plugin.image import CHUNK_BYTES, LARGE_OBJECT_BYTES, Content
from gear_plugin.jobs.bundle import Stretch
from gear_plugin.jobs.parallel import for_each
from gear_plugin.jobs.progress import Progress

_NO_COPY_RANGE = (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
"""Between two filesystems, and on some; sendfile does it everywhere."""

Chunks = dict[Digest, tuple[bytes, ...]]
"""The chunk digests of each large object, as in `Manifest.chunks`."""


def store_contents(
    contents: Sequence[Content], layers: Sequence[Stretch], files: Path, progress: Progress
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

    def __init__(self, layers: Sequence[Stretch], files: Path) -> None:
        self.chunks: Chunks = {}
        self._layers = layers
        self._files = str(files)
        self._lock = threading.Lock()
        # One value a content, whichever files have it.
        self._claimed: dict[bytes, Digest] = {}
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
        content.digest, is_first = self._claim(hashlib.sha256(data).digest())
        if is_first:
            target = self._create(content.digest)
            try:
                _write(target, data)
            finally:
                os.close(target)

    def _store_large(self, content: Content, source: int, start: int) -> None:
        """Hash in chunks, then copy, if at all."""
        has_chunks = content.size >= LARGE_OBJECT_BYTES
        whole, chunks = _hashed(source, start, content.size, in_chunks=has_chunks)
        content.digest, is_first = self._claim(whole)
        if not is_first:
            return
        if has_chunks:
            self.chunks[content.digest] = chunks
        target = self._create(content.digest)
        try:
            _copy(source, start, content.size, target)
        finally:
            os.close(target)

    def _claim(self, raw: bytes) -> tuple[Digest, bool]:
        """The digest, and whether the caller is the first with this content."""
        with self._lock:
            found = self._claimed.get(raw)
            if found is not None:
                return found, False
            made = self._claimed[raw] = Digest(raw)
            return made, True

    def _create(self, digest: Digest) -> int:
        shard, _, name = digest.shard_path.partition("/")
        folder = f"{self._files}/{shard}"
        if shard not in self._shards:
            Path(folder).mkdir(exist_ok=True)
            self._shards.add(shard)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return os.open(f"{folder}/{name}", flags, READ_ONLY)


def _hashed(
    source: int, start: int, size: int, *, in_chunks: bool
) -> tuple[bytes, tuple[bytes, ...]]:
    """The digest of a large content, and with *in_chunks* those of its chunks."""
    whole, chunks = hashlib.sha256(), []
    end = start + size
    with ThreadPoolExecutor(1) as beside:
        for at in range(start, end, CHUNK_BYTES):
            data = _read(source, min(CHUNK_BYTES, end - at), at)
            # Another core's work, if one is free: this may be the last file left.
            chunk = beside.submit(_digest, data) if in_chunks else None
            whole.update(data)
            if chunk is not None:
                chunks.append(chunk.result())
    return whole.digest(), tuple(chunks)


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _write(target: int, data: bytes) -> None:
    # A disk that is about to be full takes a part first, and fails then.
    while data:
        data = data[os.write(target, data) :]


def _copy(source: int, start: int, size: int, target: int) -> None:
    """Copy into the empty file *target*; holes stay holes."""
    at, end = start, start + size
    while at < end:
        try:
            data = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # no more data
                raise
            break
        at = min(os.lseek(source, data, os.SEEK_HOLE), end)
        os.lseek(target, data - start, os.SEEK_SET)
        while data < at:
            copied = _copy_some(source, data, at - data, target)
            if not copied:
                raise ArchiveMalformed("the saved image became shorter while it was read")
            data += copied
    os.ftruncate(target, size)


def _copy_some(source: int, offset: int, count: int, target: int) -> int:
    """Copy inside the kernel: shared where the filesystem can, else by its page cache."""
    try:
        return os.copy_file_range(source, target, count, offset)
    except OSError as error:
        if error.errno not in _NO_COPY_RANGE:
            raise
    return os.sendfile(target, source, offset, count)


def _read(source: int, size: int, start: int) -> bytes:
    data = os.pread(source, size, start)
    if len(data) != size:
        raise ArchiveMalformed("the saved image ends within a file")
    return data
