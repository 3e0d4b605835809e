"""
The disk of the nodes: an ext4 filesystem in a file, made anew for each link.

Every system starts on the same empty filesystem, and what one cold run left is
moved aside, not deleted, before the next.  Deleting would slow the next run
down: ext4 does not give out an inode again for minutes after its file was
deleted, and passing over thousands of such makes a new file cost 3 ms of
processor instead of 0.02 (measured).  On a disk that is mounted with
`discard`, as those of virtual machines are, each deletion itself takes 1 ms.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from bench.link import unmount_below

_SIZE_BYTES = 64 << 30
_SHARE_OF_FREE = 0.8
_KEEP_FREE = 0.3


class Disk:
    """The filesystem on *folder*, from `start` to `stop`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder.with_suffix(".img")

    def start(self) -> None:
        """Make it, empty, after removing a predecessor's."""
        self.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        free_bytes = shutil.disk_usage(self.folder).free
        with self._file.open("wb") as file:
            file.truncate(min(_SIZE_BYTES, int(free_bytes * _SHARE_OF_FREE)))
        # Everything is initialised by use, nothing in the background.
        options = "nodiscard,lazy_itable_init=1,lazy_journal_init=1"
        _run("mkfs.ext4", "-q", "-F", "-E", options, str(self._file))
        device = _run("losetup", "--show", "--find", "--direct-io=on", str(self._file)).strip()
        try:
            _run("mount", "-o", "noinit_itable", device, str(self.folder))
        finally:
            # While it is mounted this only says: free the device with the last user.
            _run("losetup", "--detach", device)

    def set_aside(self, folder: Path, aside: Path) -> None:
        """
        Move what is in *folder* into *aside*, which is in the same mount.

        When the disk gets full, what was set aside there before is deleted.
        """
        usage = shutil.disk_usage(self.folder)
        if usage.free < usage.total * _KEEP_FREE:
            shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(exist_ok=True)
        target = Path(tempfile.mkdtemp(dir=aside))
        for entry in folder.iterdir():
            entry.rename(target / entry.name)

    def stop(self) -> None:
        """Unmount and delete it; fine if there is none."""
        unmount_below(self.folder)
        self._file.unlink(missing_ok=True)


def _run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout
