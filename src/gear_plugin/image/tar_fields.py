"""
The fields of a tar header that need more than slicing: numbers, checksum, paths.

GNU tar manual, "Basic Tar Format".  Pure functions.
"""

from __future__ import annotations

from zlib import adler32

from gear_plugin.errors import ArchiveMalformed

_ADLER_MODULUS = 65521
_SHOWN_BYTES = 100


def clean_path(path: bytes) -> bytes:
    """*path* without leading, trailing or doubled slashes and `.`; `..` is ArchiveMalformed."""
    path = path.strip(b"/")
    if path[:1] == b"." or b"/." in path or b"//" in path:
        parts = [part for part in path.split(b"/") if part not in (b"", b".")]
        if b".." in parts:
            raise ArchiveMalformed(f"tar: a name with '..' in it: {shown(path)}")
        path = b"/".join(parts)
    if b"\0" in path:
        raise ArchiveMalformed(f"tar: a name with a zero byte: {shown(path)}")
    return path


def shown(name: bytes) -> str:
    """*name* for a message, which stays one short line whatever a header holds."""
    return repr(name) if len(name) <= _SHOWN_BYTES else f"{name[:_SHOWN_BYTES]!r}..."


def verify_checksum(header: bytes, stored: bytes) -> None:
    """
    The sum of the header's bytes, the checksum field itself counted as blanks.

    adler32's low half is 1 + that sum modulo 65,521 at ten times the speed of
    `sum`, and a sum of 512 bytes is below twice the modulus.  Some old tars
    summed signed bytes.
    """
    expected = number(stored)
    total = (adler32(header) & 0xFFFF) - 1 - sum(stored) + 8 * 0x20
    if (total - expected) % _ADLER_MODULUS == 0:
        return
    blanked = header[:148] + b" " * 8 + header[156:]
    if sum(blanked) - 256 * sum(byte > 127 for byte in blanked) != expected:
        raise ArchiveMalformed("tar: a header's checksum is wrong")


def number(field: bytes) -> int:
    """
    Octal digits up to a NUL, or base 256 (GNU) when the first bit is set; empty is 0.

    No signs and no `_`, which Python's `int` would take: Go's archive/tar
    refuses them, and two readers must not see two archives in one file.
    """
    text = field.strip(b" \0")
    if text.isdigit():
        try:
            return int(text, 8)
        except ValueError:
            raise ArchiveMalformed(f"tar: not a number: {field!r}") from None
    if field[0] & 0x80:
        # Two's complement with bit 7 of the first byte as the mark and bit 6 as the sign.
        value = int.from_bytes(field, "big") & ((1 << (len(field) * 8 - 1)) - 1)
        return value - ((field[0] & 0x40) << 1 << (len(field) * 8 - 8))
    text = text.partition(b"\0")[0]
    if text.strip(b"01234567"):
        raise ArchiveMalformed(f"tar: not a number: {field!r}")
    return int(text or b"0", 8)
