"""
An image archive with one layer, written in one pass: what `docker load` takes.

The layer comes first, so that its digest is known when the configuration is
written; its size must be known before.  Nothing is kept in memory.
Source: moby image/tarexport/load.go (v20.10.24), which finds every part by
the names in `manifest.json`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

from gear_plugin.digest import Digest
from gear_plugin.image import TAR_BLOCK, Kind, tar_header, tar_padding
from gear_plugin.names import ImageId

_LAYER_NAME = "layer.tar"
_MODE = 0o644


class Mark(NamedTuple):
    """A place in the layer to come back to."""

    at: int
    sha256: hashlib._Hash


class ImageArchive:
    """
    The archive on the seekable file *out*, for a layer of *layer_bytes*.

    `write` the layer, then `finish`.  OSErrors of *out* are passed on.
    """

    def __init__(self, out: BinaryIO, layer_bytes: int) -> None:
        self._out = out
        self._layer_bytes = layer_bytes
        self._at = 0
        self._sha256 = hashlib.sha256()
        out.write(_member(_LAYER_NAME, layer_bytes))
        self._start = out.tell()

    def write(self, data: bytes) -> None:
        """The next bytes of the layer."""
        self._out.write(data)
        self._sha256.update(data)
        self._at += len(data)

    def mark(self) -> Mark:
        """Where the layer stands now."""
        return Mark(self._at, self._sha256.copy())

    def back_to(self, mark: Mark) -> None:
        """Forget what was written since *mark*; no less must follow."""
        self._out.seek(self._start + mark.at)
        self._at, self._sha256 = mark.at, mark.sha256.copy()

    def finish(self, name: ImageId, config: Mapping[str, Any], *, made_by: str) -> tuple[str, str]:
        """
        Write configuration and listing; the image's id and the layer's digest.

        All of *config* stays but the layers and their history.
        """
        assert self._at == self._layer_bytes
        layer = str(Digest(self._sha256.digest()))
        created = config.get("created")
        ours = {
            **config,
            "rootfs": {"type": "layers", "diff_ids": [layer]},
            "history": [{"created": created, "created_by": made_by}],
        }
        raw = json.dumps(ours, sort_keys=True, separators=(",", ":")).encode()
        image_id = Digest.of(raw)
        config_name = f"{image_id.hex}.json"
        entry = {"Config": config_name, "RepoTags": [str(name)], "Layers": [_LAYER_NAME]}
        self._out.write(tar_padding(self._layer_bytes))
        for member, data in ((config_name, raw), ("manifest.json", json.dumps([entry]).encode())):
            self._out.write(_member(member, len(data)) + data + tar_padding(len(data)))
        self._out.write(bytes(2 * TAR_BLOCK))
        return str(image_id), layer


def _member(name: str, size: int) -> bytes:
    return tar_header(name.encode(), Kind.FILE, _MODE, size=size)
