"""
How often a layer is held, in a form that outlives the process that counts.

    containers/<id>/held    `<boot id> <count>`, fixed width; absent: not mounted by us

docker tells a new process nothing of what it got from the one before, so the
count is noted with every change.  It is a hint beside the kernel's mount table,
never a promise on its own:

    mounted, noted        the count as noted: only calls that were under way may be off by one
    mounted, not noted    one user, as in moby's graphdriver.RefCounter
    noted, not mounted    the mount was taken away by force (`docker plugin disable -f`
                          unmounts everything): a running container may still have it
    noted in another boot, or neither    nobody

Nothing is fsynced: after a power failure it is another boot.  The caller holds
the layer's lock.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
from pathlib import Path

from gear_plugin.durable import TEMP_PREFIX, boot_id, is_full
from gear_plugin.layers.record import LayerFolder
from gear_plugin.rootfs import is_upper_in_use

log = logging.getLogger(__name__)

_UNREADABLE = 1
_FREE_POLL_S = 0.05


def noted(folder: LayerFolder) -> int | None:
    """The count noted in this boot; None: none is.  One that cannot be read is 1."""
    try:
        text = folder.held.read_text(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    # A process killed between making the file and writing it leaves it empty.
    boot, _, count = text.partition(" ")
    if boot not in ("", boot_id()):
        return None
    try:
        return int(count)
    except ValueError:
        return _UNREADABLE


def note(folder: LayerFolder, count: int) -> None:
    """Note *count*; in place, so that a kill leaves the old count or the new one."""
    try:
        handle = os.open(folder.held, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(handle, f"{boot_id()} {count:10d}\n".encode())
        finally:
            os.close(handle)
    except OSError as error:
        if not is_full(error):
            raise
        # A full disk must not keep containers from starting, or from stopping.
        log.warning("cannot note who holds layer %s: %s", folder.path.name, error.strerror)


def erase(folder: LayerFolder) -> None:
    """Nobody holds the layer."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        folder.held.unlink()


def becomes_free(upper: Path, beside: Path, within_s: float) -> bool:
    """
    Whether no overlay on this machine writes to *upper*, or ceases to in time.

    Asking needs a folder for a moment, which is made in *beside*, on the same
    filesystem.
    """
    deadline = time.monotonic() + within_s
    with tempfile.TemporaryDirectory(prefix=TEMP_PREFIX, dir=beside) as scratch:
        while is_upper_in_use(upper, Path(scratch)):
            if time.monotonic() > deadline:
                return False
            time.sleep(_FREE_POLL_S)
    return True
