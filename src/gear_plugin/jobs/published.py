"""
What was built without an engine, for `gear push`: shown and pushed as an engine would.

`inspect` and `push` are those of `Engine`.  The image in the registry has the
configuration and the layer of the build, byte for byte, in Docker's manifest
format, version 2, which every registry and every engine knows.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from gear_plugin.digest import Digest
from gear_plugin.durable import storage_full
from gear_plugin.errors import IndexDamaged
from gear_plugin.jobs import oci
from gear_plugin.jobs.folder import BuildFolder
from gear_plugin.jobs.progress import Progress
from gear_plugin.jobs.references import Reference
from gear_plugin.jobs.registry import Registry
from gear_plugin.names import ImageId

_COPY_BYTES = 1 << 20
_GZIP_FORMAT = 31
"""zlib's wbits for a gzip header, in which it leaves the time zero: same layer, same blob."""


class BuiltImages:
    """The Gear images built below *root*, and the registries they go to."""

    def __init__(self, root: Path, registry: Registry) -> None:
        self._root = root
        self._registry = registry

    def close(self) -> None:
        """Close the connections to registries."""
        self._registry.close()

    def inspect(self, image: ImageId) -> dict[str, Any]:
        """
        What of `docker image inspect` its configuration says: `Id`, `Config`, `RootFS`.

        Raises ImageNotFound (not built), Conflict (being built), IndexDamaged.
        """
        raw = self._config(image)
        config = json.loads(raw)
        return {
            "Id": str(Digest.of(raw)),
            "Config": config["config"],
            "RootFS": {"Type": "layers", "Layers": config["rootfs"]["diff_ids"]},
        }

    def push(self, image: ImageId, progress: Progress) -> None:
        """
        Send the image to the registry that its name says; what is there is not sent again.

        Raises what `inspect` does, SourceUnavailable, AccessDenied,
        StorageFull, BadConfig (a login cannot be read).
        """
        reference, config = Reference.of(image), self._config(image)
        layer = BuildFolder.of(self._root, image.original).index_tar
        with storage_full(layer), tempfile.TemporaryFile(dir=layer.parent) as packed:
            digest, size = _pack(layer, packed)
            is_new = self._registry.push_blob(reference, digest, packed, size)
            progress.step(f"layer {digest}: {'pushed' if is_new else 'layer already exists'}")
        named = Digest.of(config)
        self._registry.push_blob(reference, named, BytesIO(config), len(config))
        manifest = {
            "schemaVersion": 2,
            "mediaType": oci.DOCKER_MANIFEST,
            "config": _descriptor(oci.DOCKER_CONFIG, named, len(config)),
            "layers": [_descriptor(oci.DOCKER_LAYER, digest, size)],
        }
        self._registry.push_manifest(reference, json.dumps(manifest).encode(), oci.DOCKER_MANIFEST)

    def _config(self, image: ImageId) -> bytes:
        folder = BuildFolder.of(self._root, image.original)
        with folder.in_use() as built:
            raw = folder.config.read_bytes() if folder.config.exists() else b""
            if str(Digest.of(raw)) != built.gear_image_id:
                raise IndexDamaged(
                    f"{folder.config} is not what was built; run `gear build {built.image}` again"
                )
        return raw


def _descriptor(kind: str, digest: Digest, size: int) -> dict[str, Any]:
    return {"mediaType": kind, "size": size, "digest": str(digest)}


def _pack(layer: Path, target: BinaryIO) -> tuple[Digest, int]:
    """Write the layer as gzip; its digest and size."""
    found, size = hashlib.sha256(), 0
    packer = zlib.compressobj(wbits=_GZIP_FORMAT)
    with layer.open("rb") as file:
        while True:
            piece = file.read(_COPY_BYTES)
            data = packer.compress(piece) if piece else packer.flush()
            target.write(data)
            found.update(data)
            size += len(data)
            if not piece:
                return Digest(found.digest()), size
