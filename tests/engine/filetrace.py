"""
Which files are opened on a mounted filesystem, told by the kernel (fanotify).

A filesystem mark on a container's overlay sees opens from every mount
namespace.  Source: fanotify(7), fanotify_mark(2).
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
import threading
from pathlib import Path
from types import TracebackType

_FAN_CLASS_NOTIF, _FAN_CLOEXEC, _FAN_UNLIMITED_QUEUE = 0, 1, 0x10
_FAN_MARK_ADD, _FAN_MARK_FILESYSTEM = 1, 0x100
_FAN_OPEN, _FAN_OPEN_EXEC = 0x20, 0x1000
_EVENT = struct.Struct("=IBBHQii")

_libc = ctypes.CDLL(None, use_errno=True)


class OpenTrace:
    """Collects the paths opened on the filesystem mounted at *mount_path* while in the block."""

    def __init__(self, mount_path: Path) -> None:
        self._root = str(mount_path)
        self._opens: set[tuple[int, str]] = set()
        self._stop_r, self._stop_w = os.pipe()
        self._queue = -1
        self._thread = threading.Thread(target=self._collect, daemon=True)

    def __enter__(self) -> OpenTrace:
        flags = _FAN_CLASS_NOTIF | _FAN_CLOEXEC | _FAN_UNLIMITED_QUEUE
        self._queue = _libc.fanotify_init(flags, os.O_RDONLY | os.O_LARGEFILE)
        mark = _FAN_MARK_ADD | _FAN_MARK_FILESYSTEM
        mask = ctypes.c_uint64(_FAN_OPEN | _FAN_OPEN_EXEC)
        result = _libc.fanotify_mark(self._queue, mark, mask, -100, os.fsencode(self._root))
        if self._queue < 0 or result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.write(self._stop_w, b".")
        self._thread.join()
        for handle in (self._queue, self._stop_r, self._stop_w):
            os.close(handle)

    def paths(self) -> set[str]:
        """Paths from the filesystem's root, each with a leading slash."""
        return {path for _, path in self._opens}

    def opens(self) -> set[tuple[int, str]]:
        """The same, with the process that opened it (the kernel reports repeats as it likes)."""
        return set(self._opens)

    def _collect(self) -> None:
        while True:
            ready, _, _ = select.select([self._queue, self._stop_r], [], [])
            if self._queue in ready:
                self._take(os.read(self._queue, 65536))
            elif self._stop_r in ready:
                return

    def _take(self, events: bytes) -> None:
        at = 0
        while at < len(events):
            length, _, _, _, _, handle, pid = _EVENT.unpack_from(events, at)
            at += length
            if handle >= 0:
                path = os.readlink(f"/proc/self/fd/{handle}")
                os.close(handle)
                self._opens.add((pid, "/" + path.removeprefix(self._root).lstrip("/")))
