"""
Writing tar headers: ustar, with PAX records only where ustar cannot say it.

The same values give the same bytes, those that Go's archive/tar (and so
Docker) writes for its FormatPAX, whatever bytes names are made of.  Names of
users are left empty.
Sources: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Extended
Header"; star(1) for `SCHILY.xattr.`.  Pure.
"""

from __future__ import annotations

import posixpath
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
_NAME_BYTES, _PREFIX_BYTES = 100, 155
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
    for key, text in ((b"path", name), (b"linkpath", link)):
        if len(text) > _NAME_BYTES or not text.isascii():
            records[key] = text
    for key, value, digits in (
        (b"uid", uid, _ID_DIGITS),
        (b"gid", gid, _ID_DIGITS),
        (b"size", size, _SIZE_DIGITS),
    ):
        if value >= 8**digits:
            records[key] = b"%d" % value
    if mtime_ns % _NS or not 0 <= mtime_ns // _NS < 8**_SIZE_DIGITS:
        records[b"mtime"] = _seconds(mtime_ns)
    prefix = b""
    if records.keys() == {b"path"} and (split := _split(name)) is not None:
        (prefix, name), records = split, {}
    own = _block(name, _FLAGS[kind], mode, uid, gid, size, mtime_ns // _NS, link, device, prefix)
    if not records:
        return own
    body = b"".join(_record(key, value) for key, value in sorted(records.items()))
    extended = _block(_extended_name(name), b"x", 0, 0, 0, len(body), 0, b"", None, b"")
    return extended + body + tar_padding(len(body)) + own


def tar_padding(size: int) -> bytes:
    """The zeros that must follow *size* bytes of data."""
    return bytes(-size % BLOCK)


def _split(name: bytes) -> tuple[bytes, bytes] | None:
    """A long name as ustar's prefix and name; None: a record must say it."""
    if not name.isascii():
        return None
    end = min(len(name) - name.endswith(b"/"), _PREFIX_BYTES + 1)
    at = name.rfind(b"/", 0, end)
    if at <= 0 or not 0 < len(name) - at - 1 <= _NAME_BYTES:
        return None
    return name[:at], name[at + 1 :]


def _extended_name(name: bytes) -> bytes:
    """What Go calls the PAX header of a member."""
    folder, _, base = name.rpartition(b"/")
    joined = posixpath.normpath(posixpath.join(folder, b"PaxHeaders.0", base))
    return _ascii(joined)[:_NAME_BYTES].rstrip(b"/")


def _ascii(text: bytes) -> bytes:
    return text if text.isascii() else bytes(byte for byte in text if byte < 0x80)


def _field(text: bytes) -> bytes:
    """A name as far as 100 ASCII characters can tell it; a record tells the rest."""
    text = _ascii(text)
    if len(text) > _NAME_BYTES:
        text = text[:_NAME_BYTES].rstrip(b"/")
    return text.ljust(_NAME_BYTES, b"\0")


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
    device: tuple[int, int] | None,
    prefix: bytes,
) -> bytes:
    numbers = bytes(16) if device is None else b"".join(_octal(n, _ID_DIGITS) for n in device)
    fields = b"".join(
        (
            _field(name),
            _octal(mode, _ID_DIGITS),
            _octal(uid, _ID_DIGITS),
            _octal(gid, _ID_DIGITS),
            _octal(size, _SIZE_DIGITS),
            _octal(mtime, _SIZE_DIGITS),
            b"        ",  # the checksum counts its own field as blanks
            flag,
            _field(link),
            b"ustar\x0000".ljust(72, b"\0"),
            numbers,
            prefix,
        )
    )
    # The low half of adler32 is 1 + the sum of the bytes modulo 65,521, at ten
    # times the speed of `sum`; 500 ASCII bytes sum up to 63,500 at the most.
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
