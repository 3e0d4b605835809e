"""
An image's layers, ready to stand a container on: mounts of its index and, in
the nested way, of its read-only overlay.

An index is mounted once and kept while the image is on the node, below `<run>`,
which is private to this mount namespace: in the managed plugin everything here
goes with the plugin's process, while the containers' own overlays stay.
A nested view is mounted while something stands on it, no longer: it holds the
inodes of objects that were opened through it, and with them the disk space of
those that the cache has evicted.  It also holds the FUSE layer it was mounted
with, so there is one for each life of the FUSE daemon.
Thread-safe; images do not wait for each other.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path

from gear_plugin.errors import MountFailed
from gear_plugin.rootfs import syscalls
from gear_plugin.rootfs.lazy import Generation, LazyLayer
from gear_plugin.rootfs.overlay import Plan, View, Way, mount_index, mount_view

log = logging.getLogger(__name__)

_ATTEMPTS = 3
"""A FUSE daemon may die between asking which one serves and mounting on it."""


class Views:
    """
    Mounts of Gear images.

    *index_file* gives an image's EROFS file, *admit* has the client make the
    image's private folder; *cache* holds `public/` and `private/`.
    """

    def __init__(
        self,
        run: Path,
        cache: Path,
        plan: Plan,
        lazy: LazyLayer,
        *,
        index_file: Callable[[str], Path],
        admit: Callable[[str], None],
        wait_s: float,
    ) -> None:
        self._indexes = run / "index"
        self._views = run / "view"
        self._cache = cache
        self._plan = plan
        self._lazy = lazy
        self._index_file = index_file
        self._admit = admit
        self._wait_s = wait_s
        self._guard = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}

    def use(self, image: str, mount: Callable[[View | Path], None]) -> None:
        """
        Call *mount* with the layers of *image*; again if the FUSE daemon died meanwhile.

        Raises MountFailed, DaemonUnavailable.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            generation = self._lazy.current(self._wait_s)
            try:
                # Under the lock, or `release` could take the view away in between.
                with self._lock_of(image):
                    mount(self._view(image, generation))
            except MountFailed as error:
                if attempt == _ATTEMPTS or self._lazy.published() == generation:
                    raise
                log.warning("mounting %s again: %s", image[:12], error)
            else:
                return

    def release(self, image: str, is_used: Callable[[], bool]) -> None:
        """Unmount the nested view of *image* unless *is_used* says that a mount stands on it."""
        if self._plan.way is not Way.NESTED:
            return
        with self._lock_of(image):
            if not is_used():
                self._detach(*self._views.glob(f"{image}-*"))

    def forget(self, image: str) -> None:
        """Unmount what `use` mounted for *image*; running containers keep theirs."""
        with self._lock_of(image):
            self._detach(*self._views.glob(f"{image}-*"), self._indexes / image)

    def _view(self, image: str, generation: Generation) -> View | Path:
        self._admit(image)
        if self._plan.way is Way.FUSE_TREE:
            return generation.tree(image)
        index = self._indexes / image
        if not syscalls.is_mount(index):
            index.mkdir(parents=True, exist_ok=True)
            mount_index(self._index_file(image), index, loop=self._plan.loop_index)
        public, private = self._cache / "public", self._cache / "private" / image
        view = View(index, (public, generation.objects(image), private, generation.error))
        if self._plan.way is Way.DIRECT:
            return view
        point = self._views / f"{image}-{generation.number}-{generation.pid}"
        if not syscalls.is_mount(point):
            self._detach(*self._views.glob(f"{image}-*"))
            point.mkdir(parents=True, exist_ok=True)
            mount_view(point, view)
        return point

    def _detach(self, *points: Path) -> None:
        for point in points:
            if syscalls.is_mount(point):
                with contextlib.suppress(MountFailed):
                    syscalls.unmount(point, lazy=True)
            with contextlib.suppress(OSError):
                point.rmdir()

    def _lock_of(self, image: str) -> threading.Lock:
        with self._guard:
            return self._locks.setdefault(image, threading.Lock())
