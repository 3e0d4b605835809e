"""
Whole images as read-only directory trees: metadata from the index, content
from the node's cache.

For kernels whose overlayfs has no data-only layers (the way *fuse-tree*), and
for `gear fs`.  Here FUSE does serve what is opened: an open file goes on
reading from the cache when the client dies, but all of it ends with the FUSE
daemon.  An image is numbered when it is first looked up, and the inode of its
nid *n* is `number << 40 | n`.  No FUSE in here; safe from any thread.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from gear_plugin.digest import Digest
from gear_plugin.image import ErofsView, Status
from gear_plugin.rootfs import syscalls
from gear_plugin.rootfs.vfs import ABSENT, EMPTY, NEVER, ROOT, Found, Lookup

NID_BITS = 40
_NID_MASK = (1 << NID_BITS) - 1
_MOUNT_NAME = "gear-fs-"

OpenObject = Callable[[str, Digest], int]
"""A descriptor of an image's object, fetched first if need be; raises GearError, OSError."""


class ImageTrees:
    """
    The trees of all images that *view_of* knows (None: not on this node).

    *open_object* may wait for a fetch.
    """

    def __init__(self, view_of: Callable[[str], ErofsView | None], open_object: OpenObject) -> None:
        self._view_of = view_of
        self._open_object = open_object
        self._lock = threading.Lock()
        self._numbers: dict[str, int] = {}
        self._images: list[tuple[str, ErofsView]] = []

    def image(self, image: str) -> Found:
        """The root directory of *image* (its index digest, 64 hex digits)."""
        with self._lock:
            number = self._numbers.get(image)
            if number is None:
                view = self._view_of(image)
                if view is None:
                    return ABSENT
                self._images.append((image, view))
                number = self._numbers[image] = len(self._images)
        return Lookup.Inode(number << NID_BITS | self._images[number - 1][1].root)

    def lookup(self, inode: int, name: bytes) -> Found:
        """Look *name* up in the directory *inode*; a tree never changes."""
        _, view, nid = self._find(inode)
        child = view.lookup(nid, name)
        return NEVER if child is None else Lookup.Inode(inode & ~_NID_MASK | child)

    def status(self, inode: int) -> Status:
        """The metadata of *inode*."""
        _, view, nid = self._find(inode)
        return view.status(nid)

    def entries(self, inode: int) -> list[tuple[bytes, int]]:
        """The names in the directory *inode*, `.` and `..` included, with their inodes."""
        _, view, nid = self._find(inode)
        image = inode & ~_NID_MASK
        return [(name, image | child) for name, child in view.entries(nid).items()]

    def target(self, inode: int) -> bytes:
        """The text of a symbolic link."""
        _, view, nid = self._find(inode)
        return view.target(nid)

    def xattrs(self, inode: int) -> Mapping[bytes, bytes]:
        """The extended attributes of *inode*."""
        _, view, nid = self._find(inode)
        return view.xattrs(nid)

    def open(self, inode: int) -> int:
        """
        A descriptor with the content of the regular file *inode*, or EMPTY.

        Raises what the fetch raises.
        """
        image, view, nid = self._find(inode)
        digest = view.digest(nid)
        return EMPTY if digest is None else self._open_object(image, digest)

    def _find(self, inode: int) -> tuple[str, ErofsView, int]:
        image, view = self._images[(inode >> NID_BITS) - 1]
        return image, view, inode & _NID_MASK


def mount_name(image: str) -> str:
    """What the mount table calls a mount of *image* alone."""
    return f"{_MOUNT_NAME}{image}"


def served_images() -> set[str]:
    """The images that are mounted alone in this mount namespace."""
    return {
        source.removeprefix(_MOUNT_NAME)
        for _, source in syscalls.mount_sources()
        if source.startswith(_MOUNT_NAME)
    }


def detach_dead_tree(point: Path) -> None:
    """Detach a mount of an image alone on *point* whose process has died."""
    for mounted, source in syscalls.mount_sources():
        if mounted == point and source.startswith(_MOUNT_NAME):
            try:
                os.statvfs(point)
            except OSError as error:
                if error.errno == errno.ENOTCONN:
                    syscalls.unmount(point, lazy=True)
            return


class OneImage:
    """One image as a filesystem of its own, its root directory being the mount's."""

    def __init__(self, trees: ImageTrees, image: str) -> None:
        self._trees = trees
        found = trees.image(image)
        assert isinstance(found, Lookup.Inode), f"image {image} is not here"
        self._root = found.inode
        self.finished = 0
        """Look-ups finished so far, about; a sign of life."""

    def lookup(self, parent: int, name: bytes) -> Found:
        """See ImageTrees."""
        self.finished += 1
        return self._trees.lookup(self._inner(parent), name)

    def status(self, inode: int) -> Status:
        """See ImageTrees."""
        return self._trees.status(self._inner(inode))

    def entries(self, inode: int) -> list[tuple[bytes, int]]:
        """See ImageTrees."""
        found = self._trees.entries(self._inner(inode))
        return [(name, ROOT if child == self._root else child) for name, child in found]

    def target(self, inode: int) -> bytes:
        """See ImageTrees."""
        return self._trees.target(self._inner(inode))

    def xattrs(self, inode: int) -> Mapping[bytes, bytes]:
        """See ImageTrees."""
        return self._trees.xattrs(self._inner(inode))

    def open(self, inode: int) -> int:
        """See ImageTrees."""
        return self._trees.open(self._inner(inode))

    def _inner(self, inode: int) -> int:
        return self._root if inode == ROOT else inode
