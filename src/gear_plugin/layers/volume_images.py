"""
Images as volumes: found by name, and mounted as containers' layers are.

A writable volume is a container's stack without ordinary layers.  A read-only
one has an empty directory in the place of its upper, as overlayfs wants two
layers.  Of a part of an image, the whole is mounted aside, the part is bound
to where the volume is, and the whole is detached: the kernel keeps it as long
as the part is used, and the mount table has one mount for each volume.

Not locked: one thread at a time for each volume.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from gear_plugin.errors import BadConfig, ImageNotFound
from gear_plugin.image import ErofsView, find_folder
from gear_plugin.layers.images import NodeImages
from gear_plugin.layers.in_use import mounted_images
from gear_plugin.layers.keepers import ImageKeepers, ImageViews
from gear_plugin.layers.volume_record import Shown, VolumeFolder, VolumeRecord
from gear_plugin.names import ImageId
from gear_plugin.rootfs import Stack, View, bind_folder, mount_stack, unmount


@dataclass(frozen=True, slots=True)
class Showing:
    """The image that a volume is to show, and which folder of it."""

    image: ImageId
    writable: bool = False
    path: bytes = b"/"


class TakeIn(Protocol):
    """Finds images by name."""

    def __call__(self, image: ImageId, note: Callable[[str], bool], /) -> str:
        """
        Have the Gear image *image* on this node; its index's digest.

        *note* is told the digest first, and says whether the image is here
        already.  Raises ImageNotFound, SourceUnavailable, AccessDenied,
        IndexDamaged, Unsupported (no Gear image), StorageFull.
        """
        ...


class VolumeImages:
    """What volumes show of the images of the node below *root*."""

    def __init__(
        self,
        root: Path,
        images: NodeImages,
        views: ImageViews,
        keepers: ImageKeepers,
        take_in: TakeIn,
    ) -> None:
        self._root = root
        self._images = images
        self._views = views
        self._keepers = keepers
        self._take_in = take_in

    def prepare(self, made: VolumeFolder, record: VolumeRecord, showing: Showing) -> VolumeRecord:
        """
        Have the image here, and in the folder *made* what its volume needs; *record* completed.

        The half-made volume keeps the image once its record is in *made*.
        Raises BadConfig (no such folder in the image), and what TakeIn raises.
        """
        asked = Shown(str(showing.image), "", showing.writable, os.fsdecode(showing.path), "/")

        def note(index: str) -> bool:
            shown = replace(asked, index=index)
            return self._keepers.keep(index, lambda: made.write(replace(record, shown=shown)))

        index = self._take_in(showing.image, note)
        view = self._images.view(index)
        if view is None:
            raise ImageNotFound(f"the image {showing.image} left this node; try again")
        folder = find_folder(view, showing.path)
        if folder is None:
            raise BadConfig(
                f"volume option path: {showing.image} has no folder {os.fsdecode(showing.path)!r}"
            )
        made.make(shows_image=True)
        _make_root(made.upper, view)
        totals = self._images.manifest(index).totals
        shown = replace(
            asked,
            index=index,
            folder=os.fsdecode(folder),
            files=totals.files,
            size_bytes=totals.object_bytes,
        )
        return replace(record, shown=shown)

    def mount(self, folder: VolumeFolder, shown: Shown) -> None:
        """Mount what the volume shows on `merged`; raises MountFailed, DaemonUnavailable."""
        is_whole = shown.folder == "/"
        target = folder.merged if is_whole else folder.whole

        def mount(view: View | Path) -> None:
            if shown.writable:
                mount_stack(target, Stack((), view, folder.upper, folder.work))
            else:
                # The empty directory above it is the second layer that overlayfs wants.
                mount_stack(target, Stack((folder.upper,), view))

        self._views.use(shown.index, mount)
        if is_whole:
            return
        try:
            try:
                bind_folder(folder.whole, os.fsencode(shown.folder), folder.merged)
            finally:
                unmount(folder.whole, lazy=True)
        except BaseException:
            self._release(shown.index)
            raise

    def unmount(self, folder: VolumeFolder, shown: Shown) -> None:
        """Undo `mount`; who still reads there may go on.  Raises MountFailed."""
        unmount(folder.merged, lazy=True)
        self._release(shown.index)

    def _release(self, index: str) -> None:
        self._views.release(index, lambda: index in mounted_images(self._root))


def _make_root(upper: Path, view: ErofsView) -> None:
    """A directory that looks like the image's root: overlayfs shows the topmost one's metadata."""
    status = view.status(view.root)
    upper.mkdir()
    os.chown(upper, status.uid, status.gid)
    upper.chmod(stat.S_IMODE(status.mode))
    for name, value in view.xattrs(view.root).items():
        os.setxattr(upper, name, value)
    os.utime(upper, ns=(status.mtime_ns, status.mtime_ns))
