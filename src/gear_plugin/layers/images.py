"""
The Gear images of this node: `images/<index digest>/`.

    index.erofs   hard link to the layer's own file; what the kernel mounts
    manifest      hard link to the layer's own file
    objects       derived from the two: every object with its size (ObjectTable)

A folder appears by one rename, so one that exists is whole and was checked.
`images/<name=tag>` is a symlink for people; nothing on a node is looked up by
name, because dockerd never tells a graphdriver any.

What a registry sent is not trusted: the structure check runs in a process of
its own, with bounded memory and time, before the kernel is shown the file.
Thread-safe.
"""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from gear_plugin import wire
from gear_plugin.errors import IndexDamaged, TimedOut
from gear_plugin.image import (
    FOLDER,
    INDEX_NAME,
    MANIFEST_NAME,
    ErofsView,
    Manifest,
    ObjectTable,
)
from gear_plugin.names import ImageId

log = logging.getLogger(__name__)

_HEX = re.compile(r"[0-9a-f]{64}\Z")
_TEMP = ".tmp-"
_STALE_S = 3600.0
"""No install takes that long: its check alone is given up after 2 minutes."""
_CHECK_TIMEOUT_S = 120
_CHECK_MEMORY_BYTES = 2 << 30
"""A check of 100,000 files needs about 200 MiB; this leaves room for a million."""


class NodeImages:
    """The folder `images/` under *root*."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "images"
        self._lock = threading.Lock()
        self._tables: dict[str, ObjectTable] = {}
        self._folder.mkdir(parents=True, exist_ok=True)

    def remove_half_made(self) -> None:
        """Remove what a crash left; other processes may be installing at this moment."""
        for left in self._folder.glob(f"{_TEMP}*"):
            with contextlib.suppress(FileNotFoundError):
                if left.lstat().st_mtime < time.time() - _STALE_S:
                    shutil.rmtree(left, ignore_errors=True)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder for a layer that is about to be installed."""
        with tempfile.TemporaryDirectory(prefix=_TEMP, dir=self._folder) as folder:
            yield Path(folder)

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

    def __iter__(self) -> Iterator[str]:
        return (entry.name for entry in sorted(self._folder.iterdir()) if _HEX.match(entry.name))

    def install(self, layer: Path) -> str | None:
        """
        Take in the index that the unpacked directory *layer* holds, and
        return its digest; None if *layer* is an ordinary one.

        Raises IndexDamaged: it says that it is an index and is not a sound one.
        """
        if not _is_index(layer):
            return None
        temporary = Path(tempfile.mkdtemp(prefix=_TEMP, dir=self._folder))
        try:
            found = check_layer(layer, temporary / "objects")
            os.link(layer / INDEX_NAME, temporary / "index.erofs")
            os.link(layer / MANIFEST_NAME, temporary / "manifest")
            image = str(found["index"])
            with contextlib.suppress(FileExistsError, OSError):
                temporary.chmod(0o700)
                temporary.rename(self._folder / image)
            if not (self._folder / image / "objects").exists():
                raise IndexDamaged(f"the index {image[:12]} could not be installed")
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._name(image, str(found["image"]))
        log.info("image %s is index %s", found["image"], image[:12])
        return image

    def remove(self, image: str) -> None:
        """Forget *image*; nothing may be mounted from it.  Unknown: no error."""
        with self._lock:
            self._tables.pop(image, None)
        for link in self._folder.iterdir():
            if link.is_symlink() and link.readlink() == Path(image):
                link.unlink(missing_ok=True)
        gone = Path(tempfile.mkdtemp(prefix=_TEMP, dir=self._folder))
        with contextlib.suppress(FileNotFoundError):
            (self._folder / image).rename(gone / image)
        shutil.rmtree(gone, ignore_errors=True)

    def _name(self, image: str, name: str) -> None:
        link = self._folder / ImageId.parse(name).folder
        temporary = self._folder / f"{_TEMP}{image}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(image)
        temporary.rename(link)


def _is_index(layer: Path) -> bool:
    """Whether the layer holds exactly what an index layer holds; symlinks do not count."""
    folder = layer / FOLDER
    if list(layer.iterdir()) != [folder] or folder.is_symlink() or not folder.is_dir():
        return False
    files = [entry for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False)]
    return {Path(entry.path) for entry in files} == {layer / INDEX_NAME, layer / MANIFEST_NAME}


def check_layer(layer: Path, table: Path) -> dict[str, object]:
    """
    Check the index in the unpacked *layer*, in a process that may die, and
    write its object table to *table*; what `check.py` says of it.

    Raises IndexDamaged, TimedOut.
    """
    command = [sys.executable, "-m", "gear_plugin.layers.check", str(layer), str(table)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=_CHECK_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TimedOut(f"checking the index took more than {_CHECK_TIMEOUT_S} s") from error
    if not done.stdout:
        raise IndexDamaged(f"the index made its checker end with status {done.returncode}")
    answer: dict[str, object] = json.loads(done.stdout)
    wire.raise_failure(answer)
    return answer


def limit_resources() -> None:
    """Bound this process's memory and time; for the checker, before it reads anything."""
    resource.setrlimit(resource.RLIMIT_AS, (_CHECK_MEMORY_BYTES, _CHECK_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (_CHECK_TIMEOUT_S, _CHECK_TIMEOUT_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _mapped(handle: int) -> memoryview:
    if os.fstat(handle).st_size == 0:
        return memoryview(b"")
    return memoryview(mmap.mmap(handle, 0, prot=mmap.PROT_READ))
