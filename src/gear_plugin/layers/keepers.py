"""
Who keeps an image on this node, and what follows when the last one lets it go.

    a layer    that carries the image's index: `containers/<id>/layer.json` names it
    a volume   that shows it: `volumes/<name>/volume.json` does, a half-made one's too
    `gear fs`  while it is mounted: the mount table does

Crash windows: a record names an image before its layer or volume has anything
of it, and what is on its way out keeps the name until the image was let go of.
So whatever breaks off, a start finds the name of an image that may have to go.
Thread-safe.
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
from gear_plugin.rootfs import View, served_images

log = logging.getLogger(__name__)


class ImageViews(Protocol):
    """What layers and volumes need of rootfs.Views."""

    def use(self, image: str, mount: Callable[[View | Path], None], /) -> None:
        """Call *mount* with the image's layers."""

    def release(self, image: str, is_used: Callable[[], bool], /) -> None:
        """The last mount on the image may have gone; *is_used* tells."""

    def forget(self, image: str, /) -> None:
        """Unmount the image's own mounts."""


class ImageKeepers:
    """
    The keepers of the images of the node below *root*.

    *forget_image* tells the client that nothing here needs an image any more.
    """

    def __init__(
        self,
        root: Path,
        images: NodeImages,
        views: ImageViews,
        forget_image: Callable[[str], None],
    ) -> None:
        self._root = root
        self._images = images
        self._views = views
        self._forget_image = forget_image
        # Held while a record that names an image is written or moved, and while
        # an image that no record names is dropped.
        self._lock = threading.Lock()

    def keep(self, image: str, write: Callable[[], None]) -> bool:
        """
        Have a keeper *write* its record, which names *image*, and say whether
        the image is here.  If it is, it stays; if not, it will once installed.
        """
        with self._lock:
            write()
            return self._images.objects(image) is not None

    def move(self, folder: Path, target: Path) -> None:
        """
        Rename a keeper's folder.

        Who keeps what is read name by name: a folder that moves meanwhile
        would be found under neither of its names.
        """
        with self._lock:
            folder.rename(target)

    def drop(self, image: str) -> None:
        """Take *image* from this node unless somebody keeps it; safe to repeat."""
        with self._lock:
            if image in kept_images(self._root):
                return
            self._views.forget(image)
            self._images.remove(image)
        self.forget(image)

    def forget(self, image: str) -> None:
        """Have the client forget an image that is not here any more."""
        try:
            self._forget_image(image)
        except Unavailable as error:
            # The keeper is gone already, so docker's call succeeds; the client,
            # and the graphdriver, look for such images when they start.
            log.warning("image %s is not forgotten yet: %s", image[:12], error)


def kept_images(root: Path) -> set[str]:
    """The index digests of the images that somebody on the node below *root* keeps."""
    return served_images() | set(_carried(root / CONTAINERS)) | set(_shown(root / VOLUMES))


def _carried(folder: Path) -> Iterator[str]:
    for entry in _entries(folder):
        if not entry.name.startswith("."):
            with contextlib.suppress(LayerNotFound):
                index = LayerFolder(entry).read().index
                if index is not None:
                    yield index


def _shown(folder: Path) -> Iterator[str]:
    for entry in _entries(folder):
        with contextlib.suppress(VolumeNotFound):
            shown = VolumeFolder(entry).read().shown
            if shown is not None:
                yield shown.index


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []
