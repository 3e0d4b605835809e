"""
What a container engine calls a layer: made, mounted, filled from a tar and
read back as one; and what it calls a volume.
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
from gear_plugin.layers.keepers import ImageKeepers, kept_images
from gear_plugin.layers.owner import own_layers
from gear_plugin.layers.store import LayerStore
from gear_plugin.layers.volume_images import Showing, VolumeImages
from gear_plugin.layers.volume_record import Shown, VolumeRecord
from gear_plugin.layers.volumes import Volume, VolumeStore

__all__ = [
    "Cached",
    "Change",
    "ChangeKind",
    "Checker",
    "ImageKeepers",
    "InstalledImage",
    "LayerStore",
    "NodeImages",
    "Showing",
    "Shown",
    "Unpacker",
    "Volume",
    "VolumeImages",
    "VolumeRecord",
    "VolumeStore",
    "cached",
    "check_layer",
    "images_in_use",
    "installed_image",
    "installed_images",
    "kept_images",
    "mounted_images",
    "own_layers",
]
