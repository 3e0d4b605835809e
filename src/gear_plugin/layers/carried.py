"""
Which layer carries which Gear image, and what follows when the last one goes.

An image is on the node for as long as a layer's record names it.  Crash
windows: a record names an image before the layer has its content, and a
layer's folder keeps its record until the image was let go of, so whatever
breaks off, a start (`repair`) finds the name of an image that may have to go.
Thread-safe.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from gear_plugin.errors import IndexDamaged, LayerNotFound, Unavailable
from gear_plugin.layers.images import NodeImages
from gear_plugin.layers.record import LayerFolder, Record
from gear_plugin.rootfs import View, served_images

log = logging.getLogger(__name__)

_ATTEMPTS = 3


class ImageViews(Protocol):
    """What the layers need of rootfs.Views."""

    def use(self, image: str, mount: Callable[[View | Path], None], /) -> None:
        """Call *mount* with the image's layers."""

    def release(self, image: str, is_used: Callable[[], bool], /) -> None:
        """The last mount on the image may have gone; *is_used* tells."""

    def forget(self, image: str, /) -> None:
        """Unmount the image's own mounts."""


class CarriedImages:
    """
    The images that the layers in *folder* carry.

    *forget_image* tells the client that no layer of an image is left here.
    """

    def __init__(
        self,
        folder: Path,
        images: NodeImages,
        views: ImageViews,
        forget_image: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._images = images
        self._views = views
        self._forget_image = forget_image
        # Held while a layer notes the image it carries, and while an image
        # that no layer has noted is dropped.
        self._lock = threading.Lock()

    def carry(self, folder: LayerFolder, record: Record) -> None:
        """
        Note the image that the layer carries, before it does: one that breaks
        off then goes at the next start, its image with it.
        """
        for _ in range(_ATTEMPTS):
            with self._lock:
                folder.write(record, durable=record.index is not None)
                if record.index is None or self._images.objects(record.index) is not None:
                    return
            # The last other layer with this image left in the meantime.
            self._images.install(folder.applying)
        raise IndexDamaged(f"the index {record.index} does not stay in images/")

    def drop(self, image: str) -> None:
        """Let go of *image* unless another layer carries it too, or `gear fs` shows it."""
        with self._lock:
            is_carried = any(record.index == image for record in self._records())
            if is_carried or image in served_images():
                return
            self._views.forget(image)
            self._images.remove(image)
        self.forget(image)

    def forget(self, image: str) -> None:
        """Have the client forget an image that is not here any more."""
        try:
            self._forget_image(image)
        except Unavailable as error:
            # The layer is gone already, so docker's call succeeds; the client,
            # and the graphdriver, look for such images when they start.
            log.warning("image %s is not forgotten yet: %s", image[:12], error)

    def _records(self) -> Iterator[Record]:
        for entry in list(self._folder.iterdir()):
            if not entry.name.startswith("."):
                with contextlib.suppress(LayerNotFound):
                    yield LayerFolder(entry).read()
