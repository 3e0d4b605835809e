"""
Writing a layer's changes as a tar stream.

The bytes decide the layer's digest, so the same changes give the same bytes:
each directory's entries sorted by name, PAX records only where ustar cannot
say it, whole-second times (moby pkg/archive does the same), names of users
left empty.  Deletions are empty `.wh.X` files of 1970, opaque directories hold
`.wh..wh..opq` (OCI image-spec, layer.md).  Sockets are left out, as tar cannot
hold them.

Everything is one generator of bytes; it holds one file open at a time.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gear_plugin.confined.whiteout import OPAQUE, WHITEOUT, is_opaque, is_whiteout
from gear_plugin.image import TAR_BLOCK, Kind, tar_header, tar_padding

_NS = 1_000_000_000
_CHUNK_BYTES = 1 << 20
_PIECE_BYTES = 256 << 10
"""Each piece costs the HTTP server a write; a header alone would be 512 bytes."""
_SHOWN_XATTRS = ("security.capability", "user.", "system.posix_acl_")
"""What a layer carries; labels such as security.selinux belong to the host."""


_REVISION_AT, _ROOT_ID_AT = 3, 20
"""In `security.capability` (linux/capability.h, struct vfs_ns_cap_data)."""


@dataclass(frozen=True, slots=True)
class Item:
    """
    One path of the stream: `source` to read it from, or None for a whiteout;
    `hides`: a directory that hides what lower layers have in it.
    """

    path: bytes
    source: bytes | None
    hides: bool = False


def stream(items: Iterable[Item]) -> Iterator[bytes]:
    """The tar of *items* in their order, in pieces of about 1 MiB at most, end marker included."""
    first_names: dict[tuple[int, int], bytes] = {}
    held: list[bytes] = []
    held_bytes = 0
    for item in items:
        # A file that a running container removes meanwhile is in no diff
        # (moby ExportChanges goes on, too); once open it stays readable.
        with contextlib.suppress(FileNotFoundError):
            for part in _entry(item, first_names):
                held.append(part)
                held_bytes += len(part)
                if held_bytes >= _PIECE_BYTES:
                    yield b"".join(held)
                    held, held_bytes = [], 0
    yield b"".join((*held, bytes(2 * TAR_BLOCK)))


def upper_items(upper: Path, is_below: Callable[[bytes], bool]) -> Iterator[Item]:
    """
    Every change that the overlay upper directory *upper* holds.

    *is_below* tells whether the tree below has something at a path: overlayfs
    with `xino=on` marks every new directory as opaque, also where there is
    nothing to hide.
    """
    root = os.fsencode(upper)
    pending: list[tuple[bytes, bytes]] = [(b"", root)]
    while pending:
        name, source = pending.pop()
        try:
            status = os.lstat(source)
            is_directory = stat.S_ISDIR(status.st_mode)
            children = sorted(os.listdir(source), reverse=True) if is_directory else []
        except FileNotFoundError:
            continue
        if is_whiteout(status):
            parent, slash, base = name.rpartition(b"/")
            yield Item(parent + slash + WHITEOUT + base, None)
            continue
        if name:
            hides = is_directory and is_opaque(source) and is_below(name)
            yield Item(name, source, hides)
        prefix = name + b"/" if name else b""
        pending += [(prefix + child, source + b"/" + child) for child in children]


def _entry(item: Item, first_names: dict[tuple[int, int], bytes]) -> Iterator[bytes]:
    name, source = item.path, item.source
    if source is None:
        yield tar_header(name, Kind.FILE, 0o600)
        return
    status = os.lstat(source)
    mode = status.st_mode
    common = (stat.S_IMODE(mode), status.st_uid, status.st_gid)
    when = status.st_mtime_ns // _NS * _NS
    xattrs = _xattrs(source)
    is_device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
    device = (os.major(status.st_rdev), os.minor(status.st_rdev)) if is_device else (0, 0)
    if not stat.S_ISDIR(mode) and not stat.S_ISSOCK(mode) and status.st_nlink > 1:
        first = first_names.setdefault((status.st_dev, status.st_ino), name)
        if first != name:
            # A reader gives what the header says to the file that both names share.
            yield tar_header(
                name,
                Kind.HARDLINK,
                *common,
                mtime_ns=when,
                link=first,
                xattrs=xattrs,
                device=device,
            )
            return
    if stat.S_ISREG(mode):
        yield from _file(name, source, common, xattrs)
    elif stat.S_ISDIR(mode):
        yield tar_header(name + b"/", Kind.DIR, *common, mtime_ns=when, xattrs=xattrs)
        if item.hides:
            owner = (status.st_uid, status.st_gid)
            yield tar_header(name + b"/" + OPAQUE, Kind.FILE, mode & 0o777, *owner)
    elif stat.S_ISLNK(mode):
        link = os.readlink(source)
        yield tar_header(name, Kind.SYMLINK, *common, mtime_ns=when, link=link, xattrs=xattrs)
    elif stat.S_ISFIFO(mode):
        yield tar_header(name, Kind.FIFO, *common, mtime_ns=when, xattrs=xattrs)
    elif is_device:
        kind = Kind.CHAR if stat.S_ISCHR(mode) else Kind.BLOCK
        yield tar_header(name, kind, *common, mtime_ns=when, xattrs=xattrs, device=device)


def _file(
    name: bytes, source: bytes, common: tuple[int, int, int], xattrs: dict[bytes, bytes]
) -> Iterator[bytes]:
    """A regular file; one that shrinks while it is read is filled with zeros, as GNU tar does."""
    with open(source, "rb", buffering=0) as handle:
        status = os.fstat(handle.fileno())
        left = status.st_size
        when = status.st_mtime_ns // _NS * _NS
        yield tar_header(name, Kind.FILE, *common, size=left, mtime_ns=when, xattrs=xattrs)
        while left:
            wanted = min(left, _CHUNK_BYTES)
            data = handle.read(wanted) or bytes(wanted)
            left -= len(data)
            yield data
        if end := tar_padding(status.st_size):
            yield end


def _xattrs(path: bytes) -> dict[bytes, bytes]:
    """The attributes that a layer carries; those with an empty value cannot be in a tar."""
    names = os.listxattr(path, follow_symlinks=False)
    found = {
        os.fsencode(name): os.getxattr(path, name, follow_symlinks=False)
        for name in sorted(names)
        if name.startswith(_SHOWN_XATTRS)
    }
    capability = found.get(b"security.capability", b"")
    if len(capability) > _ROOT_ID_AT and capability[_REVISION_AT] == 3:
        # The root of a user namespace means nothing in another container; so does moby.
        capability = capability[:_REVISION_AT] + b"\2" + capability[_REVISION_AT + 1 : _ROOT_ID_AT]
        found[b"security.capability"] = capability
    return {name: value for name, value in found.items() if value}
