"""
What a container engine calls a layer: made, mounted, filled from a tar and
read back as one.
"""

from gear_plugin.layers.apply import Unpacker
from gear_plugin.layers.changes import Change, ChangeKind
from gear_plugin.layers.checker import Checker, check_layer
from gear_plugin.layers.images import NodeImages
from gear_plugin.layers.in_use import images_in_use, mounted_images
from gear_plugin.layers.installed import (
    Cached,
    InstalledImage,
    cached,
    installed_image,
    installed_images,
)
from gear_plugin.layers.owner import own_layers
from gear_plugin.layers.store import LayerStore

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
    "images_in_use",
    "installed_image",
    "installed_images",
    "mounted_images",
    "own_layers",
]
