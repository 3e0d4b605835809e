"""
The Gear images of a node, as others than its own daemons see them: to read only.

`images.NodeImages` is for the graphdriver and the FUSE daemon, and tidies up;
this is for tools, beside running daemons, and touches nothing.  The layout is
described there.  Safe from any thread; images may come and go meanwhile.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gear_plugin.errors import GearError, ImageNotFound, SourceUnavailable
from gear_plugin.image import Manifest, ObjectTable
from gear_plugin.names import ImageId

_HEX = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class Cached:
    """How many of an image's objects a node's cache holds, and their bytes."""

    objects: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class InstalledImage:
    """One image of the node below *root*; its files may be gone by now."""

    root: Path
    index: str
    """The digest of its index, 64 hex digits."""

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.root / "images" / self.index

    @property
    def erofs(self) -> Path:
        """Its index."""
        return self.folder / "index.erofs"

    @property
    def manifest_file(self) -> Path:
        """Its manifest's file."""
        return self.folder / "manifest"

    @property
    def objects_file(self) -> Path:
        """Its object table's file."""
        return self.folder / "objects"

    def manifest(self) -> Manifest:
        """Its manifest; raises ImageNotFound, SourceUnavailable, IndexDamaged."""
        return Manifest.decode(self._read(self.manifest_file))

    def installed_s(self) -> int:
        """When it came to this node, Unix time; raises ImageNotFound, SourceUnavailable."""
        try:
            return int(self.folder.stat().st_mtime)
        except OSError as error:
            raise self._unreadable(error) from error

    def cached(self) -> Cached:
        """What of it is in the node's cache; raises ImageNotFound, SourceUnavailable."""
        return cached(self.root, ObjectTable(self._read(self.objects_file)))

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> GearError:
        if isinstance(error, FileNotFoundError):
            return ImageNotFound(f"image {self.index[:12]} is not on the node {self.root}")
        return SourceUnavailable(f"cannot read {error.filename} ({error.strerror}); run it as root")


def cached(root: Path, objects: ObjectTable) -> Cached:
    """What of *objects* the cache of the node below *root* holds; raises SourceUnavailable."""
    public = str(root / "public")
    count = size_bytes = 0
    _check_searchable(public)
    for digest, size in objects:
        if os.path.lexists(f"{public}/{digest.shard_path}"):
            count += 1
            size_bytes += size
    return Cached(count, size_bytes)


def installed_images(root: Path) -> Iterator[InstalledImage]:
    """Every image of the node below *root*, by digest; none if it is no node."""
    return (InstalledImage(root, name) for name in _names(root) if _HEX.match(name))


def installed_image(root: Path, image: ImageId) -> InstalledImage:
    """
    The image that was built from *image* (the original's name), the one that
    came last if there were several; raises ImageNotFound, SourceUnavailable.
    """
    link = root / "images" / image.folder
    try:
        index = str(link.readlink())
    except PermissionError as error:
        raise SourceUnavailable(f"cannot read {link} ({error.strerror}); run it as root") from error
    except OSError as error:
        raise ImageNotFound(f"not on the node {root}") from error
    if not _HEX.match(index):
        raise ImageNotFound(f"not on the node {root}")
    return InstalledImage(root, index)


def _names(root: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in (root / "images").iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise SourceUnavailable(
            f"cannot read {root / 'images'} ({error.strerror}); run it as root"
        ) from error


def _check_searchable(folder: str) -> None:
    """Raise SourceUnavailable if it cannot be told what *folder* holds."""
    if os.path.lexists(folder) and not os.access(folder, os.X_OK):
        raise SourceUnavailable(f"cannot read {folder} (Permission denied); run it as root")
