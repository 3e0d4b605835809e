"""
Who holds an image on this node, so that it stays here.

    a layer    that carries the image's index: `containers/<id>/layer.json` names it
    a volume   that shows it: `volumes/<name>/volume.json` does, a half-made one's too
    `gear fs`  while it is mounted: the mount table does

A holder writes its record before it relies on the image, and when the record
is gone it calls `let_go`.  So what is held can be read from the disk at any
time, and a crash between the two steps leaves a record, which the next start
finds.  Thread-safe; one process (the api) makes and ends the first two kinds.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from gear_plugin.errors import LayerNotFound, Unavailable, VolumeNotFound
from gear_plugin.layers.images import NodeImages
from gear_plugin.layers.record import CONTAINERS, LayerFolder
from gear_plugin.layers.volume_record import VOLUMES, VolumeFolder
from gear_plugin.rootfs import mounts, served_images

log = logging.getLogger(__name__)


class Mounted(Protocol):
    """What is needed of rootfs.Views."""

    def forget(self, image: str, /) -> None:
        """Unmount the image's own mounts."""


class ImageHolders:
    """
    The holders of the images of the node below *root*.

    *forget_image* tells the client that nothing here needs an image any more.
    """

    def __init__(
        self,
        root: Path,
        images: NodeImages,
        views: Mounted,
        forget_image: Callable[[str], None],
    ) -> None:
        self._root = root
        self._images = images
        self._views = views
        self._forget_image = forget_image
        # Held while a record that names an image is written, and while an
        # image that no record names is dropped.
        self._lock = threading.Lock()

    def hold(self, image: str, write: Callable[[], None]) -> bool:
        """
        Have the holder *write* its record, which names *image*, and say whether
        the image is here.  If it is, it stays; if not, it will once installed.
        """
        with self._lock:
            write()
            return self._images.objects(image) is not None

    def let_go(self, image: str) -> None:
        """Drop *image* from this node unless somebody holds it; safe to repeat."""
        with self._lock:
            if image in held_images(self._root):
                return
            self._views.forget(image)
            self._images.remove(image)
        try:
            self._forget_image(image)
        except Unavailable as error:
            # The holder is gone already, so docker's call succeeds; the client
            # forgets what no image here needs when it starts.
            log.warning("image %s is not forgotten yet: %s", image[:12], error)


def held_images(root: Path) -> set[str]:
    """The index digests of the images that somebody on the node below *root* holds."""
    return served_images() | set(_carried(root / CONTAINERS)) | set(_shown(root / VOLUMES))


def mounted_images(root: Path) -> set[str]:
    """
    The index digests of the images that are in use: mounted layers and volumes
    under *root* stand on them, or `gear fs` shows them.
    """
    found = served_images()
    for point, _ in mounts():
        index = None
        if point.parent.parent == root / CONTAINERS:
            index = _index_below(LayerFolder(point.parent))
        elif point.parent.parent == root / VOLUMES:
            index = _index_of(VolumeFolder(point.parent))
        found |= {index} if index else set()
    return found


def _carried(folder: Path) -> Iterator[str]:
    for entry in _entries(folder):
        if not entry.name.startswith("."):
            with contextlib.suppress(LayerNotFound):
                index = LayerFolder(entry).read().index
                if index is not None:
                    yield index


def _shown(folder: Path) -> Iterator[str]:
    for entry in _entries(folder):
        index = _index_of(VolumeFolder(entry))
        if index is not None:
            yield index


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def _index_below(layer: LayerFolder) -> str | None:
    """The image that a layer's mount stands on."""
    with contextlib.suppress(LayerNotFound):
        record = layer.read()
        if record.parents:
            record = LayerFolder(layer.path.parent / record.parents[-1]).read()
        return record.index
    return None


def _index_of(volume: VolumeFolder) -> str | None:
    """The image that a volume shows."""
    with contextlib.suppress(VolumeNotFound):
        shown = volume.read().shown
        return shown.index if shown is not None else None
    return None
