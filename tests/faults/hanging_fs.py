"""
A read-only share that hangs: `python hanging_fs.py BACKING MOUNTPOINT HANG`.

Shows BACKING on MOUNTPOINT.  While the file HANG exists no request is
answered; when it goes, all go on.  Prints "ready".
"""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import llfuse


class Share(llfuse.Operations):  # type: ignore[misc]  # llfuse is not typed
    """Inodes are numbers of paths, given out as they are looked up."""

    def __init__(self, backing: Path, hang: Path) -> None:
        super().__init__()
        self._paths = {llfuse.ROOT_INODE: os.fsencode(backing)}
        self._numbers = {os.fsencode(backing): llfuse.ROOT_INODE}
        self._hang = hang

    def _wait(self) -> None:
        with llfuse.lock_released:
            while self._hang.exists():
                time.sleep(0.02)

    def _attributes(self, path: bytes) -> Any:
        try:
            status = os.lstat(path)
        except OSError as error:
            raise llfuse.FUSEError(error.errno) from None
        entry = llfuse.EntryAttributes()
        entry.st_ino = self._numbers.setdefault(path, len(self._numbers) + 1)
        self._paths[entry.st_ino] = path
        entry.st_mode, entry.st_size = status.st_mode, status.st_size
        entry.st_nlink, entry.entry_timeout, entry.attr_timeout = 1, 0, 0
        return entry

    def lookup(self, parent: int, name: bytes, ctx: object) -> Any:
        self._wait()
        return self._attributes(self._paths[parent] + b"/" + name)

    def getattr(self, inode: int, ctx: object) -> Any:
        self._wait()
        return self._attributes(self._paths[inode])

    def open(self, inode: int, flags: int, ctx: object) -> int:
        self._wait()
        try:
            return os.open(self._paths[inode], os.O_RDONLY)
        except OSError as error:
            raise llfuse.FUSEError(error.errno or errno.EIO) from None

    def read(self, handle: int, offset: int, size: int) -> bytes:
        self._wait()
        return os.pread(handle, size, offset)

    def release(self, handle: int) -> None:
        os.close(handle)

    def statfs(self, ctx: object) -> Any:
        return llfuse.StatvfsData()


def main() -> None:
    backing, point, hang = (Path(argument) for argument in sys.argv[1:])
    llfuse.init(Share(backing, hang), str(point), {"fsname=share", "ro"})

    def announce() -> None:
        os.statvfs(point)
        print("ready", flush=True)

    threading.Thread(target=announce, daemon=True).start()
    llfuse.main(workers=100)


if __name__ == "__main__":
    main()
