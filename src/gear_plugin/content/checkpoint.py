"""
Which files of a cache that is never fsynced survived the last boot.

`cache-checkpoint` in the cache's root is one JSON object: `boot_id` (the
kernel's random id of this boot) and `synced_ns` (Unix time, nanoseconds):
whatever was written before `synced_ns` is on disk, whatever was written
later may have been lost if the machine has booted since.

Used by the one process that owns the cache; `take` and `guard` from any thread.
"""

from __future__ import annotations

import ctypes
import json
import os
import threading
import time
from pathlib import Path

from gear_plugin.durable import write_once

_FILE = "cache-checkpoint"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Timestamps in inodes come from a coarse clock (one tick, 1-10 ms behind).
_CLOCK_SLACK_NS = 1_000_000_000


class Checkpoint:
    """
    The checkpoint of the cache in *root*; *boot_id* stands in for the kernel's in tests.

    `suspect_since_ns`: files whose mtime is this or later must be dropped;
    None when the machine has not booted since they were written.
    """

    def __init__(self, root: Path, *, boot_id: str | None = None) -> None:
        self._root = root
        self._boot_id = boot_id or _BOOT_ID.read_text().strip()
        self._lock = threading.Lock()
        old_boot_id, self._synced_ns = self._load()
        same_boot = old_boot_id == self._boot_id
        self.suspect_since_ns = None if same_boot else self._synced_ns

    def take(self) -> None:
        """Flush the cache's whole filesystem and note it; may take seconds on a busy disk."""
        now = time.time_ns() - _CLOCK_SLACK_NS
        _syncfs(self._root)
        self._store(now)

    def guard(self) -> None:
        """
        To be called before each write to the cache; costs one clock reading.

        When the clock was set back, new files would look older than the last
        checkpoint and be trusted after a crash; then the checkpoint goes back too.
        """
        now = time.time_ns() - _CLOCK_SLACK_NS
        if now < self._synced_ns:
            self._store(now)

    def _load(self) -> tuple[str, int]:
        try:
            found = json.loads((self._root / _FILE).read_text())
            return str(found["boot_id"]), int(found["synced_ns"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            # No word about any file: all are suspect.
            return "", 0

    def _store(self, synced_ns: int) -> None:
        with self._lock:
            self._synced_ns = synced_ns
            with write_once(self._root / _FILE) as file:
                file.write(json.dumps({"boot_id": self._boot_id, "synced_ns": synced_ns}).encode())


def _syncfs(folder: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if libc.syncfs(handle) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(handle)
