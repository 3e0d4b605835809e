"""
The layers of this node: what a graphdriver keeps for its engine.

The truth is on disk (`record`, `held`) and in the kernel's mount table; memory
holds only locks, and counts that are also on disk.  So a new process goes on
where a dead one stopped, without being told anything.

No two overlays ever write to one upper directory.  A mount may be taken away
by force while a running container keeps it (`docker plugin disable -f`); then
the layer cannot be mounted again, and `get` says so, until the container ends.

Every operation is safe to repeat.  Operations on one layer exclude each
other, operations on different layers do not.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from gear_plugin.confined.removal import remove_tree
from gear_plugin.durable import TEMP_PREFIX, storage_full, sync_directory
from gear_plugin.errors import IndexDamaged, LayerExists, LayerInUse, LayerNotFound, MountFailed
from gear_plugin.image import FOLDER, INDEX_NAME, MANIFEST_NAME
from gear_plugin.layers import changes as diffs
from gear_plugin.layers import held as holding
from gear_plugin.layers import tarout
from gear_plugin.layers.apply import ReadChunk, Unpacker, drain
from gear_plugin.layers.images import NodeImages
from gear_plugin.layers.in_use import mounted_images
from gear_plugin.layers.keepers import ImageKeepers, ImageViews
from gear_plugin.layers.record import CONTAINERS, LayerFolder, Record
from gear_plugin.layers.repair import half_made, repair
from gear_plugin.names import parse_layer_id
from gear_plugin.rootfs import Stack, View, is_mount, mount_stack, mounts, unmount

_ATTEMPTS = 3


@dataclass
class _Held:
    """One layer's lock and reference count; None: not yet looked at disk and mount table."""

    lock: threading.RLock
    count: int | None = None
    daemon: int = 0
    """Whose references `count` counts; see `LayerStore.begin`."""


class LayerStore:
    """
    Layers under *root*`/containers`.

    Making a store repairs what a crash left (`repair`); no other process may
    use the layers (`owner`).  A layer whose mount was taken away may still be
    on its way out: `get` waits *release_s* for it.
    """

    def __init__(
        self,
        root: Path,
        images: NodeImages,
        views: ImageViews,
        keepers: ImageKeepers,
        *,
        unpacker: Unpacker | None = None,
        release_s: float = 5.0,
    ) -> None:
        self._folder = root / CONTAINERS
        self._images = images
        self._views = views
        self._keepers = keepers
        self._unpacker = unpacker or Unpacker()
        self._release_s = release_s
        self._daemon = 0
        self._guard = threading.Lock()
        self._held: dict[str, _Held] = defaultdict(
            lambda: _Held(threading.RLock(), daemon=self._daemon)
        )
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o711)
        repair(root, images, views, keepers)

    def begin(self) -> None:
        """
        A new daemon has taken the place of the last one, which left its
        references: each mount counts as one, that of a container which runs on.
        """
        with self._guard:
            self._daemon += 1
            known = list(self._held)
        mounted = self._mounted()
        for name in sorted({*known, *mounted}):
            folder = LayerFolder(self._folder / name)
            with self._locked(name) as held:
                held.daemon = self._daemon
                held.count = 1 if name in mounted and is_mount(folder.merged) else 0
                if held.count:
                    holding.note(folder, held.count)

    # --- making and removing -------------------------------------------------

    def create(self, layer: str, parent: str, *, writable: bool) -> None:
        """
        Make an empty layer on *parent* (empty: none).

        Raises LayerNotFound (the parent), LayerExists, BadName, StorageFull.
        """
        folder = self._layer(layer)
        parents: tuple[str, ...] = ()
        with storage_full(folder.path):
            if folder.path.exists():
                raise LayerExists(f"layer {layer} exists already")
            if parent:
                below = self._layer(parent)
                parents = (parent, *below.read().parents)
                below.committed.touch()
            made = LayerFolder(Path(tempfile.mkdtemp(prefix=TEMP_PREFIX, dir=self._folder)))
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
                gone = folder.path.rename(half_made(self._folder))
                if index is not None:
                    self._keepers.drop(index)
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
        DaemonUnavailable; LayerInUse: its mount was taken away, and something
        still runs on it.
        """
        folder = self._layer(layer)
        if self._is_plain(folder.read()):
            return folder.upper
        with self._locked(layer) as held:
            record = folder.read()
            if self._count(held, folder) == 0:
                self._mount(folder, record)
            held.count = self._count(held, folder) + 1
            holding.note(folder, held.count)
        return folder.merged

    def put(self, layer: str) -> None:
        """Count one user less and unmount after the last; unknown or unmounted: no error."""
        folder = self._layer(layer)
        with self._locked(layer) as held:
            self._put(held, folder)

    def cleanup(self) -> None:
        """Unmount every layer; what is still in use goes with its last user."""
        with self._guard:
            known = list(self._held)
        for name in sorted({*known, *self._mounted()}):
            folder = LayerFolder(self._folder / name)
            with self._locked(name) as held:
                held.count = 0
                with contextlib.suppress(MountFailed):
                    if is_mount(folder.merged):
                        # Noted until it is mounted again: who uses it now may go on.
                        self._unmount(folder)

    # --- content -------------------------------------------------------------

    def apply(self, layer: str, read: ReadChunk) -> int:
        """
        Unpack the tar that *read* gives into *layer*, replacing what it held,
        also for who has it mounted.

        The stream is read to its end.  Returns the bytes of its regular
        files.  Raises ArchiveMalformed, IndexDamaged, StorageFull, TimedOut,
        Unavailable; the layer is then as it was, and no image is left of it.
        """
        folder = self._layer(layer)
        with self._locked(layer) as held, storage_full(folder.applying):
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
            if self._count(held, folder):
                # The mount stands on what was just removed.
                self._unmount(folder)
                self._mount(folder, replace(record, index=index))
            if record.index is not None and record.index != index:
                self._keepers.drop(record.index)
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
            return self._compare(parent, below, tree)

    def diff_size(self, layer: str, parent: str) -> int:
        """The bytes of the regular files in `changes`."""
        record = self._layer(layer).read()
        if self._upper_tells(record, parent):
            return diffs.size_of_tree(self._layer(layer).upper)
        with self._using(layer) as tree, self._using(parent) as below:
            return diffs.size_of(self._compare(parent, below, tree), tree)

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

    def _mounted(self) -> set[str]:
        """The layers that are mounted, by the kernel's list."""
        points = (point for point, _ in mounts() if point.name == "merged")
        return {point.parent.name for point in points if point.parent.parent == self._folder}

    @contextlib.contextmanager
    def _locked(self, layer: str) -> Iterator[_Held]:
        while True:
            with self._guard:
                held = self._held[layer]
            with held.lock:
                # Who waited for a removal has the count of what is gone.
                if self._held.get(layer) is held:
                    yield held
                    return

    @staticmethod
    def _count(held: _Held, folder: LayerFolder) -> int:
        if held.count is None:
            # What is noted without being mounted was taken away.
            held.count = (holding.noted(folder) or 1) if is_mount(folder.merged) else 0
        return held.count

    def _put(self, held: _Held, folder: LayerFolder) -> None:
        was = self._count(held, folder)
        held.count = max(was - 1, 0)
        if held.count:
            holding.note(folder, held.count)
        elif is_mount(folder.merged):
            self._unmount(folder)
            holding.erase(folder)

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

        if not read_only and holding.noted(folder) is not None:
            self._await_free(folder)

        def mount(view: View | Path | None) -> None:
            upper, work = (None, None) if read_only else (folder.upper, folder.work)
            mount_stack(folder.merged, Stack(lowers, view, upper, work))

        if index is None:
            mount(None)
        else:
            self._views.use(index, mount)

    def _await_free(self, folder: LayerFolder) -> None:
        """Wait until no overlay has the layer's upper directory; raises LayerInUse."""
        if not holding.becomes_free(folder.upper, self._folder, self._release_s):
            raise LayerInUse(
                f"layer {folder.path.name} is in use by a container that has been running"
                " since before the plugin was disabled, and cannot be opened a second"
                " time; stop that container and start it again"
            )

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
        with self._locked(layer) as held:
            path, daemon = self.get(layer), held.daemon
        try:
            yield path
        finally:
            with self._locked(layer) as held:
                # Under another daemon this one is not counted any more.
                if held.daemon == daemon:
                    self._put(held, self._layer(layer))

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
            found = self._compare(parent, below, tree)
            yield from tarout.stream(diffs.as_items(found, tree))

    def _compare(self, parent: str, below: Path, tree: Path) -> list[diffs.Change]:
        """The changes from the tree of *parent*, mounted on *below*, to the one on *tree*."""
        found = diffs.compare(below, tree)
        if parent and self._layer(parent).read().index is not None:
            # Its index is seen in its own mount alone; no layer above takes it away.
            names = [os.fsencode(name).rpartition(b"/")[2] for name in (INDEX_NAME, MANIFEST_NAME)]
            found = diffs.without(found, b"/" + os.fsencode(FOLDER), names)
        return found

    def _carry(self, folder: LayerFolder, record: Record) -> None:
        """
        Note the image that the layer carries, before it does: one that breaks
        off then goes at the next start, its image with it.
        """
        if record.index is None:
            folder.write(record)
            return
        for _ in range(_ATTEMPTS):
            if self._keepers.keep(record.index, lambda: folder.write(record, durable=True)):
                return
            # Its last other keeper let it go in the meantime.
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
                self._keepers.drop(index)
            if folder.applying.exists():
                remove_tree(folder.applying)
