"""
Unpacking one layer's tar into an empty directory, in a process of its own.

Run as `python -m gear_plugin.layers.untar DIRECTORY [--lowest]` with the tar
on standard input; prints one JSON line, `{"size": n, "files": n}` or
`{"error": class, "message": text}`.  The process changes its root to
DIRECTORY first, so no name, symlink or hard link in the tar can reach
anything outside, whatever it says (docker's own chrootarchive does the
same).

Semantics are those of moby's archive.UnpackLayer in overlay form: an entry
replaces what is there, but a directory over a directory only takes the
metadata; `.wh.X` becomes a 0:0 character device, `.wh..wh..opq` an opaque
directory; numeric owners; directory times are set last.  With --lowest (a
layer without parent) whiteouts have nothing to hide and are left out.
Attributes that overlayfs itself reads (`trusted.overlay.*`) are never taken
from a tar: a redirect in a layer could point at another image's objects.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import sys
from collections.abc import Callable

from gear_plugin.errors import ArchiveMalformed, GearError, StorageFull
from gear_plugin.image import Kind, Member, TarReader
from gear_plugin.layers.whiteout import AUFS_META, OPAQUE, WHITEOUT

_OVERLAY_XATTRS = (b"trusted.overlay.", b"user.overlay.")
_CHUNK_BYTES = 1 << 20
_FULL = (28, 122)
"""ENOSPC, EDQUOT."""


class Unpacker:
    """Writes members below the current root directory."""

    def __init__(self, reader: TarReader, *, lowest: bool) -> None:
        self._reader = reader
        self._lowest = lowest
        self._directory_times: dict[bytes, int] = {}
        self._hidden: dict[bytes, bytes] = {}
        self.size_bytes = 0
        self.files = 0
        self._make: dict[Kind, Callable[[Member, bytes], None]] = {
            Kind.FILE: self._file,
            Kind.DIR: self._directory,
            Kind.SYMLINK: self._symlink,
            Kind.HARDLINK: self._hardlink,
            Kind.CHAR: self._device,
            Kind.BLOCK: self._device,
            Kind.FIFO: self._device,
        }

    def run(self) -> None:
        """Unpack every member, then read the stream to its end."""
        for member in self._reader:
            self._unpack(member)
        self._reader.drain()
        for path, mtime_ns in self._directory_times.items():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.utime(path, ns=(mtime_ns, mtime_ns))

    def _unpack(self, member: Member) -> None:
        parent, _, base = member.name.rpartition(b"/")
        parent = b"/" + parent
        if base.startswith(AUFS_META) and base != OPAQUE:
            return
        _make_parents(parent)
        if base == OPAQUE:
            if not self._lowest:
                os.setxattr(parent, "trusted.overlay.opaque", b"y")
        elif base.startswith(WHITEOUT):
            self._whiteout(parent.rstrip(b"/") + b"/" + base[len(WHITEOUT) :])
        else:
            self._make[member.kind](member, b"/" + member.name)

    def _whiteout(self, path: bytes) -> None:
        name = os.path.basename(path)
        if name in (b"", b".", b".."):
            raise ArchiveMalformed(f"a whiteout that names no file: {path!r}")
        _remove(path)
        if not self._lowest:
            os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))

    def _file(self, member: Member, path: bytes) -> None:
        _remove(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        handle = os.open(path, flags, 0o600)
        try:
            left = member.size
            while left:
                data = self._reader.read_data(min(left, _CHUNK_BYTES))
                if not data:
                    raise ArchiveMalformed(f"the tar ends inside {member.name!r}")
                left -= len(data)
                view = memoryview(data)
                while view:
                    view = view[os.write(handle, view) :]
            os.fchown(handle, member.uid, member.gid)
            for name, value in _kept(member):
                os.setxattr(handle, name, value)
            os.fchmod(handle, member.mode)
            os.utime(handle, ns=(member.applied_mtime_ns, member.applied_mtime_ns))
        finally:
            os.close(handle)
        self.size_bytes += member.size
        self.files += 1

    def _directory(self, member: Member, path: bytes) -> None:
        if not (os.path.isdir(path) and not os.path.islink(path)):
            _remove(path)
            os.mkdir(path)
        os.chown(path, member.uid, member.gid)
        for name, value in _kept(member):
            os.setxattr(path, name, value)
        os.chmod(path, member.mode)
        self._directory_times[path] = member.applied_mtime_ns

    def _symlink(self, member: Member, path: bytes) -> None:
        _remove(path)
        os.symlink(member.link, path)
        os.lchown(path, member.uid, member.gid)
        for name, value in _kept(member):
            os.setxattr(path, name, value, follow_symlinks=False)
        os.utime(path, ns=(member.applied_mtime_ns, member.applied_mtime_ns), follow_symlinks=False)

    def _hardlink(self, member: Member, path: bytes) -> None:
        target = b"/" + member.link.lstrip(b"/")
        if target == path:
            return
        _remove(path)
        try:
            os.link(target, path, follow_symlinks=False)
        except FileNotFoundError as error:
            raise ArchiveMalformed(
                f"hard link {member.name!r} to {member.link!r}, which is not in this layer"
            ) from error

    def _device(self, member: Member, path: bytes) -> None:
        _remove(path)
        kind = {Kind.CHAR: stat.S_IFCHR, Kind.BLOCK: stat.S_IFBLK}.get(member.kind, stat.S_IFIFO)
        os.mknod(path, kind | 0o600, os.makedev(member.major, member.minor))
        os.chown(path, member.uid, member.gid)
        for name, value in _kept(member):
            os.setxattr(path, name, value)
        os.chmod(path, member.mode)
        os.utime(path, ns=(member.applied_mtime_ns, member.applied_mtime_ns))


def _kept(member: Member) -> list[tuple[bytes, bytes]]:
    return [
        (name, value)
        for name, value in member.xattrs.items()
        if not name.startswith(_OVERLAY_XATTRS)
    ]


def _remove(path: bytes) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        shutil.rmtree(path)


def _make_parents(directory: bytes) -> None:
    if not os.path.isdir(directory):
        os.makedirs(directory, 0o755, exist_ok=True)


def main(argv: list[str]) -> int:
    """See the module's text."""
    directory, lowest = argv[0], "--lowest" in argv[1:]
    os.umask(0)
    os.chroot(directory)
    os.chdir("/")
    with open(0, "rb", buffering=_CHUNK_BYTES, closefd=False) as stream:
        unpacker = Unpacker(TarReader(stream, seekable=False), lowest=lowest)
        try:
            unpacker.run()
        except GearError as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        except OSError as error:
            kind = StorageFull if error.errno in _FULL else ArchiveMalformed
            where = os.fsdecode(error.filename) if error.filename else "the layer"
            answer = {"error": kind.__name__, "message": f"{where}: {error.strerror}"}
        else:
            print(json.dumps({"size": unpacker.size_bytes, "files": unpacker.files}))
            return 0
    print(json.dumps(answer))
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
