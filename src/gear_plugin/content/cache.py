"""
The node's cache: whole, verified objects as plain files that overlayfs reads.

    <root>/public/abc/<61 hex>            every object here, shared by all images
    <root>/private/<image>/abc/<61 hex>   hard links to those that an image opened
    <root>/cache-incoming/                   objects on their way, folders on their way out
    <root>/cache-checkpoint               which entries survive an unclean boot

`<image>` is the hex digest of the image's index.  `public` and
`private/<image>` are overlay data layers: they exist before an image is
mounted, and a name in them is a promise that the content is whole and right.
Files are 0400 and root's own: overlayfs opens them as whoever mounted it, and
takes mode, owner and the right to execute from the index.

One process may use a cache at a time (the client); in it, any thread.

Order of steps.  An object gets its private link before its public name, so
that a public entry with one link is always one that no image here uses.
Such entries may be evicted, those first whose last image left longest ago.
That moment is the inode's ctime (removing a link sets it), so it costs
nothing to keep.  (Reads cannot tell: overlayfs opens with O_NOATIME.)
A private folder may also go as a whole when its image is not mounted.

In a cluster a node keeps objects for others, too.  Those belong to no image
here (*image* is None): they get a public name alone, and so are evicted before
anything that an image of this node uses.

Crash windows.  A killed client leaves files in `cache-incoming/`, removed at the
next start, or a private link without public name, which the next fetch of
that object links back.  Nothing is fsynced, because the content can be
fetched again and 0.5 ms an object would halve the speed; after an unclean
boot a file may therefore be short or hold zeros.  So a *checkpoint* notes the
boot id and a time before which everything is on disk (syncfs); a start that
finds another boot id drops all files written since then.  The cache must be
opened before the first image is mounted after a boot.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gear_plugin.content.checkpoint import Checkpoint
from gear_plugin.content.evict import Eviction, evict, occupied, walk
from gear_plugin.digest import Digest
from gear_plugin.durable import is_full
from gear_plugin.errors import (
    BadDigest,
    ContentCorrupt,
    ImageNotFound,
    StorageFull,
    StorageUnavailable,
)

log = logging.getLogger(__name__)

_T = TypeVar("_T")

# An eviction looks at every entry; going 10 % below the limit makes it rare.
_EVICT_DOWN_TO = 0.9
# When the disk itself is full: at least this much, or the next object evicts again.
_ROOM_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Usage:
    """What the public cache holds; bytes are disk bytes (whole blocks)."""

    objects: int
    size_bytes: int
    limit_bytes: int


class Cache:
    """
    The cache below *root*, made if it is not there.

    *limit_bytes* bounds the public cache's disk bytes (0: no bound).  Objects
    of images for which *is_mounted* is true are never evicted, so what they
    need together may exceed the limit; that is logged.  Without *is_mounted*
    every image counts as mounted.  No object may be larger than the limit.

    Opening removes what a crash left; it reads every entry's inode, and
    after a boot those of the private folders too.  A full disk does not keep
    it from opening.  Raises StorageUnavailable (read-only, broken), as does
    every method; StorageFull when there is no room for the empty folders.
    """

    def __init__(
        self,
        root: Path,
        limit_bytes: int,
        *,
        is_mounted: Callable[[Digest], bool] = lambda _image: True,
        boot_id: str | None = None,
    ) -> None:
        self._public, self._private, self._incoming = (
            str(root / name) for name in ("public", "private", "cache-incoming")
        )
        self._root = root
        self._limit_bytes = limit_bytes
        self._is_mounted = is_mounted
        self._numbers = itertools.count()
        self._lock = threading.Lock()  # guards the counts; held for nothing that blocks
        self._evicting = threading.Lock()
        try:
            self._open(root, boot_id)
        except OSError as error:
            if is_full(error):
                raise StorageFull(f"no room for the cache's folders in {root}") from error
            raise self._unavailable(error) from error

    def _open(self, root: Path, boot_id: str | None) -> None:
        shutil.rmtree(self._incoming, ignore_errors=True)
        for folder in (self._public, self._private, self._incoming):
            Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._checkpoint = Checkpoint(root, boot_id=boot_id)
        suspect_since_ns = self._checkpoint.suspect_since_ns
        if suspect_since_ns is not None:
            self._drop_suspects(suspect_since_ns)
        self._count(evict(self._public, 0))
        if suspect_since_ns is not None:
            try:
                self._with_room(self._checkpoint.take)
            except StorageFull as error:
                # The old one stays in force: more to fetch again after a crash.
                log.warning("the cache has no checkpoint of this boot yet: %s", error)

    def path(self, digest: Digest) -> Path:
        """Where the object is in the public cache, if it is there."""
        return Path(self._public, digest.shard_path)

    def has(self, digest: Digest) -> bool:
        """Whether the public cache holds the object."""
        return self.path(digest).exists()

    def admit(self, image: Digest) -> None:
        """Make *image*'s private folder, which its mounts need; idempotent."""
        self._with_room(lambda: os.makedirs(self._folder(image), 0o700, exist_ok=True))

    def forget(self, image: Digest) -> None:
        """
        Remove *image*'s private folder at once; idempotent.

        What no other image uses stays in the public cache until it is evicted.
        """
        away = self._next_incoming()
        with contextlib.suppress(FileNotFoundError):
            os.rename(self._folder(image), away)
            shutil.rmtree(away, ignore_errors=True)

    def images(self) -> list[Digest]:
        """The images that have a private folder."""
        found = []
        with os.scandir(self._private) as entries:
            for entry in entries:
                # What people put there is theirs.
                with contextlib.suppress(BadDigest):
                    found.append(Digest.from_hex(entry.name))
        return found

    def link(self, image: Digest | None, digest: Digest) -> bool:
        """
        Pin the object for *image* (None: for none) if the cache has it; False if it has not.

        Raises ImageNotFound for an image that was not admitted.
        """
        if image is None:
            return self.has(digest)
        public, private = self._names(image, digest)
        with contextlib.suppress(FileNotFoundError):
            self._named(os.link, public, private)
            return True
        # No public name; after a crash the image's own link may stand alone.
        with contextlib.suppress(FileNotFoundError):
            self._named(os.link, private, public)
            return True
        return False

    def publish(
        self,
        image: Digest | None,
        digest: Digest,
        chunks: Iterable[bytes],
        *,
        expected_bytes: int | None = None,
    ) -> int:
        """
        Take in the object from *chunks* and pin it for *image* (None: for none);
        its size in bytes.

        Only whole, right content gets a name.  Makes room by evicting when
        the limit or the disk's end is reached.  Not one chunk more than
        *expected_bytes* (None: not known) is taken, so that a small
        compressed file cannot fill the disk.

        Raises:
            ContentCorrupt: the bytes do not hash to *digest*, or are not
                *expected_bytes*.
            ImageNotFound: *image* was not admitted, or forgotten meanwhile.
            StorageFull: no room, and nothing (more) to evict.
            whatever *chunks* raises.
        """
        incoming = self._next_incoming()
        self._with_room(self._checkpoint.guard)
        try:
            size_bytes = self._receive(incoming, digest, chunks, expected_bytes)
            # The clock may have been set back while the bytes came.
            self._with_room(self._checkpoint.guard)
            is_new = self._place(incoming, image, digest)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(incoming)
            raise
        if is_new:
            with self._lock:
                self._objects += 1
                self._bytes += occupied(size_bytes)
                is_over = bool(self._limit_bytes) and self._bytes > self._evict_above
            if is_over:
                self._keep_limit()
        return size_bytes

    def usage(self) -> Usage:
        """The counts now; they may be off by what was published during an eviction."""
        with self._lock:
            return Usage(self._objects, self._bytes, self._limit_bytes)

    def room_bytes(self) -> int:
        """What could be added without evicting anything: on the disk, and below the limit."""
        try:
            found = os.statvfs(self._public)
        except OSError as error:
            raise self._unavailable(error) from error
        free_bytes = found.f_bavail * found.f_frsize
        if self._limit_bytes:
            free_bytes = min(free_bytes, self._limit_bytes - self.usage().size_bytes)
        return max(free_bytes, 0)

    def checkpoint(self) -> None:
        """
        Make all that was published until now survive a power failure.

        To be called every few minutes and at the end; it flushes the whole filesystem.
        Raises StorageFull, StorageUnavailable: the last one stays in force.
        """
        self._with_room(self._checkpoint.take)

    def _folder(self, image: Digest) -> str:
        return f"{self._private}/{image.hex}"

    def _names(self, image: Digest, digest: Digest) -> tuple[str, str]:
        shard_path = digest.shard_path
        return f"{self._public}/{shard_path}", f"{self._private}/{image.hex}/{shard_path}"

    def _next_incoming(self) -> str:
        return f"{self._incoming}/{next(self._numbers)}"

    def _receive(
        self, incoming: str, digest: Digest, chunks: Iterable[bytes], expected_bytes: int | None
    ) -> int:
        sha256 = hashlib.sha256()
        size_bytes = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        handle = self._with_room(lambda: os.open(incoming, flags, 0o400))
        try:
            for chunk in chunks:
                sha256.update(chunk)
                size_bytes += len(chunk)
                # These two end a source that never stops sending.
                if expected_bytes is not None and size_bytes > expected_bytes:
                    raise ContentCorrupt(
                        f"content of {digest} goes on after its {expected_bytes} bytes"
                    )
                if 0 < self._limit_bytes < size_bytes:
                    raise StorageFull(
                        f"{digest} is larger than the cache limit of {self._limit_bytes} bytes;"
                        " raise cache_limit"
                    )
                self._write(handle, chunk)
        finally:
            os.close(handle)
        if sha256.digest() != digest.raw:
            raise ContentCorrupt(f"content is {Digest(sha256.digest())}, not {digest}")
        if expected_bytes is not None and size_bytes != expected_bytes:
            raise ContentCorrupt(
                f"content of {digest} has {size_bytes} bytes, and {expected_bytes} by the index"
            )
        return size_bytes

    def _write(self, handle: int, chunk: bytes) -> None:
        written = self._with_room(lambda: os.write(handle, chunk))
        while written < len(chunk):
            rest = memoryview(chunk)[written:]
            written += self._with_room(lambda rest=rest: os.write(handle, rest))  # type: ignore[misc]

    def _place(self, incoming: str, image: Digest | None, digest: Digest) -> bool:
        """Name the file, private first; False if it had a public name."""
        if image is None:
            # Not renamed: that would take the name from one that images have linked.
            is_new = self._named(os.link, incoming, f"{self._public}/{digest.shard_path}")
            os.unlink(incoming)
            return is_new
        public, private = self._names(image, digest)
        if self._named(os.link, incoming, private):
            is_new = _inode(public) in (None, _inode(private))
            # It may have come for no image meanwhile; this file replaces that one.
            self._named(os.rename, incoming, public)
            # `link` may have named it in that instant: to rename a file to
            # another of its names does nothing (rename(2)).
            with contextlib.suppress(FileNotFoundError):
                os.unlink(incoming)
            return is_new
        # A read that was given up for slow came back first.  Its file stays:
        # both names must be one inode.
        os.unlink(incoming)
        return self._named(os.link, private, public)

    def _named(self, step: Callable[[str, str], None], source: str, target: str) -> bool:
        """
        Link or rename, making the shard folder if need be; False if *target* exists.

        Raises FileNotFoundError when *source* is missing, ImageNotFound when
        the folder that holds the shards is.
        """
        try:
            self._with_room(lambda: step(source, target))
        except FileExistsError:
            return False
        except FileNotFoundError:
            self._make_shard(os.path.dirname(target))
            try:
                self._with_room(lambda: step(source, target))
            except FileExistsError:
                return False
        return True

    def _make_shard(self, shard: str) -> None:
        try:
            self._with_room(lambda: os.mkdir(shard, 0o700))
        except FileExistsError:
            pass
        except FileNotFoundError as error:
            image = os.path.basename(os.path.dirname(shard))
            raise ImageNotFound(f"image {image} was not admitted to the cache here") from error

    def _with_room(self, step: Callable[[], _T]) -> _T:
        """
        The result of *step*; when the disk is full, evict and try once more.

        FileExistsError and FileNotFoundError, which mean something to callers,
        come through.
        """
        try:
            return step()
        except (FileExistsError, FileNotFoundError):
            raise
        except (OSError, StorageFull) as error:
            if not _says_full(error):
                raise self._unavailable(error) from error
        with self._evicting:
            done = self._evict(max(_ROOM_BYTES, self._bytes // 10))
        log.warning("the cache's disk is full; evicted %d bytes", done.removed_bytes)
        try:
            return step()
        except (FileExistsError, FileNotFoundError):
            raise
        except (OSError, StorageFull) as error:
            if _says_full(error):
                raise StorageFull(
                    f"no room left in {self._public} and nothing more to evict;"
                    " set cache_limit, or free space (or inodes) there"
                ) from error
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> StorageUnavailable:
        reason = error.strerror if isinstance(error, OSError) else error
        return StorageUnavailable(f"the cache in {self._root} cannot be used: {reason}")

    def _keep_limit(self) -> None:
        # Others go on publishing meanwhile: one eviction at a time is enough.
        if not self._evicting.acquire(blocking=False):
            return
        try:
            done = self._evict(self._bytes - int(self._limit_bytes * _EVICT_DOWN_TO))
        finally:
            self._evicting.release()
        log.info("evicted %d objects, %d bytes", done.removed_objects, done.removed_bytes)
        if done.kept_bytes > self._limit_bytes:
            log.warning(
                "the images in use need %d bytes, more than the cache limit of %d",
                done.kept_bytes,
                self._limit_bytes,
            )

    def _evict(self, need_bytes: int) -> Eviction:
        done = evict(self._public, need_bytes)
        removed_objects, removed_bytes = done.removed_objects, done.removed_bytes
        for image in self._unmounted_images() if removed_bytes < need_bytes else ():
            self._empty(image)
            done = evict(self._public, need_bytes - removed_bytes)
            removed_objects += done.removed_objects
            removed_bytes += done.removed_bytes
            if removed_bytes >= need_bytes:
                break
        self._count(done)
        return Eviction(removed_objects, removed_bytes, done.kept_objects, done.kept_bytes)

    def _count(self, done: Eviction) -> None:
        with self._lock:
            self._objects, self._bytes = done.kept_objects, done.kept_bytes
            # When all that is left is in use, look again only after 5 % more.
            self._evict_above = max(self._limit_bytes, self._bytes + self._limit_bytes // 20)
            if self._bytes <= self._limit_bytes:
                self._evict_above = self._limit_bytes

    def _unmounted_images(self) -> list[Digest]:
        """Images whose private folder may be emptied, the longest unchanged first."""
        with os.scandir(self._private) as entries:
            folders = sorted(entries, key=lambda entry: entry.stat().st_mtime_ns)
        images = []
        for folder in folders:
            # What people put there is theirs.
            with contextlib.suppress(BadDigest):
                images.append(Digest.from_hex(folder.name))
        return [image for image in images if not self._is_mounted(image)]

    def _empty(self, image: Digest) -> None:
        """Drop all of *image*'s pins; the folder itself stays, a mount may need it."""
        for shard in os.listdir(self._folder(image)):
            away = self._next_incoming()
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{self._folder(image)}/{shard}", away)
                shutil.rmtree(away, ignore_errors=True)

    def _drop_suspects(self, since_ns: int) -> None:
        with os.scandir(self._private) as entries:
            layers = [self._public, *(entry.path for entry in entries if entry.is_dir())]
        dropped = 0
        for entry in itertools.chain.from_iterable(walk(layer) for layer in layers):
            if entry.mtime_ns >= since_ns:
                os.unlink(entry.path)
                dropped += 1
        if dropped:
            log.warning("dropped %d cache entries that the last boot may have damaged", dropped)


def _inode(path: str) -> int | None:
    with contextlib.suppress(FileNotFoundError):
        return os.stat(path).st_ino
    return None


def _says_full(error: Exception) -> bool:
    return isinstance(error, StorageFull) or (isinstance(error, OSError) and is_full(error))
