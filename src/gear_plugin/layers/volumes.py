"""
The volumes of this node: ordinary ones, and Gear images shown as volumes.

As with layers, the truth is on disk (`volume_record.py`) and in the kernel's
mount table: a new process goes on where a dead one stopped.  Who has a volume
mounted is noted before it is mounted, for this boot.  Notes of a volume that
is not mounted mean that its mount was taken away by force (`docker plugin
disable -f`): it is not mounted again while something still writes to it.
Who uses an ordinary volume is known to one process alone: no mount tells when a
note has become wrong, and a dockerd that was killed does not unmount what its
containers had.

Every operation is safe to repeat.  Operations on one volume exclude each
other, operations on different volumes do not; reading waits for nobody.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gear_plugin.confined.removal import remove_tree
from gear_plugin.durable import TEMP_PREFIX, storage_full, sync_directory
from gear_plugin.errors import MountFailed, VolumeExists, VolumeInUse, VolumeNotFound
from gear_plugin.layers.held import becomes_free
from gear_plugin.layers.keepers import ImageKeepers
from gear_plugin.layers.volume_images import Showing, VolumeImages
from gear_plugin.layers.volume_record import (
    VOLUMES,
    Shown,
    VolumeFolder,
    VolumeRecord,
)
from gear_plugin.names import parse_user, parse_volume_name
from gear_plugin.rootfs import is_mount, mounts, unmount

log = logging.getLogger(__name__)

_REMOVAL_S = 20.0
"""docker gives up a removal after 60 s; what takes longer goes on behind its back."""


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume as it is now; `mountpoint` None: not mounted."""

    record: VolumeRecord
    mountpoint: Path | None


@dataclass
class _Turn:
    """One volume's lock, and how many hold it or wait for it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    wanted: int = 0


class VolumeStore:
    """
    Volumes under *root*`/volumes`.

    Making a store removes what a crash left: volumes half made or half removed.
    One whose mount was taken away may still be on its way out of a container:
    that is waited for, *release_s*.
    """

    def __init__(
        self,
        root: Path,
        images: VolumeImages,
        keepers: ImageKeepers,
        *,
        release_s: float = 5.0,
    ) -> None:
        self._folder = root / VOLUMES
        self._release_s = release_s
        self._images = images
        self._keepers = keepers
        self._guard = threading.Lock()
        self._turns: dict[str, _Turn] = defaultdict(_Turn)
        self._users_here: dict[str, frozenset[str]] = {}
        # Setuid programs in volumes are for containers, not for users of the host.
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in self._folder.glob(f"{TEMP_PREFIX}*"):
            self._take_away(VolumeFolder(left), wait_s=0)
        self._forget_lost_users()

    def create(self, name: str, showing: Showing | None) -> None:
        """
        Make the volume *name*: an ordinary one, or one that shows an image.

        One that is there already and shows the same is no error.  Raises
        BadName, VolumeExists, VolumeNotFound (its record is damaged), BadConfig
        (no such folder in the image), StorageFull, and what TakeIn raises;
        nothing is left then.
        """
        folder = self._volume(name)
        with self._locked(name), storage_full(folder.path):
            if folder.path.exists():
                if _is_same(folder.read().shown, showing):
                    return
                raise VolumeExists(
                    f"volume {name} exists already and shows something else; "
                    "remove it first, or choose another name"
                )
            made = VolumeFolder(Path(tempfile.mkdtemp(prefix=TEMP_PREFIX, dir=self._folder)))
            try:
                record = VolumeRecord(name, int(time.time()))
                if showing is None:
                    made.make(shows_image=False)
                else:
                    record = self._images.prepare(made, record, showing)
                made.write(record)
                self._keepers.move(made.path, folder.path)
                sync_directory(self._folder)
            except BaseException:
                if made.path.exists():
                    self._take_away(made, wait_s=_REMOVAL_S)
                raise

    def remove(self, name: str) -> None:
        """
        Remove the volume and what was written to it.

        Raises VolumeNotFound, VolumeInUse (mounted, or see `mount`).
        """
        folder = self._volume(name)
        with self._locked(name):
            shown = folder.read().shown
            if self._users_here.get(name) or is_mount(folder.merged):
                raise VolumeInUse(
                    f"volume {name} is mounted; stop the containers that use it, then remove it"
                )
            if shown is not None:
                self._make_free(folder, shown, self._release_s)
            gone = VolumeFolder(self._folder / (TEMP_PREFIX + secrets.token_hex(8)))
            self._keepers.move(folder.path, gone.path)
            sync_directory(self._folder)
            self._take_away(gone, wait_s=_REMOVAL_S)

    def mount(self, name: str, user: str) -> Path:
        """
        Mount the volume for *user*, who may have done so already; where it is.

        Raises VolumeNotFound, MountFailed, DaemonUnavailable, StorageFull;
        VolumeInUse: its mount was taken away, and something still runs on it.
        """
        folder = self._volume(name)
        with self._locked(name), storage_full(folder.path):
            shown = folder.read().shown
            parse_user(user)
            if shown is None:
                self._users_here[name] = self._users_here.get(name, frozenset()) | {user}
                return folder.data
            is_mounted = is_mount(folder.merged)
            if not is_mounted:
                self._make_free(folder, shown, self._release_s)
                folder.keep_users(())
            # Before it is mounted: an unmount by another user must see this one.
            folder.add_user(user)
            if not is_mounted:
                self._images.mount(folder, shown)
        return folder.merged

    def unmount(self, name: str, user: str) -> None:
        """
        *user* needs the volume no more; with the last one the mount goes.

        A user who is not known is no error.  Raises VolumeNotFound, MountFailed.
        """
        folder = self._volume(name)
        with self._locked(name):
            shown = folder.read().shown
            if shown is None:
                if left := self._users_here.pop(name, frozenset()) - {user}:
                    self._users_here[name] = left
                return
            left = folder.users() - {user}
            if not left and is_mount(folder.merged):
                self._images.unmount(folder, shown)
            folder.keep_users(left)

    def get(self, name: str) -> Volume:
        """The volume *name*; raises VolumeNotFound."""
        folder = self._volume(name)
        return _volume(folder, folder.read(), {point for point, _ in mounts()})

    def all(self) -> list[Volume]:
        """Every volume, by name."""
        points = {point for point, _ in mounts()}
        found = []
        for entry in sorted(self._folder.iterdir()):
            if not entry.name.startswith(TEMP_PREFIX):
                with contextlib.suppress(VolumeNotFound):
                    found.append(_volume(VolumeFolder(entry), VolumeFolder(entry).read(), points))
        return found

    # --- inside --------------------------------------------------------------

    def _volume(self, name: str) -> VolumeFolder:
        return VolumeFolder(self._folder / parse_volume_name(name))

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with self._guard:
            turn = self._turns[name]
            turn.wanted += 1
        try:
            with turn.lock:
                yield
        finally:
            with self._guard:
                turn.wanted -= 1
                if not turn.wanted:
                    del self._turns[name]

    def _forget_lost_users(self) -> None:
        """
        Forget who was noted on a volume that nobody has any more; of a read-only
        one nobody knows, so its image counts as in use until it is mounted again.
        """
        for volume in self.all():
            folder, shown = VolumeFolder(self._folder / volume.record.name), volume.record.shown
            if shown is not None and volume.mountpoint is None and shown.writable:
                with contextlib.suppress(VolumeInUse, MountFailed):
                    self._make_free(folder, shown, wait_s=0)
                    folder.keep_users(())

    def _make_free(self, folder: VolumeFolder, shown: Shown, wait_s: float) -> None:
        """
        Have nothing stand on a volume that is not mounted; raises VolumeInUse.

        Users that are noted all the same had their mount taken away.  The
        kernel knows whether they still write there (`held.becomes_free`).
        """
        if is_mount(folder.whole):
            unmount(folder.whole, lazy=True)  # what a crash left
        if (
            shown.writable
            and folder.users()
            and not becomes_free(folder.upper, self._folder, wait_s)
        ):
            raise VolumeInUse(
                f"volume {folder.path.name} is in use by a container that has been running"
                " since before the plugin was disabled; stop that container first"
            )

    def _take_away(self, gone: VolumeFolder, *, wait_s: float) -> None:
        """
        Remove a folder that is no volume any more, and let go of its image.

        What takes longer than *wait_s* goes on in the background, and what
        is left at the end of the process, the next one removes.
        """

        def remove() -> None:
            try:
                index = gone.disown()
                if index is not None:
                    self._keepers.drop(index)
                remove_tree(gone.path)
            except Exception:
                log.exception("%s is not removed yet; the next start tries again", gone.path)

        removal = threading.Thread(target=remove, name="removal", daemon=True)
        removal.start()
        removal.join(wait_s)


def _is_same(shown: Shown | None, showing: Showing | None) -> bool:
    """Whether a volume that is there is what was asked for."""
    if shown is None or showing is None:
        return shown is None and showing is None
    asked = (str(showing.image), showing.writable, os.fsdecode(showing.path))
    return (shown.image, shown.writable, shown.path) == asked


def _volume(folder: VolumeFolder, record: VolumeRecord, points: set[Path]) -> Volume:
    if record.shown is None:
        return Volume(record, folder.data)
    return Volume(record, folder.merged if folder.merged in points else None)
