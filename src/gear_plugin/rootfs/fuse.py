"""
A `vfs.Filesystem` over FUSE: translates llfuse's calls, and nothing else.

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
import itertools
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import llfuse

from gear_plugin.errors import GearError, MountFailed
from gear_plugin.image import Status
from gear_plugin.rootfs.vfs import EMPTY, Filesystem, Lookup

log = logging.getLogger(__name__)

_FOREVER_S = 24 * 3600.0
"""What is here never changes, so the kernel may keep it."""
_SECTOR = 512

PRIVATE = frozenset(("nosuid", "nodev", "ro", "default_permissions"))
"""Mount options: for root alone, as a layer that only overlayfs looks into."""
SHARED = PRIVATE | {"allow_other"}
"""For every user, by the modes in the image."""

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
    """llfuse's view of a Filesystem."""

    def __init__(self, filesystem: Filesystem) -> None:
        super().__init__()
        self._filesystem = filesystem
        self._listings: dict[int, Sequence[tuple[bytes, int]]] = {}
        self._numbers = itertools.count(1)

    @_contained
    def lookup(self, parent: int, name: bytes, ctx: object) -> Any:
        """FUSE_LOOKUP; may wait."""
        with llfuse.lock_released:
            found = self._filesystem.lookup(parent, name)
        match found:
            case Lookup.Inode(inode=inode):
                return self._attributes(inode)
            case Lookup.Never():
                # Inode 0 lets the kernel remember that there is no such name.
                nothing = llfuse.EntryAttributes()
                nothing.st_ino = 0
                nothing.entry_timeout = _FOREVER_S
                return nothing
        raise llfuse.FUSEError(errno.EIO if isinstance(found, Lookup.Failed) else errno.ENOENT)

    @_contained
    def getattr(self, inode: int, ctx: object) -> Any:
        """FUSE_GETATTR."""
        return self._attributes(inode)

    @_contained
    def readlink(self, inode: int, ctx: object) -> bytes:
        """FUSE_READLINK."""
        return self._filesystem.target(inode)

    @_contained
    def opendir(self, inode: int, ctx: object) -> int:
        """FUSE_OPENDIR: the listing is taken once, and kept until the directory is closed."""
        handle = next(self._numbers)
        self._listings[handle] = self._filesystem.entries(inode)
        return handle

    @_contained
    def readdir(self, handle: int, offset: int) -> Iterator[tuple[bytes, Any, int]]:
        """FUSE_READDIR."""
        listing = self._listings[handle]
        return (
            (listing[at][0], self._attributes(listing[at][1]), at + 1)
            for at in range(offset, len(listing))
        )

    @_contained
    def releasedir(self, handle: int) -> None:
        """FUSE_RELEASEDIR."""
        del self._listings[handle]

    @_contained
    def open(self, inode: int, flags: int, ctx: object) -> int:
        """FUSE_OPEN; may wait for a fetch.  A handle is a descriptor of the cached file."""
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise llfuse.FUSEError(errno.EROFS)
        try:
            with llfuse.lock_released:
                handle = self._filesystem.open(inode)
        except (GearError, OSError) as error:
            log.warning("cannot open inode %d: %s", inode, error)
            raise llfuse.FUSEError(errno.EIO) from None
        # llfuse knows no negative handles.
        return 0 if handle == EMPTY else handle + 1

    @_contained
    def read(self, handle: int, offset: int, size: int) -> bytes:
        """FUSE_READ."""
        if handle == 0:
            return b""
        with llfuse.lock_released:
            return os.pread(handle - 1, size, offset)

    @_contained
    def release(self, handle: int) -> None:
        """FUSE_RELEASE."""
        if handle:
            os.close(handle - 1)

    @_contained
    def statfs(self, ctx: object) -> Any:
        """FUSE_STATFS; overlayfs refuses a layer without it, and the watchdog asks it."""
        answer = llfuse.StatvfsData()
        answer.f_bsize = answer.f_frsize = 4096
        answer.f_namemax = 255
        return answer

    @_contained
    def getxattr(self, inode: int, name: bytes, ctx: object) -> bytes:
        """FUSE_GETXATTR."""
        value = self._filesystem.xattrs(inode).get(name)
        if value is None:
            raise llfuse.FUSEError(llfuse.ENOATTR)
        return value

    @_contained
    def listxattr(self, inode: int, ctx: object) -> list[bytes]:
        """FUSE_LISTXATTR."""
        return list(self._filesystem.xattrs(inode))

    def _attributes(self, inode: int) -> Any:
        return _entry(inode, self._filesystem.status(inode))


def _entry(inode: int, status: Status) -> Any:
    entry = llfuse.EntryAttributes()
    entry.st_ino = inode
    entry.st_mode = status.mode
    entry.st_nlink = status.links
    entry.st_uid, entry.st_gid = status.uid, status.gid
    # A directory's size here is its size in the index, which is nobody's business.
    entry.st_size = 4096 if stat.S_ISDIR(status.mode) else status.size
    entry.st_blocks = -(-status.size // _SECTOR)
    entry.st_rdev = os.makedev(*status.device)
    entry.st_mtime_ns = entry.st_atime_ns = entry.st_ctime_ns = status.mtime_ns
    entry.entry_timeout = entry.attr_timeout = _FOREVER_S
    return entry


def serve(
    filesystem: Filesystem,
    mountpoint: Path,
    workers: int,
    ready: Callable[[], None],
    *,
    name: str = "gear",
    options: frozenset[str] = PRIVATE,
) -> None:
    """
    Serve *filesystem* on *mountpoint* until it is unmounted.

    *ready* is called from a thread of its own as soon as the mount answers;
    *name* is what the mount table calls its source.  Raises MountFailed.
    """
    try:
        llfuse.init(Handlers(filesystem), str(mountpoint), {f"fsname={name}", *options})
    except RuntimeError as error:
        # libfuse has said why, in a line of its own on stderr.
        raise MountFailed(f"cannot mount on {mountpoint}: FUSE refuses it") from error
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
