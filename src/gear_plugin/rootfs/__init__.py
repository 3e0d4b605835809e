"""
How a tree appears under a path: an index and its lazily filled data layers,
stood on by overlayfs.

`fuse` is not imported here: llfuse is loaded by the FUSE daemon alone.
"""

from gear_plugin.rootfs.features import Feature, hide_mounts, kernel_features
from gear_plugin.rootfs.lazy import Generation, LazyLayer
from gear_plugin.rootfs.overlay import (
    Plan,
    Stack,
    View,
    Way,
    clear_scratch,
    is_upper_in_use,
    mount_index,
    mount_stack,
    probe,
)
from gear_plugin.rootfs.syscalls import bind_folder, is_mount, mounts, unmount
from gear_plugin.rootfs.trees import (
    ImageTrees,
    OneImage,
    detach_dead_tree,
    mount_name,
    served_images,
)
from gear_plugin.rootfs.vfs import Filesystem, LazyTree, Lookup, Members
from gear_plugin.rootfs.views import Views

__all__ = [
    "Feature",
    "Filesystem",
    "Generation",
    "ImageTrees",
    "LazyLayer",
    "LazyTree",
    "Lookup",
    "Members",
    "OneImage",
    "Plan",
    "Stack",
    "View",
    "Views",
    "Way",
    "bind_folder",
    "clear_scratch",
    "detach_dead_tree",
    "hide_mounts",
    "is_mount",
    "is_upper_in_use",
    "kernel_features",
    "mount_index",
    "mount_name",
    "mount_stack",
    "mounts",
    "probe",
    "served_images",
    "unmount",
]
