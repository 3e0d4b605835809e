"""
Files by their names, in a tar or a folder, and stretches of them.

An image that lies on disk is read where it lies: a layer is a stretch of an
open file, wherever that is.  The stretches may be read from any threads, each
opened one by one thread at a time.
"""

from __future__ import annotations

import io
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from gear_plugin.digest import Digest
from gear_plugin.errors import ArchiveMalformed, BadInput
from gear_plugin.image import Kind, Member, TarReader

_SYMLINK_LIMIT = 16
_HEADERS_BYTES = 1 << 18
"""What a layer's scan reads at once: most files and their headers lie within it."""


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
class Stretch:
    """*size* bytes of the open file *handle* from *start*."""

    handle: int
    start: int
    size: int

    def open(self) -> io.BufferedReader:
        """The stretch as a file of its own."""
        return io.BufferedReader(Region(self.handle, self.start, self.size), _HEADERS_BYTES)

    def head(self, count: int) -> bytes:
        """The first *count* bytes, or as many as there are."""
        return os.pread(self.handle, min(count, self.size), self.start)

    def content(self, limit: int) -> bytes:
        """All of it; raises ArchiveMalformed if that is more than *limit* bytes, or cut short."""
        if self.size > limit:
            raise ArchiveMalformed(f"a description of {self.size} bytes; no tool writes such")
        data = os.pread(self.handle, self.size, self.start)
        if len(data) != self.size:
            raise ArchiveMalformed("the archive is cut short")
        return data


@dataclass(frozen=True, slots=True)
class PackedImage:
    """An image as it lies there; `blobs` are its layers from the lowest up, packed or not."""

    config: dict[str, Any]
    config_digest: Digest
    blobs: list[Stretch]


class Bundle(Protocol):
    """What an image archive and an image folder have in common."""

    def find(self, name: str) -> Stretch | None:
        """The regular file *name*; None: there is none."""
        ...


class TarBundle:
    """The files of an open, seekable tar; symbolic links among them are followed."""

    def __init__(self, file: BinaryIO) -> None:
        self._handle = file.fileno()
        self._members = {member.name: member for member in TarReader(file, seekable=True)}

    def find(self, name: str) -> Stretch | None:
        path = name.encode(errors="replace")
        for _ in range(_SYMLINK_LIMIT):
            member = self._members.get(path)
            if member is None:
                return None
            if member.kind is not Kind.SYMLINK:
                return self._stretch(member)
            path = os.path.normpath(os.path.join(os.path.dirname(path), member.link))
        return None

    def _stretch(self, member: Member) -> Stretch | None:
        if member.kind is not Kind.FILE:
            return None
        return Stretch(self._handle, member.data_offset, member.size)


class FolderBundle:
    """
    The files of a folder, opened when they are asked for and closed with *files*.

    Only for names that cannot lead out of it: an OCI layout's, which are made
    from digests.
    """

    def __init__(self, folder: Path, files: ExitStack) -> None:
        self._folder = folder
        self._files = files

    def find(self, name: str) -> Stretch | None:
        try:
            file = self._files.enter_context((self._folder / name).open("rb"))
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None
        except OSError as error:
            raise BadInput(f"cannot read {self._folder / name}: {error.strerror}") from error
        return Stretch(file.fileno(), 0, os.fstat(file.fileno()).st_size)


def need(bundle: Bundle, name: str, what: str) -> Stretch:
    """The file *name*; raises ArchiveMalformed if *what* names a file that it does not hold."""
    found = bundle.find(name)
    if found is None:
        raise ArchiveMalformed(f"{what} names {name[:200]}, which it does not hold")
    return found
