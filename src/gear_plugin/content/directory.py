"""
An object store in a directory, local or on NFS.

    <root>/objects/<first 3 hex digits>/<other 61>        as it is
    <root>/objects/<first 3 hex digits>/<other 61>.zst    one zstd frame

Which of the two is the writer's choice; readers look for both.  Files appear
whole and durable (`durable.write_once`), read-only, and never change.  Any
number of threads, processes and machines may write: names come from content,
so the worst that a race leaves is one object in both forms, each right.

Every method may block for as long as the filesystem does.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

import zstandard

from gear_plugin.content.base import CHUNK_BYTES
from gear_plugin.digest import Digest
from gear_plugin.durable import is_full, sync_directory, write_once
from gear_plugin.errors import (
    BadDigest,
    ContentCorrupt,
    ContentNotFound,
    SourceUnavailable,
    StorageFull,
)

_ZST = ".zst"
_LEVEL = 3
# A file takes whole 4 KiB blocks, so below that compression saves no disk and
# costs every reader a decompressor.
_ALWAYS_RAW_BYTES = 4096
# Compression must save 10 %, or reading costs CPU for nothing.
_WORTH_IT = 0.9
_SAMPLE_BYTES = 64 * 1024
# Level 3 uses windows of at most 2 MiB; a frame that asks for more is not ours
# and would cost each reader that much memory.
_MAX_WINDOW_BYTES = 8 << 20


class DirectoryStore:
    """The store below *root*; nothing is touched until the first call."""

    def __init__(self, root: Path) -> None:
        self.name = f"store {root}"
        self._objects = root / "objects"
        self._objects_text = str(self._objects)
        self._local = threading.local()

    @classmethod
    def create(cls, root: Path) -> DirectoryStore:
        """
        The store at *root*, made now if it is not there.

        Only for who sets a store up.  Everyone else finds a directory without
        `objects/` unavailable: it is most likely a share that is not mounted,
        and must neither be believed empty nor be filled.
        """
        try:
            (root / "objects").mkdir(parents=True, exist_ok=True)
            sync_directory(root)
        except OSError as error:
            raise SourceUnavailable(f"cannot make a store in {root}: {error}") from error
        return cls(root)

    @contextlib.contextmanager
    def read(self, digest: Digest) -> Iterator[Iterator[bytes]]:
        handle, is_compressed = self._open(digest)
        try:
            raw = self._chunks(digest, handle)
            yield self._decompressed(digest, raw) if is_compressed else raw
        finally:
            os.close(handle)

    def has(self, digest: Digest) -> bool:
        return self._find(digest) is not None

    def put(self, digest: Digest, path: Path) -> bool:
        with path.open("rb") as source:
            if self._find(digest) is not None:
                # Another writer may not have got as far as this yet.
                with self._unavailable(digest):
                    sync_directory(self._objects / digest.hex[:3])
                return False
            size_bytes = os.fstat(source.fileno()).st_size
            compress = self._worth_compressing(source, size_bytes)
            source.seek(0)
            name = digest.shard_path + (_ZST if compress else "")
            return self._write(digest, source, self._objects / name, size_bytes, compress)

    def list(self) -> Iterator[Digest]:
        self._check_present()
        with self._unavailable("its objects"), os.scandir(self._objects_text) as entries:
            shards = sorted(entry.name for entry in entries if entry.is_dir())
        for shard in shards:
            with self._unavailable(f"folder {shard}"):
                names = os.listdir(f"{self._objects_text}/{shard}")
            for name in {name.removesuffix(_ZST) for name in names}:
                # Temporaries, and whatever people put there, are not objects.
                with contextlib.suppress(BadDigest):
                    yield Digest.from_shard_path(f"{shard}/{name}")

    def delete(self, digest: Digest) -> bool:
        removed = False
        for suffix in ("", _ZST):
            with self._unavailable(digest), contextlib.suppress(FileNotFoundError):
                os.unlink(self._path(digest) + suffix)
                removed = True
        return removed

    def size(self, digest: Digest) -> int:
        found = self._find(digest)
        if found is None:
            raise ContentNotFound(f"{self.name} has no object {digest}")
        return found.st_size

    def _path(self, digest: Digest) -> str:
        return f"{self._objects_text}/{digest.shard_path}"

    def _find(self, digest: Digest) -> os.stat_result | None:
        path = self._path(digest)
        for suffix in ("", _ZST):
            with self._unavailable(digest), contextlib.suppress(FileNotFoundError):
                return os.stat(path + suffix)
        self._check_present()
        return None

    def _open(self, digest: Digest) -> tuple[int, bool]:
        path = self._path(digest)
        for suffix in ("", _ZST):
            with self._unavailable(digest), contextlib.suppress(FileNotFoundError):
                return os.open(path + suffix, os.O_RDONLY | os.O_CLOEXEC), bool(suffix)
        self._check_present()
        raise ContentNotFound(f"{self.name} has no object {digest}")

    def _check_present(self) -> None:
        with self._unavailable("its objects"):
            is_present = self._objects.is_dir()
        if not is_present:
            raise SourceUnavailable(f"{self.name} has no objects/ directory; is it mounted?")

    @contextlib.contextmanager
    def _unavailable(self, what: object) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            if is_full(error):
                raise StorageFull(f"{self.name} is full ({error.strerror})") from error
            raise SourceUnavailable(f"{self.name}, {what}: {error.strerror}") from error

    def _chunks(self, digest: Digest, handle: int) -> Iterator[bytes]:
        # Not `with self._unavailable`: this runs once an object and chunk, and
        # asking for no more than there is saves allocating 1 MiB for 1 KiB.
        try:
            wanted = min(CHUNK_BYTES, os.fstat(handle).st_size + 1)
            while chunk := os.read(handle, wanted):
                yield chunk
        except OSError as error:
            raise SourceUnavailable(f"{self.name}, {digest}: {error.strerror}") from error

    def _decompressed(self, digest: Digest, raw: Iterator[bytes]) -> Iterator[bytes]:
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
        reader = decompressor.stream_reader(
            _ChunkReader(raw),  # type: ignore[arg-type]  # read() is all that it uses
            read_size=CHUNK_BYTES,
        )
        try:
            while chunk := reader.read(CHUNK_BYTES):
                yield chunk
        except zstandard.ZstdError as error:
            raise ContentCorrupt(f"{self.name}, {digest}: not a zstd frame ({error})") from error

    def _compressor(self) -> zstandard.ZstdCompressor:
        # One a thread: a compressor is not thread-safe, and a new one an
        # object would cost more than compressing a small file.
        if not hasattr(self._local, "compressor"):
            self._local.compressor = zstandard.ZstdCompressor(level=_LEVEL)
        compressor: zstandard.ZstdCompressor = self._local.compressor
        return compressor

    def _worth_compressing(self, source: BinaryIO, size_bytes: int) -> bool:
        """Decide from the whole file when it is small, from three samples when it is large."""
        if size_bytes <= _ALWAYS_RAW_BYTES:
            return False
        if size_bytes <= CHUNK_BYTES:
            sample = source.read(size_bytes)
        else:
            last = size_bytes - _SAMPLE_BYTES
            sample = b""
            for offset in (0, last // 2, last):
                source.seek(offset)
                sample += source.read(_SAMPLE_BYTES)
        return len(self._compressor().compress(sample)) <= len(sample) * _WORTH_IT

    def _write(
        self, digest: Digest, source: BinaryIO, target: Path, size_bytes: int, compress: bool
    ) -> bool:
        self._make_shard(target.parent)
        try:
            with write_once(target, replace=False) as file:
                if compress:
                    with self._compressor().stream_writer(
                        file, size=size_bytes, closefd=False
                    ) as out:
                        actual = _copy(source, out, size_bytes)
                else:
                    actual = _copy(source, file, size_bytes)
                if actual != digest:
                    raise ContentCorrupt(
                        f"{source.name} is {actual}, not {digest}; it changed while it was stored"
                    )
        except FileExistsError:
            with self._unavailable(digest):
                sync_directory(target.parent)
            return False
        except zstandard.ZstdError as error:
            raise ContentCorrupt(f"{source.name} changed while it was stored: {error}") from error
        except OSError as error:
            raise SourceUnavailable(f"{self.name}, {digest}: {error}") from error
        return True

    def _make_shard(self, shard: Path) -> None:
        with self._unavailable(f"folder {shard.name}"):
            if not shard.is_dir():
                shard.mkdir(exist_ok=True)
                sync_directory(self._objects)


class _Writable(Protocol):
    def write(self, data: bytes, /) -> int: ...


class _ChunkReader:
    """What zstandard reads from: each `read` gives one chunk."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks

    def read(self, _size: int = -1) -> bytes:
        return next(self._chunks, b"")


def _copy(source: BinaryIO, target: _Writable, size: int) -> Digest:
    """Copy *size* bytes, or what there is; the digest of what was copied."""
    sha256 = hashlib.sha256()
    while size and (chunk := source.read(min(CHUNK_BYTES, size))):
        sha256.update(chunk)
        target.write(chunk)
        size -= len(chunk)
    return Digest(sha256.digest())
