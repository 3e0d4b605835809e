"""
Files that are written once and then never change.

A reader, or a crash at any moment, sees the whole file under its name or no
file: the bytes go to a temporary name in the same directory, are fsynced,
get the final name, and the directory is fsynced.

Crash windows: before the name is given, a `.tmp-` file is left over, which
`remove_stale` takes away; after it, the file is whole, and only its name may
be lost until the directory is fsynced (the writer has not returned yet).

No state; safe from any thread and, with several machines on one shared
directory, from any number of writers (temporary names are random).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from gear_plugin.errors import StorageFull

TEMP_PREFIX = ".tmp-"
"""Of all that is on its way in or out, folders too: a start removes it."""

READ_ONLY = 0o444
# Those that no other machine changes behind the kernel's back.
_LOCAL = frozenset(
    ("bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs")
)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def write_once(path: Path, *, mode: int = READ_ONLY, replace: bool = True) -> Iterator[BinaryIO]:
    """
    Give a file to write; when the block ends, *path* holds exactly that, durably.

    With *replace* an older file of that name is replaced in one step; without
    it FileExistsError says that *path* was there first, and it is untouched.
    When the block raises, nothing is left.  The directory must exist.

    Raises StorageFull (ENOSPC, EDQUOT), FileExistsError, other OSErrors as they are.
    """
    temporary = path.with_name(TEMP_PREFIX + secrets.token_hex(8))
    with storage_full(path):
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            if replace:
                temporary.rename(path)
            else:
                path.hardlink_to(temporary)
                temporary.unlink()
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def sync_directory(folder: Path) -> None:
    """Make the names in *folder* durable; quick when none changed since the last commit."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_stale(folder: Path, *, older_than_s: float, now_s: float | None = None) -> int:
    """
    Remove the temporaries in *folder* (not below it) that no writer can still want.

    Returns how many.  *older_than_s* must be longer than any write takes when
    others may be writing there, and may be 0 when nobody is.  *now_s* is the
    time by the clock that stamps the files, None: this machine's.  A file
    from as far in the future is no writer's either: the clock was set back.
    """
    now_s = time.time() if now_s is None else now_s
    removed = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(TEMP_PREFIX):
                continue
            # Another cleaner, or the writer itself, may be quicker.
            with contextlib.suppress(FileNotFoundError):
                age_s = now_s - entry.stat(follow_symlinks=False).st_mtime
                if abs(age_s) >= older_than_s:
                    Path(entry.path).unlink()
                    removed += 1
    return removed


@functools.cache
def boot_id() -> str:
    """Names this boot: what was noted in another one, and not fsynced, counts for nothing."""
    return _BOOT_ID.read_text().strip()


def is_full(error: OSError) -> bool:
    """Whether *error* says that there is no room left (ENOSPC or EDQUOT)."""
    return error.errno in _FULL


@contextlib.contextmanager
def storage_full(path: Path) -> Iterator[None]:
    """Turn "no room" inside the block into StorageFull, which names *path*'s directory."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise StorageFull(
                f"no room left in {path.parent} ({error.strerror}); free space there"
            ) from error
        raise


def is_local(folder: Path) -> bool:
    """Whether *folder*, which exists, is on a filesystem of this machine alone."""
    device = folder.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    kind = ""
    # Fields: proc(5), /proc/pid/mountinfo; the last line of a device is the topmost mount.
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        fields = line.split(" ")
        if fields[2] == wanted:
            kind = fields[fields.index("-") + 1]
    return kind in _LOCAL
