"""Small tars for the layer tests, made by Python's tarfile."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from typing import Any


def tar(*entries: dict[str, Any]) -> bytes:
    """A tar of *entries*: TarInfo fields by name, and `data` for a file's content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries:
            data = entry.pop("data", b"")
            info = tarfile.TarInfo(entry.pop("name"))
            info.size = len(data)
            info.mode = 0o644
            for key, value in entry.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def reading(data: bytes) -> Callable[[int], bytes]:
    """A stream's read function over *data*."""
    return io.BytesIO(data).read


def names(stream: bytes) -> list[str]:
    """The member names of a tar."""
    with tarfile.open(fileobj=io.BytesIO(stream)) as archive:
        return archive.getnames()
