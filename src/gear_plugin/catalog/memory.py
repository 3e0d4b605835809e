"""
A catalog in memory: the contract's simplest reading, for tests.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from gear_plugin.catalog.base import ImageRecord
from gear_plugin.digest import Digest
from gear_plugin.errors import ContentNotFound, ImageNotFound
from gear_plugin.names import ImageId


class MemoryCatalog:
    """Records in a dictionary; gone with the process."""

    def __init__(self) -> None:
        self._images: dict[ImageId, tuple[ImageRecord, dict[str, Digest]]] = {}
        self._lock = threading.Lock()

    def put_image(self, record: ImageRecord, objects: Mapping[str, Digest]) -> None:
        checked = {Digest.from_hex(oid).hex: digest for oid, digest in objects.items()}
        with self._lock:
            self._images[record.image] = (record, checked)

    def get_image(self, image: ImageId) -> ImageRecord:
        return self._get(image)[0]

    def list_images(self) -> list[ImageRecord]:
        with self._lock:
            records = [record for record, _ in self._images.values()]
        return sorted(records, key=lambda record: (record.image.name, record.image.tag))

    def remove_image(self, image: ImageId) -> bool:
        with self._lock:
            return self._images.pop(image, None) is not None

    def resolve(self, oid: str) -> Digest:
        Digest.from_hex(oid)
        with self._lock:
            for _, objects in self._images.values():
                if oid in objects:
                    return objects[oid]
        raise ContentNotFound(f"no image has an object {oid}")

    def objects_of(self, image: ImageId) -> frozenset[Digest]:
        return frozenset(self._get(image)[1].values())

    def close(self) -> None:
        pass

    def _get(self, image: ImageId) -> tuple[ImageRecord, dict[str, Digest]]:
        with self._lock:
            if image not in self._images:
                raise ImageNotFound(f"the catalog has no image {image}; push it first")
            return self._images[image]
