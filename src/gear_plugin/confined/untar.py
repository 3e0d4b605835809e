"""
Unpacking one layer's tar into an empty directory, in a process of its own.

Run as `python -m gear_plugin.confined.untar`, with a JSON list of its
arguments, `[DIRECTORY]` or `[DIRECTORY, "--lowest"]`, as the first line of
standard input (or on the command line) and the tar after it; no line: it was
started ahead and not needed.  Prints one JSON line, `{"size": n, "files": n}` or
`{"error": class, "message": text}`.  The process changes its root to
DIRECTORY first, so no name, symlink or hard link in the tar can reach
anything outside, whatever it says (docker's own chrootarchive does the
same).

Semantics are those of moby's archive.UnpackLayer in overlay form: an entry
replaces what is there, but a directory over a directory only takes the
metadata; `.wh.X` becomes a 0:0 character device, `.wh..wh..opq` an opaque
directory; numeric owners; directory times are set last.  A whiteout hides
what lower layers have and nothing of its own layer, whatever comes first
(OCI image-spec, layer.md): a directory beside its own whiteout is opaque, and
so is one that replaces something else of its own layer.
With --lowest (a layer without parent) whiteouts have nothing to hide and are
left out.  Attributes that overlayfs itself reads (`trusted.overlay.*`) are
never taken from a tar: a redirect in a layer could point at another image's
objects.  Those that the filesystem does not take are left out, as docker does.

Nothing here recurses: a name may have 2,000 components, and symlinks in the
tar can make trees far deeper than any name.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from collections.abc import Callable

from gear_plugin.confined.removal import remove_tree
from gear_plugin.confined.whiteout import (
    AUFS_LINKS,
    AUFS_META,
    OPAQUE,
    WHITEOUT,
    is_aufs_link_target,
    is_whiteout,
)
from gear_plugin.durable import is_full
from gear_plugin.errors import ArchiveMalformed, GearError, StorageFull, Unsupported
from gear_plugin.image import Kind, Member, TarReader

_OVERLAY_XATTRS = (b"trusted.overlay.", b"user.overlay.")
_TARS_OWN = (b"trusted.", b"user.", b"system.posix_acl_")
_CHUNK_BYTES = 1 << 20
_ZEROS = bytes(_CHUNK_BYTES)
_NO_OWNER = 2**32 - 1
_MAX_MAJOR, _MAX_MINOR = 0xFFF, 0xFFFFF


class Unpacker:
    """Writes members below the current root directory."""

    def __init__(self, reader: TarReader, *, lowest: bool) -> None:
        self._reader = reader
        self._lowest = lowest
        # The inode number tells whether that directory is still there at the end.
        self._directory_times: dict[bytes, tuple[int, int]] = {}
        # The parent of the last member, while nothing was removed since.
        self._parent: bytes | None = None
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
        """Unpack every member, then read the stream to its end; raises GearError."""
        for member in self._reader:
            try:
                self._unpack(member)
            except OSError as error:
                kind = StorageFull if is_full(error) else ArchiveMalformed
                raise kind(f"unpacking {member.name[:100]!r}: {error.strerror}") from error
        self._reader.drain()
        if _status(b"/" + AUFS_LINKS) is not None:
            remove_tree(b"/" + AUFS_LINKS)
        for path, (inode, mtime_ns) in self._directory_times.items():
            status = _status(path)
            if status is not None and stat.S_ISDIR(status.st_mode) and status.st_ino == inode:
                os.utime(path, ns=(mtime_ns, mtime_ns), follow_symlinks=False)

    def _unpack(self, member: Member) -> None:
        if not member.name and member.kind is not Kind.DIR:
            raise ArchiveMalformed(f"the root of the layer is a {member.kind.value}")
        parent, _, base = member.name.rpartition(b"/")
        parent = b"/" + parent
        if WHITEOUT in member.name and self._means_nothing(member, parent, base):
            return
        if parent != self._parent:
            _make_parents(parent)
            self._parent = parent
        if base == OPAQUE:
            _make_opaque(parent)
        elif base.startswith(WHITEOUT):
            self._whiteout(parent.rstrip(b"/") + b"/" + base[len(WHITEOUT) :])
        else:
            self._make[member.kind](member, b"/" + member.name)

    def _means_nothing(self, member: Member, parent: bytes, base: bytes) -> bool:
        """Whether this is one of aufs's own files, or a whiteout with nothing below to hide."""
        if member.kind is Kind.FILE and is_aufs_link_target(member.name):
            return False
        if base.startswith(AUFS_META) and base != OPAQUE:
            return True
        if any(part.startswith(AUFS_META) for part in parent.split(b"/")):
            return True
        if base in (WHITEOUT, WHITEOUT + b".", WHITEOUT + b".."):
            raise ArchiveMalformed(f"a whiteout that names no file: {base!r}")
        return self._lowest and base.startswith(WHITEOUT)

    def _whiteout(self, path: bytes) -> None:
        own = _status(path)
        if own is None:
            os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))
        elif stat.S_ISDIR(own.st_mode):
            _make_opaque(path)

    def _file(self, member: Member, path: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        try:
            handle = os.open(path, flags, 0o600)
        except FileExistsError:
            self._remove(path)
            handle = os.open(path, flags, 0o600)
        try:
            left = member.size
            while left:
                data = self._reader.read_data(min(left, _CHUNK_BYTES))
                if not data:
                    raise ArchiveMalformed(f"the tar ends inside {member.name[:100]!r}")
                left -= len(data)
                _write(handle, data)
            os.fchown(handle, *_owner(member))
            _set_xattrs(handle, member)
            os.fchmod(handle, member.mode)
            os.utime(handle, ns=(member.applied_mtime_ns, member.applied_mtime_ns))
        finally:
            os.close(handle)
        self.size_bytes += member.size
        self.files += 1

    def _directory(self, member: Member, path: bytes) -> None:
        own = _status(path)
        if own is None or not stat.S_ISDIR(own.st_mode):
            self._remove(path)
            os.mkdir(path)
            if own is not None and not self._lowest:
                # What it replaces had hidden all that lower layers have here.
                _make_opaque(path)
        else:
            _drop_xattrs(path)
        os.chown(path, *_owner(member))
        _set_xattrs(path, member)
        os.chmod(path, member.mode)
        self._directory_times[path] = os.lstat(path).st_ino, member.applied_mtime_ns

    def _symlink(self, member: Member, path: bytes) -> None:
        self._remove(path)
        os.symlink(member.link, path)
        os.lchown(path, *_owner(member))
        _set_xattrs(path, member)
        os.utime(path, ns=(member.applied_mtime_ns, member.applied_mtime_ns), follow_symlinks=False)

    def _hardlink(self, member: Member, path: bytes) -> None:
        target = b"/" + member.link.lstrip(b"/")
        if target != path:
            self._remove(path)
        own = _status(target)
        if own is None or is_whiteout(own):
            raise ArchiveMalformed(
                f"hard link {member.name[:100]!r} to {member.link[:100]!r},"
                " which is not in this layer"
            )
        if stat.S_ISDIR(own.st_mode):
            raise ArchiveMalformed(f"hard link {member.name[:100]!r} to a directory")
        if target != path:
            os.link(target, path, follow_symlinks=False)
        # What the link's own header says goes for the inode that it shares
        # (moby pkg/archive/archive.go, createTarFile, v20.10.24).
        os.lchown(path, *(-1 if one == _NO_OWNER else one for one in (member.uid, member.gid)))
        _set_xattrs(path, member)
        if not stat.S_ISLNK(own.st_mode):
            os.chmod(path, member.mode)
            os.utime(path, ns=(member.applied_mtime_ns, member.applied_mtime_ns))

    def _device(self, member: Member, path: bytes) -> None:
        if member.major > _MAX_MAJOR or member.minor > _MAX_MINOR:
            raise Unsupported(f"no such device in Linux: {member.major}:{member.minor}")
        self._remove(path)
        if self._lowest and member.kind is Kind.CHAR and not (member.major or member.minor):
            return  # overlayfs's own whiteout
        kind = {Kind.CHAR: stat.S_IFCHR, Kind.BLOCK: stat.S_IFBLK}.get(member.kind, stat.S_IFIFO)
        os.mknod(path, kind | 0o600, os.makedev(member.major, member.minor))
        os.chown(path, *_owner(member))
        _set_xattrs(path, member)
        os.chmod(path, member.mode)
        os.utime(path, ns=(member.applied_mtime_ns, member.applied_mtime_ns))

    def _remove(self, path: bytes) -> None:
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
        except IsADirectoryError:
            remove_tree(path)
        self._parent = None


def _write(handle: int, data: bytes) -> None:
    """Write all of *data*; a whole chunk of zeros becomes a hole, as it probably was one."""
    if data == _ZEROS:
        os.ftruncate(handle, os.lseek(handle, len(data), os.SEEK_CUR))
        return
    written = os.write(handle, data)
    while written < len(data):
        written += os.write(handle, memoryview(data)[written:])


def _owner(member: Member) -> tuple[int, int]:
    """uid and gid; to chown(2) 2**32 - 1 means "leave it", which is root here."""
    return (
        0 if member.uid == _NO_OWNER else member.uid,
        0 if member.gid == _NO_OWNER else member.gid,
    )


def _set_xattrs(target: bytes | int, member: Member) -> None:
    """Give a file (its handle) or a path those of *member*'s xattrs that it can have."""
    for name, value in member.xattrs.items():
        if name.startswith(_OVERLAY_XATTRS):
            continue
        try:
            os.setxattr(target, name, value, follow_symlinks=isinstance(target, int))
        except OSError as error:
            # moby pkg/archive createTarFile: a namespace that this filesystem
            # does not know, or that this kind of file may not have.
            if error.errno not in (errno.ENOTSUP, errno.EPERM):
                raise


def _drop_xattrs(directory: bytes) -> None:
    """Take away what an earlier entry of *directory* gave it; labels belong to the host."""
    for name in os.listxattr(directory):
        encoded = os.fsencode(name)
        if encoded.startswith(_TARS_OWN) and not encoded.startswith(_OVERLAY_XATTRS):
            os.removexattr(directory, name)


def _make_opaque(directory: bytes) -> None:
    os.setxattr(directory, "trusted.overlay.opaque", b"y")


def _status(path: bytes) -> os.stat_result | None:
    """What is at *path*, itself; None: nothing, or no way to it."""
    try:
        return os.lstat(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise


def _make_parents(directory: bytes) -> None:
    """Make *directory* and what it lacks above; links on the way are followed in this root."""
    if os.path.isdir(directory):
        return
    end = 0
    while end < len(directory):
        end = directory.find(b"/", end + 1)
        end = len(directory) if end < 0 else end
        path = directory[:end]
        try:
            os.mkdir(path, 0o755)
        except FileExistsError:
            own = _status(path)
            if own is not None and is_whiteout(own):
                os.unlink(path)
                os.mkdir(path, 0o755)
                _make_opaque(path)


def main(argv: list[str]) -> int:
    """See the module's text."""
    with open(0, "rb", buffering=_CHUNK_BYTES, closefd=False) as stream:
        arguments = argv or json.loads(stream.readline() or b"[]")
        if not arguments:
            return 0
        os.umask(0)
        os.chroot(arguments[0])
        os.chdir("/")
        unpacker = Unpacker(TarReader(stream, seekable=False), lowest="--lowest" in arguments[1:])
        try:
            unpacker.run()
        except GearError as error:
            print(json.dumps({"error": type(error).__name__, "message": str(error)}))
            return 1
    print(json.dumps({"size": unpacker.size_bytes, "files": unpacker.files}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
