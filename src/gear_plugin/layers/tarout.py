"""
Writing a layer's changes as a tar stream.

The bytes decide the layer's digest, so the same changes give the same bytes:
sorted by path, PAX records only where ustar cannot say it, whole-second times
(moby pkg/archive does the same), names of users left empty.  Deletions are
empty `.wh.X` files, opaque directories hold `.wh..wh..opq` (OCI image-spec,
layer.md).  Sockets are left out, as tar cannot hold them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gear_plugin.layers.whiteout import OPAQUE, WHITEOUT, is_opaque, is_whiteout

_BLOCK = 512
_CHUNK_BYTES = 1 << 20
_SHOWN_XATTRS = ("security.capability", "user.", "system.posix_acl_")
"""What a layer carries; labels such as security.selinux belong to the host."""


@dataclass(frozen=True, slots=True)
class Item:
    """One path of the stream: `source` to read it from, or None for a whiteout."""

    path: bytes
    source: bytes | None


def stream(items: Iterable[Item]) -> Iterator[bytes]:
    """The tar of *items* in their order, in pieces of at most 1 MiB, end marker included."""
    first_names: dict[tuple[int, int], bytes] = {}
    for item in items:
        if item.source is None:
            yield _header(item.path, 0, 0, 0, 0, 0, b"0")
        else:
            yield from _entry(item.path, item.source, first_names)
    yield bytes(2 * _BLOCK)


def upper_items(upper: Path) -> Iterator[Item]:
    """Every change that the overlay upper directory *upper* holds, sorted by path."""
    root = os.fsencode(upper)
    pending: list[tuple[bytes, bytes]] = [(b"", root)]
    while pending:
        name, source = pending.pop()
        status = os.lstat(source)
        if is_whiteout(status):
            parent, slash, base = name.rpartition(b"/")
            yield Item(parent + slash + WHITEOUT + base, None)
            continue
        if name:
            yield Item(name, source)
        if stat.S_ISDIR(status.st_mode):
            prefix = name + b"/" if name else b""
            if is_opaque(source):
                yield Item(prefix + OPAQUE, None)
            children = sorted(os.listdir(source), reverse=True)
            pending += [(prefix + child, source + b"/" + child) for child in children]


def _entry(
    name: bytes, source: bytes, first_names: dict[tuple[int, int], bytes]
) -> Iterator[bytes]:
    status = os.lstat(source)
    mode = status.st_mode
    common = (stat.S_IMODE(mode), status.st_uid, status.st_gid)
    when = status.st_mtime_ns // 10**9
    xattrs = _xattrs(source)
    identity = (status.st_dev, status.st_ino)
    if not stat.S_ISDIR(mode) and status.st_nlink > 1:
        first = first_names.setdefault(identity, name)
        if first != name:
            yield _header(name, *common, 0, when, b"1", link=first)
            return
    if stat.S_ISREG(mode):
        yield from _file(name, source, common, xattrs)
    elif stat.S_ISDIR(mode):
        yield _header(name + b"/", *common, 0, when, b"5", xattrs=xattrs)
    elif stat.S_ISLNK(mode):
        yield _header(name, *common, 0, when, b"2", link=os.readlink(source), xattrs=xattrs)
    elif stat.S_ISFIFO(mode):
        yield _header(name, *common, 0, when, b"6", xattrs=xattrs)
    elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        kind = b"3" if stat.S_ISCHR(mode) else b"4"
        yield _header(name, *common, 0, when, kind, xattrs=xattrs, device=status.st_rdev)


def _file(
    name: bytes, source: bytes, common: tuple[int, int, int], xattrs: dict[str, bytes]
) -> Iterator[bytes]:
    """A regular file; one that shrinks while it is read is filled with zeros, as GNU tar does."""
    with open(source, "rb", buffering=0) as handle:
        status = os.fstat(handle.fileno())
        left = status.st_size
        yield _header(name, *common, left, status.st_mtime_ns // 10**9, b"0", xattrs=xattrs)
        while left:
            data = handle.read(min(left, _CHUNK_BYTES)) or bytes(min(left, _CHUNK_BYTES))
            left -= len(data)
            yield data
        if status.st_size % _BLOCK:
            yield bytes(-status.st_size % _BLOCK)


def _xattrs(path: bytes) -> dict[str, bytes]:
    names = os.listxattr(path, follow_symlinks=False)
    return {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in sorted(names)
        if name.startswith(_SHOWN_XATTRS)
    }


def _header(
    name: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime: int,
    kind: bytes,
    *,
    link: bytes = b"",
    xattrs: dict[str, bytes] | None = None,
    device: int = 0,
) -> bytes:
    records: dict[bytes, bytes] = {
        b"SCHILY.xattr." + key.encode(): value for key, value in (xattrs or {}).items()
    }
    ascii_only = name.isascii() and link.isascii()
    if len(name) > 100 or not ascii_only:
        records[b"path"] = name
    if link and (len(link) > 100 or not ascii_only):
        records[b"linkpath"] = link
    for key, value, digits in ((b"uid", uid, 7), (b"gid", gid, 7), (b"size", size, 11)):
        if value >= 8**digits:
            records[key] = b"%d" % value
    if not 0 <= mtime < 8**11:
        records[b"mtime"] = b"%d" % mtime
    fields = _Fields(name, mode, uid, gid, size, mtime, kind, link, device)
    if not records:
        return _block(fields)
    body = b"".join(_record(key, value) for key, value in sorted(records.items()))
    extended = _Fields(b"PaxHeaders.0/" + name, 0o644, 0, 0, len(body), 0, b"x", b"", 0)
    return _block(extended) + body + bytes(-len(body) % _BLOCK) + _block(fields)


@dataclass(frozen=True, slots=True)
class _Fields:
    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    kind: bytes
    link: bytes
    device: int


def _block(fields: _Fields) -> bytes:
    """One ustar header block (POSIX.1-2017, pax, "ustar Interchange Format")."""
    block = bytearray(_BLOCK)

    def octal(start: int, digits: int, value: int) -> None:
        if 0 <= value < 8**digits:
            block[start : start + digits + 1] = b"%0*o\0" % (digits, value)
        else:
            block[start : start + digits + 1] = b"0" * digits + b"\0"

    block[0 : len(fields.name[:100])] = fields.name[:100]
    octal(100, 7, fields.mode)
    octal(108, 7, fields.uid)
    octal(116, 7, fields.gid)
    octal(124, 11, fields.size)
    octal(136, 11, fields.mtime)
    block[156:157] = fields.kind
    block[157 : 157 + len(fields.link[:100])] = fields.link[:100]
    block[257:265] = b"ustar\x0000"
    octal(329, 7, os.major(fields.device))
    octal(337, 7, os.minor(fields.device))
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _record(key: bytes, value: bytes) -> bytes:
    """A PAX record, `<length> <key>=<value>\\n`, whose length counts itself."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) > len(str(rest)):
        length += 1
    return b"%d %s=%s\n" % (length, key, value)
