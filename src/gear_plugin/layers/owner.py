"""
One process at a time works on a node's layers.

A driver that was killed may have a process left for a moment, and nothing
keeps people from starting a second driver on one folder; two would unpack,
mount and remove side by side, each with its own locks.  So whoever is about
to use the layers takes a lock on their folder, which goes with the process,
whatever ends it.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from gear_plugin.errors import Conflict

_POLL_S = 0.02


def own_layers(root: Path, *, wait_s: float) -> int:
    """
    Take the layers under *root* for this process; the descriptor that is the lock.

    Waits for a predecessor that is about to end.  Raises Conflict after *wait_s*.
    """
    folder = root / "containers"
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                os.close(handle)
                raise Conflict(
                    f"another gear graphdriver works on the layers in {root}; stop it,"
                    " or give this one a folder of its own (--root)"
                ) from error
            time.sleep(_POLL_S)
        else:
            return handle
