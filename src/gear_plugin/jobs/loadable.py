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


def write_archive(
    name: ImageId, config: dict[str, Any], layer: Path, diff_id: Digest, target: Path
) -> Digest:
    """
    Write the image *name* with the one *layer* to *target*; returns its image id.

    *config* is the original's whole configuration object; all of it stays but
    the layers and their history, so the same original and layer give the same id.
    """
    ours = {
        **config,
        "rootfs": {"type": "layers", "diff_ids": [str(diff_id)]},
        "history": [{"created": config.get("created"), "created_by": "gear build"}],
    }
    raw = json.dumps(ours, sort_keys=True, separators=(",", ":")).encode()
    config_name, layer_name = f"{Digest.of(raw).hex}.json", f"{diff_id.hex}/layer.tar"
    entry = {"Config": config_name, "RepoTags": [str(name)], "Layers": [layer_name]}
    listing = json.dumps([entry]).encode()
    with tarfile.open(target, "w") as archive, layer.open("rb") as data:
        _add(archive, config_name, BytesIO(raw), len(raw))
        _add(archive, layer_name, data, layer.stat().st_size)
        _add(archive, "manifest.json", BytesIO(listing), len(listing))
    return Digest.of(raw)


def _add(archive: tarfile.TarFile, name: str, data: BinaryIO, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size = size
    archive.addfile(info, data)
