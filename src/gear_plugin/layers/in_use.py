"""
Which of a node's images are in use, read from its disk and the mount table.

For the graphdriver and for the client, which share nothing but the node's
folder.  Touches nothing; layers may come and go meanwhile.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from gear_plugin.errors import LayerNotFound
from gear_plugin.layers import held
from gear_plugin.layers.record import LayerFolder
from gear_plugin.rootfs import mounts, served_images


def mounted_images(root: Path) -> set[str]:
    """
    The index digests of the images that mounts stand on here: mounted layers
    under *root*, or `gear fs` shows them.
    """
    folder = root / "containers"
    layers = [
        LayerFolder(point.parent)
        for point, _ in mounts()
        if point.name == "merged" and point.parent.parent == folder
    ]
    return served_images() | _images_of(layers)


def images_in_use(root: Path) -> set[str]:
    """
    The same, and the images whose mounts were taken away by force while
    something, such as a running container, may still have them.
    """
    layers = (LayerFolder(entry) for entry in _entries(root / "containers"))
    return mounted_images(root) | _images_of(
        folder for folder in layers if held.noted(folder) is not None
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
