"""
A tar, header by header, as lines of text.

Byte for byte: nothing is interpreted, a PAX header is a line of its own, and so
is the end marker.  Two tars with the same lines are the same bytes, but for
what the reader was told to pass over.  By meaning: what a layer says, however
it is written.  Shares no code with Gear's own readers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import IO

BLOCK = 512
_CHUNK_BYTES = 1 << 20
_TYPE_BITS = ~0o7777


@dataclass(frozen=True, slots=True)
class Reading:
    """How exactly a tar is read."""

    recent: Callable[[int], bool]
    """Whether a time, in seconds, is one of this run: shown as `now`."""

    untimed: Collection[bytes] = ()
    """Names of members whose time means nothing."""

    meaning: bool = False
    """
    PAX records count where they belong, headers' other fields do not; a
    whiteout is its name alone.  So do the names of owners and the type bits in
    a mode not count, which engines before 23 write, as the host's /etc/passwd has them.
    """


@dataclass(frozen=True, slots=True)
class Listing:
    """A tar's lines, and whether they say all that its bytes do."""

    lines: list[str]
    timeless: bool
    """No time of this run is in it: another run gives the same bytes."""
    digest: str
    """The sha256 of the whole."""


def listing(stream: IO[bytes], reading: Reading) -> Listing:
    """Read the whole tar in *stream*."""
    counted = _Counted(stream)
    lines = []
    timeless = True
    records: dict[bytes, bytes] = {}
    for header in iter(lambda: counted.read(BLOCK), b""):
        if header == bytes(BLOCK):
            rest = sum(map(len, iter(lambda: counted.read(_CHUNK_BYTES), b"")))
            lines.append(f"end: {BLOCK + rest} bytes")
            break
        timeless &= not reading.recent(_number(header[136:148])) and not _is_whiteout(header)
        if not reading.meaning:
            lines.append(_line(header, counted, reading))
        elif header[156:157] == b"x":
            size = _number(header[124:136])
            records = _records(counted.read(size + -size % BLOCK)[:size])
        else:
            lines.append(_meant(header, records, counted, reading))
            records = {}
    return Listing(lines, timeless, counted.digest())


class _Counted:
    """A stream that hashes what is read of it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._hash.update(data)
        return data

    def digest(self) -> str:
        return self._hash.hexdigest()


def _line(header: bytes, stream: _Counted, reading: Reading) -> str:
    """One header and its data."""
    size = _number(header[124:136])
    flag = header[156:157]
    if flag in b"xgLK" and size < _CHUNK_BYTES:
        data = stream.read(size + -size % BLOCK)[:size]
        return f"  {_text(header[:100])} {flag.decode()} {_rest(header)} {data!r}"
    content = "".join(_hashed(stream, size))
    if _is_whiteout(header):
        return f"{_text(header[:100])} {_number(header[100:108]):o} {size} {_rest(header)}".rstrip()
    mtime = _number(header[136:148])
    when = "now" if reading.recent(mtime) else f"{mtime}"
    if header[:100].strip(b"\0/") in reading.untimed:
        when = "untimed"
    words = [
        _text(header[:100]),
        flag.decode(errors="backslashreplace") or "NUL",
        f"{_number(header[100:108]):o}",
        f"{_number(header[108:116])}:{_number(header[116:124])}",
        f"{size}",
        when,
    ]
    if link := header[157:257].rstrip(b"\0"):
        words.append(f"-> {_text(link)}")
    return " ".join([*words, _rest(header), content]).rstrip()


def _is_whiteout(header: bytes) -> bool:
    """
    Whether this says that a name is gone.

    overlay2 gives it the time, the owner and, as a link, the name of the first
    file that was deleted in that container: an accident, which is not compared.
    """
    base = header[:100].rstrip(b"\0").rpartition(b"/")[2]
    return base.startswith(b".wh.") and not base.startswith(b".wh..wh.")


def _meant(header: bytes, records: dict[bytes, bytes], stream: _Counted, reading: Reading) -> str:
    """What one member says."""

    def field(key: bytes, start: int, end: int) -> bytes:
        return records.pop(key, header[start:end].rstrip(b"\0"))

    def number(key: bytes, start: int, end: int) -> int:
        return int(records.pop(key)) if key in records else _number(header[start:end])

    size = number(b"size", 124, 136)
    content = "".join(_hashed(stream, size))
    name, flag = field(b"path", 0, 100), header[156:157]
    if name.rpartition(b"/")[2].startswith(b".wh."):
        return f"{_text(name)} {size}"
    mtime = number(b"mtime", 136, 148)
    when = "now" if reading.recent(mtime) else f"{mtime}"
    if name.strip(b"/") in reading.untimed:
        when = "untimed"
    link = field(b"linkpath", 157, 257)
    device = f"{_number(header[329:337])},{_number(header[337:345])}" if flag in b"34" else ""
    words = [
        _text(name),
        flag.decode(),
        f"{_number(header[100:108]) & ~_TYPE_BITS:o}",
        f"{number(b'uid', 108, 116)}:{number(b'gid', 116, 124)}",
        f"{size}",
        when,
        f"-> {_text(link)}" if link else "",
        device,
        f"{sorted(records.items())}" if records else "",
        content,
    ]
    return " ".join(word for word in words if word)


def _records(data: bytes) -> dict[bytes, bytes]:
    """What a PAX header says."""
    found = {}
    while data:
        size = int(data.partition(b" ")[0])
        key, _, value = data[:size].partition(b" ")[2].removesuffix(b"\n").partition(b"=")
        found[key] = value
        data = data[size:]
    return found


def _rest(header: bytes) -> str:
    """What is left of a header; the magic and empty fields in their usual form are not shown."""
    fields = {
        "magic": (header[257:265], b"ustar\x0000"),
        "user": (header[265:297].rstrip(b"\0"), b""),
        "group": (header[297:329].rstrip(b"\0"), b""),
        "device": (header[329:345], b"0000000\0" * 2),
        "prefix": (header[345:500].rstrip(b"\0"), b""),
        "padding": (header[500:].rstrip(b"\0"), b""),
    }
    return " ".join(f"{key}={value!r}" for key, (value, usual) in fields.items() if value != usual)


def _hashed(stream: _Counted, size: int) -> Iterator[str]:
    """A short hash of the member's data; nothing if it has none."""
    if size:
        found = hashlib.sha256()
        left = size
        while left:
            data = stream.read(min(left, _CHUNK_BYTES))
            if not data:
                yield "CUT SHORT "
                break
            found.update(data)
            left -= len(data)
        padding = stream.read(-size % BLOCK)
        if padding.strip(b"\0"):
            yield f"padding={padding!r} "
        yield found.hexdigest()[:16]


def _number(field: bytes) -> int:
    """Octal, or base 256."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big", signed=False)
    return int(field.strip(b"\0 ") or b"0", 8)


def _text(field: bytes) -> str:
    return repr(field.rstrip(b"\0"))[1:]
