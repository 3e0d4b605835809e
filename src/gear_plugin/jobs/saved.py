"""
Reading what `docker save` writes: layers and configuration of one image.

Two layouts are understood, both by their `manifest.json`: engines before 25
(`<id>/layer.tar`, equal layers as symlinks) and later ones (`blobs/sha256/`),
whose layers may be compressed when the engine keeps them so.
Layers are regions of the one spool file, never copied unless compressed.
Source: moby image/tarexport/save.go (v20.10.24 and v25).
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from gear_plugin.digest import Digest
from gear_plugin.errors import ArchiveMalformed
from gear_plugin.image import Kind, Member, TarReader

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_SYMLINK_LIMIT = 16
_HEADERS_BYTES = 1 << 18
"""What a layer's scan reads at once: most files and their headers lie within it."""
_COPY_BYTES = 1 << 20


class Region(io.RawIOBase):
    """*size* bytes of the open file *handle* from *start*, as a file; one thread at a time."""

    def __init__(self, handle: int, start: int, size: int) -> None:
        super().__init__()
        self._handle = handle
        self._start = start
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        wanted = min(len(buffer), max(self._size - self._at, 0))
        count = os.preadv(self._handle, [memoryview(buffer)[:wanted]], self._start + self._at)
        self._at += count
        return count


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's plain tar: *size* bytes of the open file *handle* from *start*."""

    handle: int
    start: int
    size: int

    def open(self) -> io.BufferedReader:
        """The layer as a file of its own."""
        return io.BufferedReader(Region(self.handle, self.start, self.size), _HEADERS_BYTES)


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


@contextlib.contextmanager
def opened(spool: Path, scratch: Path) -> Iterator[SavedImage]:
    """
    The only image in the archive *spool*, readable during the block.

    Compressed layers are unpacked into the folder *scratch*.
    Raises ArchiveMalformed, Unsupported.
    """
    with contextlib.ExitStack() as files:
        file = files.enter_context(spool.open("rb"))
        archive = _Archive(file)
        config, digest, names = archive.description()
        layers = []
        for number, name in enumerate(names):
            member = archive.locate(name)
            layer = Layer(file.fileno(), member.data_offset, member.size)
            unpack = _unpacker(layer)
            if unpack is not None:
                target = scratch / f"layer-{number}.tar"
                unpack(layer, target)
                plain = files.enter_context(target.open("rb"))
                layer = Layer(plain.fileno(), 0, target.stat().st_size)
            layers.append(layer)
        yield SavedImage(config, digest, layers)


class _Archive:
    """The outer tar."""

    def __init__(self, file: BinaryIO) -> None:
        self._handle = file.fileno()
        self._members = {member.name: member for member in TarReader(file, seekable=True)}

    def locate(self, name: str) -> Member:
        """The file *name*, symlinks followed; raises ArchiveMalformed."""
        path = name.encode(errors="replace")
        for _ in range(_SYMLINK_LIMIT):
            member = self._members.get(path)
            if member is None:
                break
            if member.kind is not Kind.SYMLINK:
                return member
            path = os.path.normpath(os.path.join(os.path.dirname(path), member.link))
        raise ArchiveMalformed(f"the saved image names {name}, which it does not hold")

    def description(self) -> tuple[dict[str, Any], Digest, list[str]]:
        """Configuration, its digest, and the layers' names."""
        try:
            (entry,) = json.loads(self._content("manifest.json"))
            raw = self._content(str(entry["Config"]))
            config = json.loads(raw)
            if not isinstance(config, dict):
                raise ValueError("the configuration is no object")
            names = [str(name) for name in entry["Layers"] or []]
        except (ValueError, KeyError, TypeError) as error:
            raise ArchiveMalformed(
                f"the saved image's manifest.json is not understood: {error}"
            ) from error
        return config, Digest.of(raw), names

    def _content(self, name: str) -> bytes:
        member = self.locate(name)
        return os.pread(self._handle, member.size, member.data_offset)


def _unpacker(layer: Layer) -> Callable[[Layer, Path], None] | None:
    """What unpacks the layer; None: it is plain."""
    head = os.pread(layer.handle, 4, layer.start)
    if head.startswith(_GZIP):
        return _gunzip
    return _unzstd if head == _ZSTD else None


def _gunzip(layer: Layer, target: Path) -> None:
    try:
        with layer.open() as raw, gzip.open(raw) as packed, target.open("wb") as out:
            shutil.copyfileobj(packed, out, _COPY_BYTES)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ArchiveMalformed(f"a saved layer is no whole gzip file: {error}") from error


def _unzstd(layer: Layer, target: Path) -> None:
    try:
        with layer.open() as raw, target.open("wb") as out:
            reader = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
            shutil.copyfileobj(reader, out, _COPY_BYTES)
    except zstandard.ZstdError as error:
        raise ArchiveMalformed(f"a saved layer is no whole zstd file: {error}") from error
