"""
Tar members byte by byte: quick enough for 100,000, and for what tarfile cannot write.

POSIX.1-2017 "pax, ustar Interchange Format"; shares no code with Gear.
"""

from __future__ import annotations

from collections.abc import Mapping

FILE, LINK, SYMLINK, CHAR, BLOCK, DIR, FIFO = (b"%d" % number for number in range(7))
END = bytes(1024)


def entry(
    name: bytes,
    kind: bytes = FILE,
    data: bytes = b"",
    *,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime: int = 1_600_000_000,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
    size: int | None = None,
    pax: Mapping[bytes, bytes] | None = None,
) -> bytes:
    """
    One member with its data; what does not fit its header goes into PAX records.

    *size*, if given, is what the header says; the data is the caller's business then.
    """
    length = len(data) if size is None else size
    records = dict(pax or {})
    for key, text in ((b"path", name), (b"linkpath", link)):
        if len(text) > 100:
            records[key] = text
    for key, number, limit in (
        (b"uid", uid, 2**21),
        (b"gid", gid, 2**21),
        (b"size", length, 2**33),
    ):
        if number >= limit:
            records[key] = b"%d" % number
    before = b""
    if records:
        lines = b"".join(_record(key, value) for key, value in records.items())
        before = header(b"pax", b"x", len(lines)) + lines + bytes(-len(lines) % 512)
    short = (uid % 2**21, gid % 2**21)
    head = header(name[:100], kind, length % 2**33, mode, *short, mtime, link[:100], device)
    return before + head + data + (bytes(-len(data) % 512) if size is None else b"")


def header(
    name: bytes,
    kind: bytes,
    size: int,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime: int = 0,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
) -> bytes:
    """One header of 512 bytes."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:136] = b"%07o\0%07o\0%07o\0%011o\0" % (mode, uid, gid, size)
    block[136:156] = b"%011o\0        " % mtime
    block[156:157] = kind
    block[157 : 157 + len(link)] = link
    block[257:265] = b"ustar\x0000"
    block[329:345] = b"%07o\0%07o\0" % device
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    while len(b"%d" % length) + len(key) + len(value) + 3 != length:
        length = len(b"%d" % length) + len(key) + len(value) + 3
    return b"%d %s=%s\n" % (length, key, value)
