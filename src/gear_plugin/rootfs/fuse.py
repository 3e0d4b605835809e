"""
The lazy layer as a FUSE filesystem: translates llfuse's calls to `vfs`, and
nothing else.

llfuse allows one session a process and runs handlers under one global lock,
so whatever may wait does so inside `llfuse.lock_released`.  An exception that
is not a FUSEError would end the main loop for every image, so every handler
turns whatever it meets into EIO and a traceback in the log.

`llfuse.invalidate_*` is never called: one in flight, a waiting look-up in the
same directory and a kill -9 leave a process that nothing can kill.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import llfuse

from gear_plugin.rootfs.vfs import LazyTree, Lookup

log = logging.getLogger(__name__)

_FOREVER_S = 24 * 3600.0
"""Directories of the lazy tree never change, so the kernel may keep them."""

_Handler = TypeVar("_Handler", bound=Callable[..., Any])


def _contained(handler: _Handler) -> _Handler:
    """Let nothing but FUSEError leave *handler*."""

    @functools.wraps(handler)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return handler(*args, **kwargs)
        except llfuse.FUSEError:
            raise
        except Exception:
            log.exception("a bug in the lazy layer; answering EIO")
            raise llfuse.FUSEError(errno.EIO) from None

    return run  # type: ignore[return-value]  # the wrapper has the handler's signature


class Handlers(llfuse.Operations):  # type: ignore[misc]  # llfuse is not typed
    """llfuse's view of a LazyTree."""

    def __init__(self, tree: LazyTree) -> None:
        super().__init__()
        self._tree = tree

    @_contained
    def lookup(self, parent: int, name: bytes, ctx: object) -> Any:
        """FUSE_LOOKUP; the only call that waits."""
        with llfuse.lock_released:
            found = self._tree.lookup(parent, name)
        if isinstance(found, Lookup.Directory):
            return _directory(found.inode)
        raise llfuse.FUSEError(errno.EIO if isinstance(found, Lookup.Failed) else errno.ENOENT)

    @_contained
    def getattr(self, inode: int, ctx: object) -> Any:
        """FUSE_GETATTR."""
        if not self._tree.is_directory(inode):
            raise llfuse.FUSEError(errno.ESTALE)
        return _directory(inode)

    @_contained
    def opendir(self, inode: int, ctx: object) -> int:
        """FUSE_OPENDIR: every directory opens, and lists as empty."""
        return inode

    @_contained
    def readdir(self, handle: int, offset: int) -> tuple[()]:
        """FUSE_READDIR: triggers have no listing."""
        return ()

    @_contained
    def releasedir(self, handle: int) -> None:
        """FUSE_RELEASEDIR."""

    @_contained
    def statfs(self, ctx: object) -> Any:
        """FUSE_STATFS; overlayfs refuses a layer without it, and the watchdog asks it."""
        answer = llfuse.StatvfsData()
        answer.f_bsize = answer.f_frsize = 4096
        answer.f_namemax = 255
        return answer

    @_contained
    def getxattr(self, inode: int, name: bytes, ctx: object) -> bytes:
        """FUSE_GETXATTR: there are none."""
        raise llfuse.FUSEError(llfuse.ENOATTR)


def _directory(inode: int) -> Any:
    entry = llfuse.EntryAttributes()
    entry.st_ino = inode
    entry.st_mode = stat.S_IFDIR | 0o755
    entry.st_nlink = 2
    entry.st_uid = entry.st_gid = 0
    entry.entry_timeout = entry.attr_timeout = _FOREVER_S
    return entry


def serve(tree: LazyTree, mountpoint: Path, workers: int, ready: Callable[[], None]) -> None:
    """
    Serve *tree* on *mountpoint* until the filesystem is unmounted.

    *ready* is called from a thread of its own as soon as the mount answers.
    """
    llfuse.init(Handlers(tree), str(mountpoint), {"fsname=gear", "nosuid", "nodev", "ro"})
    threading.Thread(target=_announce, args=(mountpoint, ready), daemon=True).start()
    clean = False
    try:
        llfuse.main(workers=workers)
        clean = True
    finally:
        llfuse.close(unmount=clean)


def _announce(mountpoint: Path, ready: Callable[[], None]) -> None:
    os.statvfs(mountpoint)
    ready()
