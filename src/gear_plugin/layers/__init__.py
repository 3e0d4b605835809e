"""
What a container engine calls a layer: made, mounted, filled from a tar and
read back as one.
"""

from gear_plugin.layers.apply import Unpacker
from gear_plugin.layers.changes import Change, ChangeKind
from gear_plugin.layers.checker import Checker, check_layer
from gear_plugin.layers.images import NodeImages
from gear_plugin.layers.installed import (
    Cached,
    InstalledImage,
    cached,
    installed_image,
    installed_images,
)
from gear_plugin.layers.store import LayerStore, mounted_images

__all__ = [
    "Cached",
    "Change",
    "ChangeKind",
    "Checker",
    "InstalledImage",
    "LayerStore",
    "NodeImages",
    "Unpacker",
    "cached",
    "check_layer",
    "installed_image",
    "installed_images",
    "mounted_images",
]
