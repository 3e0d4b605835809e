"""A tar member written out: the inverse of `TarReader`, for round trips."""

from __future__ import annotations

import tarfile

from gear_plugin.image import Kind, Member

_FLAGS = {
    Kind.FILE: b"0",
    Kind.HARDLINK: b"1",
    Kind.SYMLINK: b"2",
    Kind.CHAR: b"3",
    Kind.BLOCK: b"4",
    Kind.DIR: b"5",
    Kind.FIFO: b"6",
}
_BLOCK = 512


def encode(member: Member, data: bytes) -> bytes:
    """*member* with its *data*: one PAX header that says all, and a ustar header."""
    seconds, nanoseconds = divmod(member.mtime_ns, 10**9)
    if seconds < 0 and nanoseconds:
        # Decimal seconds have one sign: -1.5 s, not -2 s and 0.5 s.
        seconds, nanoseconds = seconds + 1, 10**9 - nanoseconds
    sign = b"-" if member.mtime_ns < 0 else b""
    records = {
        b"path": member.name or b"./",
        b"uid": b"%d" % member.uid,
        b"gid": b"%d" % member.gid,
        b"size": b"%d" % member.size,
        b"mtime": b"%s%d.%09d" % (sign, abs(seconds), nanoseconds),
    }
    if member.link:
        records[b"linkpath"] = member.link
    records |= {b"SCHILY.xattr." + name: value for name, value in member.xattrs.items()}
    extended = b"".join(_record(key, value) for key, value in records.items())
    return (
        _header(b"x", len(extended), 0, 0, 0)
        + extended
        + bytes(-len(extended) % _BLOCK)
        + _header(_FLAGS[member.kind], 0, member.mode, member.major, member.minor)
        + data
        + bytes(-len(data) % _BLOCK)
    )


def _record(key: bytes, value: bytes) -> bytes:
    rest = b" %s=%s\n" % (key, value)
    size = len(rest)
    while size != len(rest) + len(b"%d" % size):
        size = len(rest) + len(b"%d" % size)
    return b"%d" % size + rest


def _header(flag: bytes, size: int, mode: int, major: int, minor: int) -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size, info.mode = flag, size, mode
    info.devmajor, info.devminor = major, minor
    # GNU's form writes large numbers in base 256.
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
