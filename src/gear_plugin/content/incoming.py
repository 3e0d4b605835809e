"""
Objects on their way into a directory store: written, and on disk, before any
of them gets its name.

Asking the disk once for many files is what makes a store of small objects
quick: an fsync waits 2 ms, whatever it has to write.  So each file's bytes
are sent on their way as soon as they are written, and waited for together.

Temporaries have random names in one folder, `incoming/` beside `objects/`:
what a killed writer leaves is found without a look into 4,096 shards.  One
batch belongs to one thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol

import zstandard

from gear_plugin.content.base import CHUNK_BYTES
from gear_plugin.digest import Digest
from gear_plugin.durable import READ_ONLY, TEMP_PREFIX
from gear_plugin.errors import ContentCorrupt

_LEVEL = 3
# A file takes whole 4 KiB blocks, so below that compression saves no disk and
# costs every reader a decompressor.
_ALWAYS_RAW_BYTES = 4096
# Compression must save 10 %, or reading costs CPU for nothing.
_WORTH_IT = 0.9
_SAMPLE_BYTES = 64 * 1024
# A slow share must not be handed gigabytes at once, and waited for without a
# sign of life.
_SYNC_EVERY_BYTES = 64 << 20
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC

_local = threading.local()

Border = Callable[[], contextlib.AbstractContextManager[None]]
"""Turns the store's OSErrors into Gear's; the local file's stay as they are."""


@dataclass(slots=True)
class Incoming:
    """One object that has no name yet."""

    digest: Digest
    path: str
    handle: int
    is_compressed: bool = False
    stored_bytes: int = 0


class Batch:
    """
    Objects that are written together to *folder*, which must exist.

    At the end of its block whatever has not been named is removed.
    """

    def __init__(self, folder: Path, border: Border) -> None:
        self._folder = str(folder)
        self._border = border
        self._objects: list[Incoming] = []

    def __enter__(self) -> Batch:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        for incoming in self._objects:
            with contextlib.suppress(OSError):
                os.close(incoming.handle)
            # `sweep` takes away what cannot be removed now.
            with contextlib.suppress(OSError):
                os.unlink(incoming.path)

    def __iter__(self) -> Iterator[Incoming]:
        """Every object that was written."""
        return iter(self._objects)

    def add(self, digest: Digest, source: BinaryIO, advance: Callable[[int], None]) -> None:
        """
        Write what *source* holds, compressed when that pays.

        Raises ContentCorrupt when it is not *digest*, what the border makes of
        the store's errors, and OSError when *source* cannot be read.
        """
        size_bytes = os.fstat(source.fileno()).st_size
        with self._border():
            incoming = self._create(digest)
        if size_bytes <= CHUNK_BYTES:
            actual = self._write_small(incoming, source, size_bytes)
            advance(size_bytes)
        else:
            actual = self._write_large(incoming, source, size_bytes, advance)
        if actual != digest:
            raise ContentCorrupt(
                f"{source.name} is {actual}, not {digest}; it changed since it was built"
            )
        with self._border():
            os.fchmod(incoming.handle, READ_ONLY)
            incoming.stored_bytes = os.fstat(incoming.handle).st_size
            # Starts writing to the disk and does not wait (mm/fadvise.c).
            os.posix_fadvise(incoming.handle, 0, 0, os.POSIX_FADV_DONTNEED)

    def sync(self) -> None:
        """Wait until every object's bytes are on disk."""
        with self._border():
            for incoming in self._objects:
                os.fsync(incoming.handle)

    def _create(self, digest: Digest) -> Incoming:
        path = f"{self._folder}/{TEMP_PREFIX}{secrets.token_hex(8)}"
        incoming = Incoming(digest, path, os.open(path, _FLAGS, READ_ONLY))
        self._objects.append(incoming)
        return incoming

    def _write_small(self, incoming: Incoming, source: BinaryIO, size_bytes: int) -> Digest:
        data = source.read(size_bytes)
        packed = _compressor().compress(data) if size_bytes > _ALWAYS_RAW_BYTES else data
        incoming.is_compressed = len(packed) <= len(data) * _WORTH_IT and packed is not data
        with self._border():
            _write(incoming.handle, packed if incoming.is_compressed else data)
        return Digest.of(data)

    def _write_large(
        self,
        incoming: Incoming,
        source: BinaryIO,
        size_bytes: int,
        advance: Callable[[int], None],
    ) -> Digest:
        incoming.is_compressed = _worth_compressing(source, size_bytes)
        source.seek(0)
        sha256 = hashlib.sha256()
        target = _Target(incoming.handle, self._border)
        writer: _Writable = target
        if incoming.is_compressed:
            writer = _compressor().stream_writer(
                target,  # type: ignore[arg-type]  # write() is all that it uses
                size=size_bytes,
                closefd=False,
            )
        left_bytes = size_bytes
        while left_bytes and (chunk := source.read(min(CHUNK_BYTES, left_bytes))):
            sha256.update(chunk)
            writer.write(chunk)
            advance(len(chunk))
            left_bytes -= len(chunk)
        if isinstance(writer, zstandard.ZstdCompressionWriter):
            try:
                writer.flush(zstandard.FLUSH_FRAME)
            except zstandard.ZstdError as error:  # fewer bytes than it was told
                raise ContentCorrupt(f"{source.name} changed while it was stored") from error
        return Digest(sha256.digest())


class _Writable(Protocol):
    def write(self, data: bytes, /) -> int: ...


class _Target:
    """The file of a large object, which syncs now and then."""

    def __init__(self, handle: int, border: Border) -> None:
        self._handle = handle
        self._border = border
        self._unsynced_bytes = 0

    def write(self, data: bytes, /) -> int:
        with self._border():
            _write(self._handle, data)
            self._unsynced_bytes += len(data)
            if self._unsynced_bytes >= _SYNC_EVERY_BYTES:
                os.fdatasync(self._handle)
                self._unsynced_bytes = 0
        return len(data)

    def flush(self) -> None:
        """The compressor asks for it."""


def _write(handle: int, data: bytes | memoryview) -> None:
    # A disk that is about to be full takes a part first, and fails then.
    left = memoryview(data)
    while left:
        left = left[os.write(handle, left) :]


def _compressor() -> zstandard.ZstdCompressor:
    # One a thread: a compressor is not thread-safe, and a new one an object
    # would cost more than compressing a small file.
    if not hasattr(_local, "compressor"):
        _local.compressor = zstandard.ZstdCompressor(level=_LEVEL)
    compressor: zstandard.ZstdCompressor = _local.compressor
    return compressor


def _worth_compressing(source: BinaryIO, size_bytes: int) -> bool:
    """Decide about a large file from three samples."""
    last = size_bytes - _SAMPLE_BYTES
    sample = b""
    for offset in (0, last // 2, last):
        source.seek(offset)
        sample += source.read(_SAMPLE_BYTES)
    return len(_compressor().compress(sample)) <= len(sample) * _WORTH_IT
