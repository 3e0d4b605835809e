"""
An object store in a directory, local or on NFS.

    <root>/objects/<first 3 hex digits>/<other 61>        as it is
    <root>/objects/<first 3 hex digits>/<other 61>.zst    one zstd frame
    <root>/incoming/.tmp-<16 hex>                         being written
    <root>/pushes/<16 hex>                                a push is under way (`announce`)
    <root>/trash/<16 hex>/<3 hex digits>/<61>[.zst]       about to be removed (`trash`)

Which of the two forms is the writer's choice; readers look for both.  Files
appear whole and durable, read-only, and never change: the bytes are on disk
before they have a name, and the name before `put` returns.  Any number of
threads, processes and machines may write: names come from content, so the
worst that a race leaves is one object in both forms, each right.

Only a collector removes anything (`jobs.collect`).  What it has thrown into the
trash counts as missing to writers, and is still read.

Crash windows: before the name is given, a file is left in `incoming/`, which
`sweep` takes away a day later; after it, the object is whole, and only its
name may be lost until the directory is fsynced.

Every method may block for as long as the filesystem does.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import zstandard

from gear_plugin.content.announce import FileAnnouncement
from gear_plugin.content.base import CHUNK_BYTES, Announcement, Put
from gear_plugin.content.incoming import Batch, Incoming
from gear_plugin.content.shelves import COMPRESSED, StoredFile
from gear_plugin.digest import SHARD_HEX_DIGITS, Digest
from gear_plugin.durable import TEMP_PREFIX, is_full, remove_stale, sync_directory
from gear_plugin.errors import (
    BadDigest,
    ContentCorrupt,
    ContentNotFound,
    SourceUnavailable,
    StorageFull,
)

# Level 3 uses windows of at most 2 MiB; a frame that asks for more is not ours
# and would cost each reader that much memory.
_MAX_WINDOW_BYTES = 8 << 20
# No single object takes a day to write; a clock may be wrong by hours.
_STALE_S = 24 * 3600.0


class DirectoryStore:
    """The store below *root*; nothing is touched until the first call."""

    def __init__(self, root: Path) -> None:
        self.name = f"store {root}"
        self._objects = root / "objects"
        self._objects_text = str(self._objects)
        self._incoming = root / "incoming"
        self._pushes = root / "pushes"
        self._trash = str(root / "trash")

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
            (root / "incoming").mkdir(exist_ok=True)
            sync_directory(root)
        except OSError as error:
            if is_full(error):
                raise StorageFull(f"no room for a store in {root}; free space there") from error
            raise SourceUnavailable(f"cannot make a store in {root}: {error.strerror}") from error
        return cls(root)

    def announce(self) -> Announcement:
        self._check_present()
        with self._writing():
            self._pushes.mkdir(exist_ok=True)
        return FileAnnouncement(self._pushes, self._writing)

    @contextlib.contextmanager
    def read(self, digest: Digest) -> Iterator[Iterator[bytes]]:
        handle, is_compressed = self._open(digest)
        with self._reading(digest, handle, is_compressed) as chunks:
            yield chunks

    @contextlib.contextmanager
    def read_file(self, file: StoredFile) -> Iterator[Iterator[bytes]]:
        """As `read`, one file of the object in particular."""
        try:
            with self._unavailable(file.digest):
                handle = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise ContentNotFound(f"{self.name} has no {file.name} any more") from error
        with self._reading(file.digest, handle, file.is_compressed) as chunks:
            yield chunks

    def has(self, digest: Digest) -> bool:
        return self._find(digest) is not None

    def put(self, digest: Digest, path: Path) -> bool:
        (put,) = self.put_all([(digest, path)], lambda _: None)
        return put.is_new

    def put_all(
        self, objects: Sequence[tuple[Digest, Path]], advance: Callable[[int], None]
    ) -> list[Put]:
        puts: dict[Digest, Put] = {}
        with Batch(self._incoming, self._writing) as batch:
            for digest, path in objects:
                with path.open("rb") as source:
                    found = self._find(digest)
                    if found is None:
                        self._make_incoming()
                        batch.add(digest, source, advance)
                    else:
                        puts[digest] = Put(False, found.st_size)
                        advance(os.fstat(source.fileno()).st_size)
            batch.sync()
            with self._writing():
                for incoming in batch:
                    puts[incoming.digest] = self._publish(incoming)
                # Also for those that were there: another writer may not have
                # got as far as this yet.
                for shard in sorted({digest.hex[:SHARD_HEX_DIGITS] for digest in puts}):
                    sync_directory(self._objects / shard)
                sync_directory(self._objects)
        return [puts[digest] for digest, _ in objects]

    def sweep(self) -> int:
        with self._writing():
            try:
                with os.scandir(self._incoming) as entries:
                    if next(entries, None) is None:
                        return 0
                # By the clock that stamps the files, which may be a server's.
                with tempfile.NamedTemporaryFile(dir=self._incoming, prefix=TEMP_PREFIX) as probe:
                    now_s = os.fstat(probe.fileno()).st_mtime
                    return remove_stale(self._incoming, older_than_s=_STALE_S, now_s=now_s)
            except FileNotFoundError:
                return 0

    def list(self) -> Iterator[Digest]:
        self._check_present()
        with self._unavailable("its objects"), os.scandir(self._objects_text) as entries:
            shards = sorted(entry.name for entry in entries if entry.is_dir())
        for shard in shards:
            with self._unavailable(f"folder {shard}"):
                names = os.listdir(f"{self._objects_text}/{shard}")
            for name in {name.removesuffix(COMPRESSED) for name in names}:
                # Temporaries, and whatever people put there, are not objects.
                with contextlib.suppress(BadDigest):
                    yield Digest.from_shard_path(f"{shard}/{name}")

    def delete(self, digest: Digest) -> bool:
        removed = False
        for path in self._forms(digest):
            with self._unavailable(digest), contextlib.suppress(FileNotFoundError):
                os.unlink(path)
                removed = True
        return removed

    def size(self, digest: Digest) -> int:
        for path in self._readable(digest):
            with self._unavailable(digest), contextlib.suppress(FileNotFoundError):
                return os.stat(path).st_size
        self._check_present()
        raise ContentNotFound(f"{self.name} has no object {digest}")

    def _path(self, digest: Digest) -> str:
        return f"{self._objects_text}/{digest.shard_path}"

    def _forms(self, digest: Digest) -> tuple[str, str]:
        path = self._path(digest)
        return path, path + COMPRESSED

    def _readable(self, digest: Digest) -> Iterator[str]:
        """Where the object may be read; only the first two are tried for one that is there."""
        yield from self._forms(digest)
        try:
            runs = os.listdir(self._trash)
        except OSError:
            return
        for run in runs:
            path = f"{self._trash}/{run}/{digest.shard_path}"
            yield from (path, path + COMPRESSED)
        # A collector may have put it back between the two looks.
        yield from self._forms(digest)

    def _find(self, digest: Digest) -> os.stat_result | None:
        for path in self._forms(digest):
            with self._unavailable(digest), contextlib.suppress(FileNotFoundError):
                return os.stat(path)
        self._check_present()
        return None

    def _open(self, digest: Digest) -> tuple[int, bool]:
        for path in self._readable(digest):
            with self._unavailable(digest), contextlib.suppress(FileNotFoundError):
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC), path.endswith(COMPRESSED)
        self._check_present()
        raise ContentNotFound(f"{self.name} has no object {digest}")

    def _check_present(self) -> None:
        with self._unavailable("its objects"):
            is_present = self._objects.is_dir()
        if not is_present:
            raise SourceUnavailable(f"{self.name} has no objects/ directory; is it mounted?")

    @contextlib.contextmanager
    def _reading(
        self, digest: Digest, handle: int, is_compressed: bool
    ) -> Iterator[Iterator[bytes]]:
        try:
            raw = self._chunks(digest, handle)
            yield self._decompressed(digest, raw) if is_compressed else raw
        finally:
            os.close(handle)

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

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Whatever goes wrong inside is the store's fault."""
        try:
            yield
        except OSError as error:
            if is_full(error):
                raise StorageFull(
                    f"{self.name} is full ({error.strerror}); free space there"
                ) from error
            raise SourceUnavailable(f"cannot write to {self.name}: {error.strerror}") from error

    def _make_incoming(self) -> None:
        with self._writing():
            if not self._incoming.is_dir():
                self._incoming.mkdir(exist_ok=True)

    def _publish(self, incoming: Incoming) -> Put:
        """Give the object its name, unless another writer was first."""
        target = self._path(incoming.digest) + (COMPRESSED if incoming.is_compressed else "")
        try:
            os.link(incoming.path, target)
        except FileExistsError:
            return Put(False, os.stat(target).st_size)
        except FileNotFoundError:
            if not os.path.exists(incoming.path):
                raise SourceUnavailable(
                    f"{self.name}: somebody removed {incoming.path} while it was written; try again"
                ) from None
            with contextlib.suppress(FileExistsError):
                os.mkdir(os.path.dirname(target))
            return self._publish(incoming)
        return Put(True, incoming.stored_bytes)


class _ChunkReader:
    """What zstandard reads from: each `read` gives one chunk."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks

    def read(self, _size: int = -1) -> bytes:
        return next(self._chunks, b"")
