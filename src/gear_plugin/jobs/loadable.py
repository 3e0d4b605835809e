"""
The archive that `docker load` turns into the Gear image.

An image archive, not a `docker build`: a Dockerfile cannot express every
configuration exactly, and every engine from 20.10 on loads this form.
Source: moby image/tarexport/load.go (v20.10.24).
"""

from __future__ import annotations

import json
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from gear_plugin.digest import Digest
from gear_plugin.names import ImageId


def image_config(original: dict[str, Any], diff_id: Digest) -> bytes:
    """
    The configuration of the Gear image whose one layer is *diff_id*; its digest is the image id.

    All of the *original*'s stays but the layers and their history, so the same
    original and layer give the same id.
    """
    ours = {
        **original,
        "rootfs": {"type": "layers", "diff_ids": [str(diff_id)]},
        "history": [{"created": original.get("created"), "created_by": "gear build"}],
    }
    return json.dumps(ours, sort_keys=True, separators=(",", ":")).encode()


def write_archive(
    name: ImageId, config: bytes, layer: Path, diff_id: Digest, out: BinaryIO
) -> None:
    """Write the image *name* with the one *layer* to *out*, which may be a pipe."""
    config_name, layer_name = f"{Digest.of(config).hex}.json", f"{diff_id.hex}/layer.tar"
    entry = {"Config": config_name, "RepoTags": [str(name)], "Layers": [layer_name]}
    listing = json.dumps([entry]).encode()
    with tarfile.open(fileobj=out, mode="w|") as archive, layer.open("rb") as data:
        _add(archive, config_name, BytesIO(config), len(config))
        _add(archive, layer_name, data, layer.stat().st_size)
        _add(archive, "manifest.json", BytesIO(listing), len(listing))


def _add(archive: tarfile.TarFile, name: str, data: BinaryIO, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size = size
    archive.addfile(info, data)
