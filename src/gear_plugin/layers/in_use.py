"""
Which of a node's images are in use, read from its disk and the mount table.

For the graphdriver and for the client, which share nothing but the node's
folder.  Touches nothing; layers and volumes may come and go meanwhile.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from gear_plugin.errors import LayerNotFound, VolumeNotFound
from gear_plugin.layers import held
from gear_plugin.layers.record import CONTAINERS, LayerFolder
from gear_plugin.layers.volume_record import VOLUMES, VolumeFolder
from gear_plugin.rootfs import mounts, served_images


def mounted_images(root: Path) -> set[str]:
    """
    The index digests of the images that mounts stand on here: mounted layers
    and volumes under *root*, or `gear fs` shows them.
    """
    folders = [point.parent for point, _ in mounts() if point.parent.parent.parent == root]
    layers = (LayerFolder(path) for path in folders if path.parent.name == CONTAINERS)
    volumes = (VolumeFolder(path) for path in folders if path.parent.name == VOLUMES)
    return served_images() | _images_of(layers) | _images_shown_by(volumes)


def images_in_use(root: Path) -> set[str]:
    """
    The same, and the images whose mounts were taken away by force while
    something, such as a running container, may still have them.
    """
    layers = (LayerFolder(entry) for entry in _entries(root / CONTAINERS))
    volumes = (VolumeFolder(entry) for entry in _entries(root / VOLUMES))
    return (
        mounted_images(root)
        | _images_of(folder for folder in layers if held.noted(folder) is not None)
        | _images_shown_by(folder for folder in volumes if folder.users())
    )


def _entries(folder: Path) -> list[Path]:
    try:
        return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except FileNotFoundError:
        return []


def _images_of(layers: Iterable[LayerFolder]) -> set[str]:
    found = set()
    for layer in layers:
        with contextlib.suppress(LayerNotFound):
            record = layer.read()
            if record.parents:
                record = LayerFolder(layer.path.with_name(record.parents[-1])).read()
            found |= {record.index} if record.index else set()
    return found


def _images_shown_by(volumes: Iterable[VolumeFolder]) -> set[str]:
    found = set()
    for volume in volumes:
        with contextlib.suppress(VolumeNotFound):
            shown = volume.read().shown
            found |= {shown.index} if shown is not None else set()
    return found
