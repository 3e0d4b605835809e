"""Tars and members for tests."""

from __future__ import annotations

import io
import tarfile
from typing import Any

from gear_plugin.image import NO_XATTRS, Kind, Member, TarReader


def tar(*members: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes], **options: Any) -> bytes:
    """The members as tarfile writes them; a file comes with its content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", **options) as archive:
        for member in members:
            if isinstance(member, tuple):
                info, content = member
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                archive.addfile(member)
    return out.getvalue()


def info(name: str, **fields: Any) -> tarfile.TarInfo:
    """A TarInfo with these fields."""
    found = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(found, field, value)
    return found


def scan(data: bytes, *, seekable: bool = True) -> list[Member]:
    """All members of a tar."""
    return list(TarReader(io.BytesIO(data), seekable=seekable))


class Dribble:
    """A pipe that gives at most seven bytes at a time."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def read(self, n: int = -1, /) -> bytes:
        return self._file.read(min(n, 7) if n >= 0 else 7)


def member(name: bytes, kind: Kind = Kind.FILE, **fields: Any) -> Member:
    """A member with plain metadata."""
    values: dict[str, Any] = {
        "mode": 0o644,
        "uid": 1,
        "gid": 2,
        "mtime_ns": 3,
        "size": 0,
        "link": b"",
        "major": 0,
        "minor": 0,
        "xattrs": NO_XATTRS,
        "data_offset": 0,
    }
    return Member(name=name, kind=kind, **(values | fields))
