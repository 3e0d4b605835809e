"""
Writing tar headers: ustar, with PAX records only where ustar cannot say it.

The same values give the same bytes.  Names of users are left empty; names
that are not ASCII, or longer than their field, go into records as Go's
archive/tar (and so Docker) writes them, whatever their bytes are.
Sources: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Extended
Header"; star(1) for `SCHILY.xattr.`.  Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from zlib import adler32

from gear_plugin.image.entry import NO_XATTRS, Kind

BLOCK = 512

_FLAGS = {
    Kind.FILE: b"0",
    Kind.HARDLINK: b"1",
    Kind.SYMLINK: b"2",
    Kind.CHAR: b"3",
    Kind.BLOCK: b"4",
    Kind.DIR: b"5",
    Kind.FIFO: b"6",
}
_NAME_BYTES = 100
_ID_DIGITS, _SIZE_DIGITS = 7, 11
_NS = 1_000_000_000


def tar_header(
    name: bytes,
    kind: Kind,
    mode: int = 0,
    uid: int = 0,
    gid: int = 0,
    *,
    size: int = 0,
    mtime_ns: int = 0,
    link: bytes = b"",
    xattrs: Mapping[bytes, bytes] = NO_XATTRS,
    device: tuple[int, int] = (0, 0),
) -> bytes:
    """
    The header blocks of one member: its own, and before it a PAX header if need be.

    Directories' names end with a slash.  *xattrs* are given by their full
    names; those with an empty value, or a `=` in the name, are beyond the format.
    """
    records = {b"SCHILY.xattr." + key: value for key, value in xattrs.items()}
    ascii_only = name.isascii() and link.isascii()
    if len(name) > _NAME_BYTES or not ascii_only:
        records[b"path"] = name
    if link and (len(link) > _NAME_BYTES or not ascii_only):
        records[b"linkpath"] = link
    for key, value, digits in (
        (b"uid", uid, _ID_DIGITS),
        (b"gid", gid, _ID_DIGITS),
        (b"size", size, _SIZE_DIGITS),
    ):
        if value >= 8**digits:
            records[key] = b"%d" % value
    if mtime_ns % _NS or not 0 <= mtime_ns // _NS < 8**_SIZE_DIGITS:
        records[b"mtime"] = _seconds(mtime_ns)
    own = _block(name, _FLAGS[kind], mode, uid, gid, size, mtime_ns // _NS, link, device)
    if not records:
        return own
    body = b"".join(_record(key, value) for key, value in sorted(records.items()))
    extended = _block(b"PaxHeaders.0/" + name, b"x", 0o644, 0, 0, len(body), 0, b"", (0, 0))
    return extended + body + tar_padding(len(body)) + own


def tar_padding(size: int) -> bytes:
    """The zeros that must follow *size* bytes of data."""
    return bytes(-size % BLOCK)


def _seconds(time_ns: int) -> bytes:
    """Decimal seconds, without zeros at the end."""
    whole, fraction = divmod(abs(time_ns), _NS)
    text = b"%s%d" % (b"-" if time_ns < 0 else b"", whole)
    return text + (b".%09d" % fraction).rstrip(b"0") if fraction else text


def _block(
    name: bytes,
    flag: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime: int,
    link: bytes,
    device: tuple[int, int],
) -> bytes:
    fields = b"".join(
        (
            name[:_NAME_BYTES].ljust(_NAME_BYTES, b"\0"),
            _octal(mode, _ID_DIGITS),
            _octal(uid, _ID_DIGITS),
            _octal(gid, _ID_DIGITS),
            _octal(size, _SIZE_DIGITS),
            _octal(mtime, _SIZE_DIGITS),
            b"        ",  # the checksum counts its own field as blanks
            flag,
            link[:_NAME_BYTES].ljust(_NAME_BYTES, b"\0"),
            b"ustar\x0000".ljust(72, b"\0"),
            _octal(device[0], _ID_DIGITS),
            _octal(device[1], _ID_DIGITS),
        )
    )
    # The low half of adler32 is 1 + the sum of the bytes modulo 65,521, at ten
    # times the speed of `sum`; 345 ASCII bytes sum up to 43,815 at the most.
    total = (adler32(fields) & 0xFFFF) - 1 if fields.isascii() else sum(fields)
    return (fields[:148] + b"%06o\0 " % total + fields[156:]).ljust(BLOCK, b"\0")


def _octal(number: int, digits: int) -> bytes:
    """Zero if it does not fit: a record says it then."""
    return b"%0*o\0" % (digits, number if 0 <= number < 8**digits else 0)


def _record(key: bytes, value: bytes) -> bytes:
    """A PAX record, `<length> <key>=<value>\\n`, whose length counts itself."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) > len(str(rest)):
        length += 1
    return b"%d %s=%s\n" % (length, key, value)
