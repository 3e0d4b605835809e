"""
Disks and folders: Gear's main folder, and the object store.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from gear_plugin.durable import TEMP_PREFIX
from gear_plugin.jobs.doctor.finding import Finding, fix, ok, skip, warn
from gear_plugin.jobs.mount_table import mounts_at

_SAMPLE_BYTES = 4 << 20
_GIB = 1 << 30
_LOW_BYTES, _LOW_SHARE = _GIB, 0.05
_FULL_BYTES, _FULL_INODES = 100 << 20, 1000
_LOW_INODES = 50_000
"""One image may have as many files."""
_MOUNT_IT = "if it is a share, mount it; `gear push --create-store` makes a new store there"


def check_root(root: Path) -> Iterator[Finding]:
    """Gear's main folder, and the room that is left where it is."""
    near = root
    while not near.is_dir():
        near = near.parent
    if near != root:
        yield ok("main folder", f"{root} is not there yet; what needs it makes it")
    else:
        yield ok("main folder", str(root))
    yield from _room("main folder", near, "free space there, or set cache_limit")


def check_store(store: Path, check: str = "store", nfs: str = "") -> Iterator[Finding]:
    """
    Whether it is there, is a store, has room, and takes and gives bytes.

    *nfs*: the address that is mounted at *store* by who needs it.
    """
    if nfs and not mounts_at(store):
        yield warn(
            check, f"{nfs} is not mounted on {store} now", "a client, or a command, mounts it"
        )
        return
    if not os.path.lexists(store):
        yield warn(check, f"{store} is not there", "the first `gear push` makes it, or mount it")
        return
    if not store.is_dir():
        yield fix(check, f"{store} is no folder", "set --store")
        return
    if not (store / "objects").is_dir():
        yield fix(check, f"{store} holds no object store", _MOUNT_IT)
        return
    yield ok(check, f"{store} on {_mount_of(store)}")
    yield from _room(check, store, "free space there; objects that no image needs can go")
    yield _round_trip(check, store)


def _room(check: str, folder: Path, remedy: str) -> Iterator[Finding]:
    found = os.statvfs(folder)
    free, size = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    text = f"{free / _GIB:.1f} of {size / _GIB:.1f} GiB free"
    # NFS and others count no inodes: all zeros.
    if found.f_files:
        text += f", {found.f_favail} files more"
    inodes = found.f_favail if found.f_files else _LOW_INODES
    name = f"{check}: room"
    if free < _FULL_BYTES or inodes < _FULL_INODES:
        yield fix(name, text, remedy)
    elif free < min(_LOW_BYTES, size * _LOW_SHARE) or inodes < _LOW_INODES:
        yield warn(name, text, remedy)
    else:
        yield ok(name, text)


def _round_trip(check: str, store: Path) -> Finding:
    """Write, fsync and read a file; it is removed again."""
    name, sample = f"{check}: speed", os.urandom(_SAMPLE_BYTES)
    path = store / f"{TEMP_PREFIX}doctor-{secrets.token_hex(8)}"
    try:
        begun_s = time.monotonic()
        with path.open("xb") as file:
            file.write(sample)
            file.flush()
            os.fsync(file.fileno())
            # Or the read would be served from this machine's memory.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        written_s = time.monotonic()
        is_same = path.read_bytes() == sample
        read_s = time.monotonic()
    except OSError as error:
        return _no_writing(name, error)
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
    if not is_same:
        return fix(name, "what was written was not what was read", "check the server's disks")
    wrote, read = (written_s - begun_s) * 1000, (read_s - written_s) * 1000
    return ok(name, f"4 MiB written in {wrote:.0f} ms, read in {read:.0f} ms")


def _no_writing(name: str, error: OSError) -> Finding:
    detail = f"cannot write: {error.strerror}"
    if isinstance(error, PermissionError) and os.geteuid():
        return skip(name, detail, "run it as root, or as the user who pushes")
    return warn(name, detail, "nodes can read from it, but `gear push` needs to write")


def _mount_of(folder: Path) -> str:
    """The filesystem that *folder* is on, as people name it (proc(5), mountinfo)."""
    real = os.path.realpath(folder)
    best, found = "", "an unknown filesystem"
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        before, _, after = line.partition(" - ")
        point = before.split(" ")[4].encode().decode("unicode_escape", errors="replace")
        is_above = real == point or real.startswith(point.rstrip("/") + "/")
        if is_above and len(point) >= len(best):
            kind, source = after.split(" ")[:2]
            best = point
            found = f"{kind}, mounted at {point} from {source}"
    return found
