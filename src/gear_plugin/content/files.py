"""
Objects as plain files `<folder>/<3 hex>/<61 hex>`, to read from: a build's
`files/`, or a node's `public/` and `private/<image>/`.

Who reads need not be who writes: a file may go at any moment, and one that is
open reads on.  Safe from any thread.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from gear_plugin.content.base import CHUNK_BYTES
from gear_plugin.digest import Digest
from gear_plugin.errors import ContentNotFound, SourceUnavailable


class FileSource:
    """The objects below *folder*, which need not exist; *name* is for messages."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._folder = folder

    @contextlib.contextmanager
    def read(self, digest: Digest) -> Iterator[Iterator[bytes]]:
        try:
            handle = os.open(self._folder / digest.shard_path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ContentNotFound(f"{self.name} has no object {digest}") from error
        except OSError as error:
            raise SourceUnavailable(f"{self.name}, {digest}: {error.strerror}") from error
        try:
            yield self._chunks(digest, handle)
        finally:
            os.close(handle)

    def _chunks(self, digest: Digest, handle: int) -> Iterator[bytes]:
        try:
            wanted = min(CHUNK_BYTES, os.fstat(handle).st_size + 1)
            while chunk := os.read(handle, wanted):
                yield chunk
        except OSError as error:
            raise SourceUnavailable(f"{self.name}, {digest}: {error.strerror}") from error


class BuiltFiles:
    """What `gear build` has on this machine, in `<builds>/*/files`: also what was not pushed."""

    name = "builds of this machine"

    def __init__(self, builds: Path) -> None:
        self._builds = builds

    @contextlib.contextmanager
    def read(self, digest: Digest) -> Iterator[Iterator[bytes]]:
        for path in self._builds.glob(f"*/files/{digest.shard_path}"):
            with FileSource(self.name, path.parent.parent).read(digest) as chunks:
                yield chunks
            return
        raise ContentNotFound(f"no build of this machine has {digest}")
