"""
PAX extended header records: `<length> <key>=<value>\\n`, one after another.

POSIX.1-2017, pax, "pax Extended Header".  The length counts the whole
record, so values may hold any byte.  An empty value deletes the record: the
header's own field counts again, and an xattr of that name is not set, as in
Docker.  Pure functions.
"""

from __future__ import annotations

import re

from gear_plugin.errors import ArchiveMalformed

Records = dict[bytes, bytes]

_LENGTH = re.compile(rb"([0-9]{1,7}) ")
_TIME = re.compile(rb"(-?)([0-9]{1,19})(?:\.([0-9]*))?\Z")


def merge_records(into: Records, data: bytes) -> Records:
    """*into* with the records of *data* over it; raises ArchiveMalformed."""
    records = dict(into)
    at = 0
    while at < len(data):
        match = _LENGTH.match(data, at)
        end = at + int(match[1]) if match else 0
        if match is None or end > len(data) or end <= match.end() or data[end - 1] != 0x0A:
            raise ArchiveMalformed(f"tar: a malformed PAX record: {data[at : at + 50]!r}")
        key, equals, value = data[match.end() : end - 1].partition(b"=")
        if not equals or not key or b"\0" in key:
            raise ArchiveMalformed(f"tar: a PAX record without a proper key: {data[at:end][:50]!r}")
        records[key] = value
        at = end
    return records


def extended_time_ns(text: bytes) -> int:
    """Decimal seconds as nanoseconds, digits past the ninth dropped; raises ArchiveMalformed."""
    match = _TIME.match(text)
    if not match:
        raise ArchiveMalformed(f"tar: a PAX time that is no number: {text[:50]!r}")
    magnitude = int(match[2]) * 1_000_000_000 + int(((match[3] or b"") + b"0" * 9)[:9])
    return -magnitude if match[1] else magnitude
