"""
The layers of this node: what a graphdriver keeps for its engine.

The truth is on disk (`record.py`) and in the kernel's mount table; memory
holds only reference counts.  So a new process goes on where a dead one
stopped, without being told anything: a mount that it finds in place counts
as one reference, as in moby's graphdriver.RefCounter.

Every operation is safe to repeat.  Operations on one layer exclude each
other, operations on different layers do not.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from gear_plugin.confined.removal import remove_tree
from gear_plugin.durable import storage_full, sync_directory
from gear_plugin.errors import IndexDamaged, LayerExists, LayerNotFound, MountFailed, Unavailable
from gear_plugin.image import FOLDER
from gear_plugin.layers import changes as diffs
from gear_plugin.layers import tarout
from gear_plugin.layers.apply import ReadChunk, Unpacker, drain
from gear_plugin.layers.images import NodeImages
from gear_plugin.layers.record import LayerFolder, Record
from gear_plugin.names import parse_layer_id
from gear_plugin.rootfs import Stack, View, is_mount, mount_stack, mounts, served_images, unmount

log = logging.getLogger(__name__)

_HALF_MADE = ".tmp-"
_ATTEMPTS = 3


class ImageViews(Protocol):
    """What the store needs of rootfs.Views."""

    def use(self, image: str, mount: Callable[[View | Path], None], /) -> None:
        """Call *mount* with the image's layers."""

    def release(self, image: str, is_used: Callable[[], bool], /) -> None:
        """The last mount on the image may have gone; *is_used* tells."""

    def forget(self, image: str, /) -> None:
        """Unmount the image's own mounts."""


@dataclass
class _Held:
    """One layer's lock and reference count; None: not yet looked at the mount table."""

    lock: threading.RLock
    count: int | None = None


class LayerStore:
    """
    Layers under *root*`/containers`.

    *forget_image* tells the client that no layer of an image is left here.
    Making a store repairs what a crash left: half-made layers go.
    """

    def __init__(
        self,
        root: Path,
        images: NodeImages,
        views: ImageViews,
        forget_image: Callable[[str], None],
        *,
        unpacker: Unpacker | None = None,
    ) -> None:
        self._folder = root / "containers"
        self._images = images
        self._views = views
        self._forget_image = forget_image
        self._unpacker = unpacker or Unpacker()
        self._guard = threading.Lock()
        # Held while a layer notes the image it carries, and while an image
        # that no layer has noted is dropped.
        self._carrying = threading.Lock()
        self._held: dict[str, _Held] = defaultdict(lambda: _Held(threading.RLock()))
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o711)
        self._remove_half_made()

    # --- making and removing -------------------------------------------------

    def create(self, layer: str, parent: str, *, writable: bool) -> None:
        """
        Make an empty layer on *parent* (empty: none).

        Raises LayerNotFound (the parent), LayerExists, BadName, StorageFull.
        """
        folder = self._layer(layer)
        parents: tuple[str, ...] = ()
        with storage_full(folder.path):
            if parent:
                below = self._layer(parent)
                parents = (parent, *below.read().parents)
                below.committed.touch()
            if folder.path.exists():
                raise LayerExists(f"layer {layer} exists already")
            made = LayerFolder(Path(tempfile.mkdtemp(prefix=_HALF_MADE, dir=self._folder)))
            try:
                made.path.chmod(0o710)
                for path in (made.upper, made.work, made.merged):
                    path.mkdir()
                    path.chmod(0o755)
                made.write(Record(layer, parents, writable))
                made.path.rename(folder.path)
            except OSError as error:
                remove_tree(made.path)
                if folder.path.exists():
                    raise LayerExists(f"layer {layer} exists already") from error
                raise

    def remove(self, layer: str) -> None:
        """Remove *layer*, unmounting it by force if it is still held; unknown: no error."""
        folder = self._layer(layer)
        with self._locked(layer):
            if folder.path.exists():
                index = None
                with contextlib.suppress(LayerNotFound):
                    index = folder.read().index
                if is_mount(folder.merged):
                    self._unmount(folder)
                # A rename needs no inode and no block: it works on a full disk.
                gone = self._folder / (_HALF_MADE + secrets.token_hex(8))
                folder.path.rename(gone)
                if index is not None:
                    self._drop_image(index)
                remove_tree(gone)
            with self._guard:
                self._held.pop(layer, None)

    def exists(self, layer: str) -> bool:
        """Whether there is such a layer."""
        try:
            self._layer(layer).read()
        except LayerNotFound:
            return False
        return True

    # --- mounting ------------------------------------------------------------

    def get(self, layer: str) -> Path:
        """
        Mount *layer*, or count one more user, and return its path.

        The path is the same each time.  Raises LayerNotFound, MountFailed,
        DaemonUnavailable.
        """
        folder = self._layer(layer)
        record = folder.read()
        if self._is_plain(record):
            return folder.upper
        with self._locked(layer) as held:
            if self._count(held, folder) == 0:
                self._mount(folder, record)
            held.count = self._count(held, folder) + 1
        return folder.merged

    def put(self, layer: str) -> None:
        """Count one user less and unmount after the last; unknown or unmounted: no error."""
        folder = self._layer(layer)
        with self._locked(layer) as held:
            held.count = max(self._count(held, folder) - 1, 0)
            if held.count == 0 and is_mount(folder.merged):
                self._unmount(folder)

    def cleanup(self) -> None:
        """Unmount every layer; what is still in use goes with its last user."""
        for entry in sorted(self._folder.iterdir()):
            with self._locked(entry.name) as held:
                held.count = 0
                with contextlib.suppress(MountFailed):
                    if is_mount(entry / "merged"):
                        unmount(entry / "merged", lazy=True)

    # --- content -------------------------------------------------------------

    def apply(self, layer: str, read: ReadChunk) -> int:
        """
        Unpack the tar that *read* gives into *layer*, replacing what it held.

        The stream is read to its end.  Returns the bytes of its regular
        files.  Raises ArchiveMalformed, IndexDamaged, StorageFull, TimedOut,
        Unavailable; the layer is then as it was, and no image is left of it.
        """
        folder = self._layer(layer)
        with self._locked(layer), storage_full(folder.applying):
            record = folder.read()
            for left in (folder.applying, folder.replaced):
                if left.exists():
                    remove_tree(left)
            try:
                folder.applying.mkdir()
                folder.applying.chmod(0o755)
            except OSError:
                drain(read)
                raise
            index = None
            try:
                size = self._unpacker.unpack(folder.applying, read, lowest=not record.parents)
                if not record.parents:
                    index = self._images.install(folder.applying)
                self._carry(folder, replace(record, index=index))
                folder.upper.rename(folder.replaced)
                folder.applying.rename(folder.upper)
                if index is not None:
                    # docker syncs its own note of the layer; it must not be
                    # all that a power failure leaves.
                    for path in (folder.upper / FOLDER, folder.upper, folder.path):
                        sync_directory(path)
            except BaseException:
                self._undo_apply(folder, record, index)
                raise
            remove_tree(folder.replaced)
            if record.index is not None and record.index != index:
                self._drop_image(record.index)
        return size

    def diff(self, layer: str, parent: str) -> Iterator[bytes]:
        """
        The tar of what *layer* changes against *parent* (empty: everything).

        The layer is held while the stream is read; close the iterator if it
        is not read to its end.
        """
        record = self._layer(layer).read()
        if self._upper_tells(record, parent):
            return self._upper_diff(self._layer(layer).upper, parent)
        return self._compared_diff(layer, parent)

    def changes(self, layer: str, parent: str) -> list[diffs.Change]:
        """The paths that *layer* changes against *parent* (empty: everything)."""
        record = self._layer(layer).read()
        if self._upper_tells(record, parent):
            with self._using(parent) as below:
                return diffs.of_upper(self._layer(layer).upper, below)
        with self._using(layer) as tree, self._using(parent) as below:
            return diffs.compare(below, tree)

    def diff_size(self, layer: str, parent: str) -> int:
        """The bytes of the regular files in `changes`."""
        record = self._layer(layer).read()
        if self._upper_tells(record, parent):
            return diffs.size_of_tree(self._layer(layer).upper)
        with self._using(layer) as tree, self._using(parent) as below:
            return diffs.size_of(diffs.compare(below, tree), tree)

    def metadata(self, layer: str) -> dict[str, str]:
        """What `docker inspect` shows as GraphDriver.Data; raises LayerNotFound."""
        folder = self._layer(layer)
        record = folder.read()
        shown = {"UpperDir": str(folder.upper)}
        if not self._is_plain(record):
            shown |= {"MergedDir": str(folder.merged), "WorkDir": str(folder.work)}
        if record.parents:
            shown["LowerDir"] = ":".join(str(self._layer(p).upper) for p in record.parents)
        index = self._index_of(record)
        if index is not None:
            shown |= {"GearIndex": index, "GearImage": str(self._images.manifest(index).image)}
        return shown

    # --- inside --------------------------------------------------------------

    def _layer(self, layer: str) -> LayerFolder:
        return LayerFolder(self._folder / parse_layer_id(layer))

    @contextlib.contextmanager
    def _locked(self, layer: str) -> Iterator[_Held]:
        with self._guard:
            held = self._held[layer]
        with held.lock:
            yield held

    @staticmethod
    def _count(held: _Held, folder: LayerFolder) -> int:
        if held.count is None:
            held.count = 1 if is_mount(folder.merged) else 0
        return held.count

    @staticmethod
    def _is_plain(record: Record) -> bool:
        """Whether the upper directory is the whole tree, so that nothing need be mounted."""
        return not record.parents and record.index is None

    def _index_of(self, record: Record) -> str | None:
        lowest = self._layer(record.parents[-1]).read() if record.parents else record
        return lowest.index

    def _upper_tells(self, record: Record, parent: str) -> bool:
        """Whether the upper directory alone says what changed against *parent*."""
        return record.index is None and parent == record.parent

    def _mount(self, folder: LayerFolder, record: Record) -> None:
        index = self._index_of(record)
        ordinary = record.parents[:-1] if index is not None else record.parents
        lowers = tuple(self._layer(parent).upper for parent in ordinary)
        read_only = folder.committed.exists() or record.index is not None
        if read_only:
            # An index layer shows its own `.gear` above the image's files:
            # docker reads the layer back through this mount to push or save it.
            lowers = (folder.upper, *lowers)

        def mount(view: View | Path | None) -> None:
            upper, work = (None, None) if read_only else (folder.upper, folder.work)
            mount_stack(folder.merged, Stack(lowers, view, upper, work))

        if index is None:
            mount(None)
        else:
            self._views.use(index, mount)

    def _unmount(self, folder: LayerFolder) -> None:
        unmount(folder.merged, lazy=True)
        with contextlib.suppress(LayerNotFound):
            index = self._index_of(folder.read())
            if index is not None:
                self._views.release(index, lambda: index in mounted_images(self._folder.parent))

    @contextlib.contextmanager
    def _using(self, layer: str) -> Iterator[Path]:
        """The layer's tree, mounted for as long as the block runs; empty id: an empty folder."""
        if not layer:
            empty = self._folder / ".empty"
            empty.mkdir(exist_ok=True)
            yield empty
            return
        path = self.get(layer)
        try:
            yield path
        finally:
            self.put(layer)

    def _upper_diff(self, upper: Path, parent: str) -> Iterator[bytes]:
        with contextlib.ExitStack() as stack:
            below: list[bytes] = []

            def is_below(name: bytes) -> bool:
                # Mounted for the first directory that asks: most changes have none.
                if not below:
                    below.append(os.fsencode(stack.enter_context(self._using(parent))) + b"/")
                return os.path.lexists(below[0] + name)

            yield from tarout.stream(tarout.upper_items(upper, is_below))

    def _compared_diff(self, layer: str, parent: str) -> Iterator[bytes]:
        with self._using(layer) as tree, self._using(parent) as below:
            found = diffs.compare(below, tree)
            yield from tarout.stream(diffs.as_items(found, tree))

    def _carry(self, folder: LayerFolder, record: Record) -> None:
        """
        Note the image that the layer carries, before it does: one that breaks
        off then goes at the next start, its image with it.
        """
        for _ in range(_ATTEMPTS):
            with self._carrying:
                folder.write(record, durable=record.index is not None)
                if record.index is None or self._images.objects(record.index) is not None:
                    return
            # The last other layer with this image left in the meantime.
            self._images.install(folder.applying)
        raise IndexDamaged(f"the index {record.index} does not stay in images/")

    def _undo_apply(self, folder: LayerFolder, record: Record, index: str | None) -> None:
        """Take back an apply that failed; what cannot be done now the next start does."""
        with contextlib.suppress(OSError):
            if folder.replaced.exists():
                folder.replaced.rename(folder.upper)
            if folder.read() != record:
                folder.write(record)
            if index is not None:
                self._drop_image(index)
            if folder.applying.exists():
                remove_tree(folder.applying)

    def _drop_image(self, image: str) -> None:
        """Let go of *image* unless another layer carries it too, or `gear fs` shows it."""
        with self._carrying:
            is_carried = any(record.index == image for record in self._records())
            if is_carried or image in served_images():
                return
            self._views.forget(image)
            self._images.remove(image)
        try:
            self._forget_image(image)
        except Unavailable as error:
            # The layer is gone already, so docker's call succeeds; the client
            # forgets what no image here needs when it starts.
            log.warning("image %s is not forgotten yet: %s", image[:12], error)

    def _records(self) -> Iterator[Record]:
        for entry in list(self._folder.iterdir()):
            if not entry.name.startswith("."):
                with contextlib.suppress(LayerNotFound):
                    yield LayerFolder(entry).read()

    def _remove_half_made(self) -> None:
        for entry in sorted(self._folder.iterdir()):
            folder = LayerFolder(entry)
            if not entry.name.startswith(_HALF_MADE) and not folder.applying.exists():
                continue
            log.info("removing the half-made layer %s", entry.name)
            found = {self._images.installed_from(folder.applying)}
            with contextlib.suppress(LayerNotFound):
                found.add(folder.read().index)
            with contextlib.suppress(OSError):
                remove_tree(entry)
            for index in found - {None}:
                self._drop_image(str(index))


def mounted_images(root: Path) -> set[str]:
    """
    The index digests of the images that are in use: mounted layers under *root*
    stand on them, or `gear fs` shows them.
    """
    folder = root / "containers"
    found = served_images()
    for point, _ in mounts():
        if point.name == "merged" and point.parent.parent == folder:
            with contextlib.suppress(LayerNotFound):
                record = LayerFolder(point.parent).read()
                if record.parents:
                    record = LayerFolder(folder / record.parents[-1]).read()
                found |= {record.index} if record.index else set()
    return found
