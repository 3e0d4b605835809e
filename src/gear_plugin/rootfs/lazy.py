"""
Where the lazy layer is at this moment, for those who mount.

The FUSE daemon is a process of its own and gets a new mount point each time
it starts, because a mount whose daemon died cannot be revived.  The
supervisor publishes the current one in `<run>/fuse.json`; this module reads
it, and holds the small steps of starting over: pick a mount point, publish,
retract, abort what hangs.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from gear_plugin.errors import DaemonUnavailable, MountFailed
from gear_plugin.rootfs import syscalls

log = logging.getLogger(__name__)

_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Generation:
    """One life of the FUSE daemon."""

    number: int
    pid: int
    mountpoint: str

    def objects(self, image: str) -> Path:
        """The trigger layer of *image*."""
        return Path(self.mountpoint) / "objects" / image

    def tree(self, image: str) -> Path:
        """The whole tree of *image*."""
        return Path(self.mountpoint) / "trees" / image

    @property
    def error(self) -> Path:
        """The layer that turns what is missing into EIO."""
        return Path(self.mountpoint) / "error"


class LazyLayer:
    """The published state of the FUSE daemon under *run*."""

    def __init__(self, run: Path) -> None:
        self._state = run / "fuse.json"
        self._points = run / "fuse"

    def current(self, timeout_s: float) -> Generation:
        """
        The generation that serves now, waiting for one that is being started.

        Raises DaemonUnavailable when there is none after *timeout_s*.
        """
        deadline = time.monotonic() + timeout_s
        while (generation := self.published()) is None:
            if time.monotonic() > deadline:
                raise DaemonUnavailable(
                    f"the FUSE daemon did not come up within {timeout_s:.0f} s; "
                    "its reason is in the plugin's log"
                )
            time.sleep(_POLL_S)
        return generation

    def published(self) -> Generation | None:
        """The published generation, if its daemon still exists."""
        try:
            generation = Generation(**json.loads(self._state.read_text()))
            os.kill(generation.pid, 0)
        except (FileNotFoundError, ProcessLookupError):
            return None
        return generation

    def new_mountpoint(self) -> tuple[int, Path]:
        """A number and an empty folder that no generation before has used."""
        self._points.mkdir(parents=True, exist_ok=True)
        used = [int(path.name) for path in self._points.iterdir() if path.name.isdigit()]
        number = max(used, default=0) + 1
        point = self._points / str(number)
        point.mkdir()
        return number, point

    def publish(self, generation: Generation) -> None:
        """Make *generation* the one that new mounts use."""
        temporary = self._state.with_suffix(".new")
        temporary.write_text(json.dumps(asdict(generation)))
        temporary.rename(self._state)

    def retract(self) -> None:
        """Let new mounts wait for the next generation."""
        self._state.unlink(missing_ok=True)

    def detach_dead(self) -> None:
        """
        Detach every mount point of earlier generations, never touching them.

        Overlays that use one keep it alive; it is gone from the path only.
        """
        for point, fstype in list(syscalls.mounts()):
            if point.parent == self._points and fstype.startswith("fuse"):
                with contextlib.suppress(MountFailed):
                    syscalls.unmount(point, lazy=True)
        if self._points.is_dir():
            for point in self._points.iterdir():
                with contextlib.suppress(OSError):
                    point.rmdir()

    def abort(self, device_minor: int, fusectl: Path) -> None:
        """
        Make the kernel fail every request of a connection whose daemon is gone.

        A daemon that was killed in the middle of a request may leave others
        waiting; *device_minor* is the minor number of the mount's st_dev,
        which names the connection (Documentation/filesystems/fuse.rst).  The
        control filesystem is mounted on *fusectl* for as long as it takes.
        """
        fusectl.mkdir(parents=True, exist_ok=True)
        syscalls.mount("fusectl", fusectl, "fusectl")
        try:
            with contextlib.suppress(FileNotFoundError):
                (fusectl / str(device_minor) / "abort").write_text("1")
                log.warning("aborted FUSE connection %d", device_minor)
        finally:
            syscalls.unmount(fusectl, lazy=True)
