"""
The Gear images of this node: `images/<index digest>/`.

    index.erofs   hard link to the layer's own file; what the kernel mounts
    manifest      hard link to the layer's own file
    objects       derived from the two: every object with its size (ObjectTable)

A folder appears by one rename, after its files were fsynced: one that exists is
whole and was checked, after a power failure too, when nobody checks again.
`images/<name=tag>` is a symlink for people; nothing on a node is looked up by
name, because dockerd never tells a graphdriver any.

What a registry sent is not trusted: the structure check runs in a process of
its own, with bounded memory and time, before the kernel is shown the file.
Thread-safe.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import mmap
import os
import re
import secrets
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from gear_plugin.digest import Digest
from gear_plugin.durable import TEMP_PREFIX, storage_full, sync_directory
from gear_plugin.errors import IndexDamaged
from gear_plugin.image import (
    FOLDER,
    INDEX_NAME,
    MANIFEST_NAME,
    ErofsView,
    Manifest,
    ObjectTable,
)
from gear_plugin.layers.checker import Checker
from gear_plugin.names import ImageId

log = logging.getLogger(__name__)

_HEX = re.compile(r"[0-9a-f]{64}\Z")


class NodeImages:
    """The folder `images/` under *root*; *checker* runs the structure check."""

    def __init__(self, root: Path, *, checker: Checker | None = None) -> None:
        self._folder = root / "images"
        self._checker = checker or Checker()
        self._lock = threading.Lock()
        # Or one thread takes away what another has just installed and relies on.
        self._installing = threading.Lock()
        self._tables: dict[str, ObjectTable] = {}
        self._folder.mkdir(parents=True, exist_ok=True)

    def remove_half_made(self) -> None:
        """Remove what a crash left, but nothing that another process is working on."""
        for left in self._folder.glob(f"{TEMP_PREFIX}*"):
            with contextlib.suppress(FileNotFoundError):
                if left.is_symlink():
                    left.unlink()
                elif not _is_held(left):
                    self._take_away(left)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder for a layer that is about to be installed."""
        path, handle = self._new_folder()
        try:
            yield path
        finally:
            os.close(handle)
            shutil.rmtree(path, ignore_errors=True)

    def _new_folder(self) -> tuple[Path, int]:
        """A temporary folder, and the lock that keeps it from `remove_half_made`."""
        while True:
            path = Path(tempfile.mkdtemp(prefix=TEMP_PREFIX, dir=self._folder))
            with contextlib.suppress(FileNotFoundError):
                handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                fcntl.flock(handle, fcntl.LOCK_EX)
                if path.exists():
                    return path, handle
                os.close(handle)  # it went before it was locked

    def _take_away(self, folder: Path) -> None:
        # Under another name first: the checker of an install that was killed
        # may still be writing in it, by its path.
        gone = self._folder / (TEMP_PREFIX + secrets.token_hex(8))
        with contextlib.suppress(FileNotFoundError):
            folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def index_file(self, image: str) -> Path:
        """The EROFS file of *image*."""
        return self._folder / image / "index.erofs"

    def view(self, image: str) -> ErofsView | None:
        """The tree of *image*, which was checked when it was installed; None: not on this node."""
        if not _HEX.match(image):
            return None
        try:
            with self.index_file(image).open("rb") as handle:
                return ErofsView(_mapped(handle.fileno()))
        except FileNotFoundError:
            return None

    def manifest(self, image: str) -> Manifest:
        """The manifest of *image*, which must be installed."""
        return Manifest.decode((self._folder / image / "manifest").read_bytes())

    def objects(self, image: str) -> ObjectTable | None:
        """The objects of *image*; None if it is not on this node."""
        if not _HEX.match(image):
            return None
        with self._lock:
            table = self._tables.get(image)
            if table is None:
                try:
                    with (self._folder / image / "objects").open("rb") as handle:
                        table = ObjectTable(_mapped(handle.fileno()))
                except FileNotFoundError:
                    return None
                self._tables[image] = table
            return table

    def object_size(self, image: Digest, digest: Digest) -> int | None:
        """The object's size in bytes by *image*'s index; None: no such image, or not in it."""
        table = self.objects(image.hex)
        return None if table is None else table.size(digest)

    def __iter__(self) -> Iterator[str]:
        return (entry.name for entry in sorted(self._folder.iterdir()) if _HEX.match(entry.name))

    def install(self, layer: Path) -> str | None:
        """
        Take in the index that the unpacked directory *layer* holds, and
        return its digest; None if *layer* is an ordinary one.

        Raises IndexDamaged: it says that it is an index and is not a sound
        one; TimedOut, StorageFull.  Then nothing of it is left here.
        """
        if not _is_index(layer):
            return None
        with storage_full(self._folder / "any"), self.scratch() as temporary:
            found = self._checker.check(layer, temporary / "objects")
            image = str(found["index"])
            with self._installing:
                if self.objects(image) is None:
                    self._install(layer, temporary, image)
            self._name(image, str(found["image"]))
        log.info("image %s is index %s", found["image"], image[:12])
        return image

    def _install(self, layer: Path, temporary: Path, image: str) -> None:
        """Install the index in *layer*; *temporary* has its table, and becomes the image."""
        self.remove(image)
        os.link(layer / INDEX_NAME, temporary / "index.erofs")
        os.link(layer / MANIFEST_NAME, temporary / "manifest")
        temporary.chmod(0o700)
        _sync_files(temporary)
        # Another process may have been quicker.
        with contextlib.suppress(FileExistsError):
            _rename(temporary, self._folder / image)
        sync_directory(self._folder)

    def installed_from(self, layer: Path) -> str | None:
        """The image whose index is the very file that the unpacked directory *layer* holds."""
        for image in self:
            with contextlib.suppress(OSError):
                if self.index_file(image).samefile(layer / INDEX_NAME):
                    return image
        return None

    def remove(self, image: str) -> None:
        """Forget *image*; nothing may be mounted from it.  Unknown: no error."""
        with self._lock:
            self._tables.pop(image, None)
        for link in self._folder.iterdir():
            if link.is_symlink() and link.readlink() == Path(image):
                link.unlink(missing_ok=True)
        self._take_away(self._folder / image)

    def _name(self, image: str, name: str) -> None:
        link = self._folder / ImageId.parse(name).folder
        temporary = self._folder / f"{TEMP_PREFIX}{image}"
        try:
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(image)
            temporary.rename(link)
        except OSError as error:
            log.warning("no link %s for people: %s", link, error.strerror)


def _is_index(layer: Path) -> bool:
    """
    Whether the layer says that it is an index: it holds `.gear/index.erofs` alone at its top.

    A file or symlink `.gear` says nothing, nor does a `.gear/` among other
    things, as in an image made by `docker export` from a Gear container:
    these are ordinary layers.  Raises IndexDamaged for an index with more or
    less than its two files.
    """
    folder = layer / FOLDER
    if list(layer.iterdir()) != [folder] or folder.is_symlink() or not folder.is_dir():
        return False
    entries = {f"{FOLDER}/{entry.name}": entry for entry in folder.iterdir()}
    if INDEX_NAME not in entries:
        return False
    plain = all(entry.is_file() and not entry.is_symlink() for entry in entries.values())
    if not plain or set(entries) != {INDEX_NAME, MANIFEST_NAME}:
        raise IndexDamaged(
            f"an index layer holds the files {INDEX_NAME} and {MANIFEST_NAME} and nothing else"
        )
    return True


def _is_held(folder: Path) -> bool:
    """Whether a living process has the lock of a temporary folder."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _sync_files(folder: Path) -> None:
    """Have the files of *folder*, and their names, on disk."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_directory(folder)


def _rename(folder: Path, target: Path) -> None:
    """Rename a folder; FileExistsError when *target* is there and not empty."""
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise FileExistsError(error.errno, error.strerror, str(target)) from error
        raise


def _mapped(handle: int) -> memoryview:
    if os.fstat(handle).st_size == 0:
        return memoryview(b"")
    return memoryview(mmap.mmap(handle, 0, prot=mmap.PROT_READ))
