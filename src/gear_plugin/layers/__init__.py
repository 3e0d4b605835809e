"""
What a container engine calls a layer: made, mounted, filled from a tar and
read back as one.
"""

from gear_plugin.layers.changes import Change, ChangeKind
from gear_plugin.layers.images import NodeImages
from gear_plugin.layers.store import LayerStore, mounted_images

__all__ = ["Change", "ChangeKind", "LayerStore", "NodeImages", "mounted_images"]
