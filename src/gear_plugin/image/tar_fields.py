"""
The fields of a tar header that need more than slicing: numbers, checksum, paths.

GNU tar manual, "Basic Tar Format".  Pure functions.
"""

from __future__ import annotations

from zlib import adler32

from gear_plugin.errors import ArchiveMalformed

_ADLER_MODULUS = 65521


def clean_path(path: bytes) -> bytes:
    """*path* without leading, trailing or doubled slashes and `.`; `..` is ArchiveMalformed."""
    path = path.strip(b"/")
    if path[:1] == b"." or b"/." in path or b"//" in path:
        parts = [part for part in path.split(b"/") if part not in (b"", b".")]
        if b".." in parts:
            raise ArchiveMalformed(f"tar: a name with '..' in it: {path!r}")
        path = b"/".join(parts)
    if b"\0" in path:
        raise ArchiveMalformed(f"tar: a name with a zero byte: {path!r}")
    return path


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
    """Octal text, or base 256 (GNU) when the first bit is set; empty is 0."""
    try:
        return int(field.rstrip(b" \0") or b"0", 8)
    except ValueError:
        pass
    if field[0] & 0x80:
        # Two's complement with bit 7 of the first byte as the mark and bit 6 as the sign.
        value = int.from_bytes(field, "big") & ((1 << (len(field) * 8 - 1)) - 1)
        return value - ((field[0] & 0x40) << 1 << (len(field) * 8 - 8))
    text = field.partition(b"\0")[0].strip(b" ")
    if text.strip(b"01234567"):
        raise ArchiveMalformed(f"tar: not a number: {field!r}")
    return int(text or b"0", 8)
