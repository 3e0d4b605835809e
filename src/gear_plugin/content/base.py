"""
The contract of every place where objects live.

An object is the content of one regular file, named by the digest of its
uncompressed bytes.  Nothing that a source says is trusted: whoever reads
verifies (`cache.publish` does).  `tests/contracts/test_object_store.py` runs
one suite over every implementation.

All methods may be called from any thread.  All may block for as long as the
medium behind them blocks (NFS: for ever); callers that must answer in time
call them from a thread that can be given up (`fetch`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gear_plugin.cluster import Member
from gear_plugin.digest import Digest

CHUNK_BYTES = 1 << 20
"""The most that a reader holds of one object at a time: 64 readers need 64 MiB."""


class ObjectSource(Protocol):
    """Something that hands out objects."""

    @property
    def name(self) -> str:
        """For logs and statistics, such as `store /var/lib/gear/nfs`."""
        ...

    def read(self, digest: Digest) -> AbstractContextManager[Iterator[bytes]]:
        """
        Open the object; the iterator gives its uncompressed bytes, in chunks of
        1 to CHUNK_BYTES bytes (an empty object gives none).

        The bytes are NOT verified.  Leaving the block frees everything, at
        whatever point the reader stopped.

        Raises, on entry or between chunks:
            ContentNotFound: this source does not have it (only on entry).
            SourceUnavailable: it cannot say, or cannot go on.
            ContentCorrupt: what is kept under that name cannot be decoded.
        """
        ...


Record = tuple[Digest, Iterator[bytes] | None]
"""One object of several: its bytes, as `ObjectSource.read` gives them; None: not to be had."""


@dataclass(frozen=True, slots=True)
class Group:
    """Objects that one request to one node brings."""

    member: Member
    digests: tuple[Digest, ...]
    """Distinct; they come in this order."""


class Peers(ObjectSource, Protocol):
    """
    Other nodes, which are asked before the store.

    Whoever reads tells what was wrong with the bytes by leaving the block with
    ContentCorrupt.
    """

    def asks(self, digest: Digest) -> bool:
        """Whether there is a node now that `read` would ask; quick."""
        ...

    def read(
        self, digest: Digest, size_bytes: int | None = None
    ) -> AbstractContextManager[Iterator[bytes]]:
        """As in ObjectSource; *size_bytes* is what the caller knows of it."""
        ...

    def groups(self, digests: Iterable[Digest]) -> list[Group]:
        """Who can be asked now for which of *digests*; those that would be alone are left out."""
        ...

    def read_many(self, group: Group) -> AbstractContextManager[Iterator[Record]]:
        """
        Open the objects of *group*, one of `groups` or a part of one.

        Bytes that were not read are skipped.  Raises SourceUnavailable, on
        entry or anywhere between.
        """
        ...


@dataclass(frozen=True, slots=True)
class Put:
    """What became of an object that was put."""

    is_new: bool
    """False: the store had it already."""
    stored_bytes: int
    """What it takes in the store (compressed)."""


class ObjectStore(ObjectSource, Protocol):
    """A source that objects can be put into, and that can say what it holds."""

    def has(self, digest: Digest) -> bool:
        """Whether the object is there; raises SourceUnavailable when it cannot say."""
        ...

    def put(self, digest: Digest, path: Path) -> bool:
        """
        Store the content of the local file *path*, durably; True if it was new.

        Of several writers of one object exactly one gets True, and all may
        rely on it when they return.  The content is verified on its way in;
        an object that is there already is not read.

        Raises ContentCorrupt when *path* does not hash to *digest* (nothing is
        stored), StorageFull, SourceUnavailable; OSError when *path* cannot be read.
        """
        ...

    def put_all(
        self, objects: Sequence[tuple[Digest, Path]], advance: Callable[[int], None]
    ) -> list[Put]:
        """
        `put` each, all durable on return; many small ones together cost far less.

        The digests must be distinct; the answers are in their order.
        *advance* gets the bytes of content (uncompressed) as they are done.
        When it raises, as `put` does, any of the objects may have been stored.
        """
        ...

    def sweep(self) -> int:
        """Remove what writers that died long ago have left; how many leftovers that was."""
        ...

    def list(self) -> Iterator[Digest]:
        """Every object once, in no order; those that come or go meanwhile may be missed."""
        ...

    def delete(self, digest: Digest) -> bool:
        """Remove the object; False if it was not there.  Readers that opened it go on."""
        ...

    def size(self, digest: Digest) -> int:
        """The bytes that it takes in the store (compressed); raises ContentNotFound."""
        ...
