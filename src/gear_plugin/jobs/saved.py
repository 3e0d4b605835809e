"""
Reading what `docker save` writes: layers and configuration of one image.

Two layouts are understood, both by their `manifest.json`: engines before 25
(`<id>/layer.tar`, equal layers as symlinks) and later ones (`blobs/sha256/`).
Layers are regions of the one spool file, never copied.
Source: moby image/tarexport/save.go (v20.10.24 and v25).
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gear_plugin.digest import Digest
from gear_plugin.errors import ArchiveMalformed, Unsupported
from gear_plugin.image import Kind, Member, TarReader

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_SYMLINK_LIMIT = 16


class Region(io.RawIOBase):
    """*size* bytes of *file* from *start*, as a file of their own; one thread at a time."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        super().__init__()
        self._file = file
        self.start = start
        self.size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        wanted = min(len(buffer), max(self.size - self._at, 0))
        count = os.preadv(self._file.fileno(), [memoryview(buffer)[:wanted]], self.start + self._at)
        self._at += count
        return count


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's plain tar: *size* bytes of *file* from *start*."""

    file: BinaryIO
    start: int
    size: int

    def open(self) -> BinaryIO:
        """The layer as a file of its own."""
        return io.BufferedReader(Region(self.file, self.start, self.size), 1 << 18)


@dataclass(frozen=True, slots=True)
class SavedImage:
    """An image as it was saved; layers from the lowest up."""

    config: dict[str, Any]
    config_digest: Digest
    layers: list[Layer]

    @property
    def platform(self) -> str:
        """`os/architecture[/variant]`, as in the OCI image-spec."""
        parts = [self.config.get(key) for key in ("os", "architecture", "variant")]
        return "/".join(str(part) for part in parts if part)


def read(spool: BinaryIO, scratch: Path) -> SavedImage:
    """
    The only image in the archive *spool*; compressed layers are unpacked into *scratch*.

    Raises ArchiveMalformed, Unsupported.
    """
    members = {member.name: member for member in TarReader(spool, seekable=True)}

    def locate(name: str) -> Member:
        path = name.encode()
        for _ in range(_SYMLINK_LIMIT):
            member = members.get(path)
            if member is None:
                break
            if member.kind is not Kind.SYMLINK:
                return member
            path = os.path.normpath(os.path.join(os.path.dirname(path), member.link))
        raise ArchiveMalformed(f"the saved image names {name}, which it does not hold")

    def content(name: str) -> bytes:
        member = locate(name)
        return os.pread(spool.fileno(), member.size, member.data_offset)

    try:
        (entry,) = json.loads(content("manifest.json"))
        raw = content(entry["Config"])
        config = json.loads(raw)
        names = [str(name) for name in entry["Layers"] or []]
    except (ValueError, KeyError, TypeError) as error:
        raise ArchiveMalformed(
            f"the saved image's manifest.json is not understood: {error}"
        ) from error
    layers = []
    for number, name in enumerate(names):
        member = locate(name)
        layer = Layer(spool, member.data_offset, member.size)
        layers.append(_plain(layer, scratch / f"layer-{number}.tar"))
    return SavedImage(config, Digest.of(raw), layers)


def _plain(layer: Layer, target: Path) -> Layer:
    """The layer uncompressed."""
    head = os.pread(layer.file.fileno(), 4, layer.start)
    if head == _ZSTD:
        raise Unsupported("a layer is compressed with zstd, which docker save does not write")
    if not head.startswith(_GZIP):
        return layer
    with gzip.open(layer.open()) as packed, target.open("wb") as out:
        shutil.copyfileobj(packed, out, 1 << 20)
    file = target.open("rb")
    return Layer(file, 0, target.stat().st_size)
