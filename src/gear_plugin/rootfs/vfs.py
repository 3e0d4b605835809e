"""
What the node's FUSE filesystem means, with no FUSE in it.

    /                        inode 1
    /objects/<image>/<shard>/<rest>   a *trigger*: looking a name up has the
                             object fetched, and then answers "not there"
    /error/<anything>        every look-up is an input/output error
    /trees/<image>/...       the image's whole tree (`trees.py`)

overlayfs asks its data-only layers in order: `public/`, this tree's
`objects/<image>/`, `private/<image>/`, this tree's `error/`.  A look-up that
comes here means that `public/` lacks the object; when it returns, the object
is in `private/<image>/`, where overlayfs goes next and finds a plain file.
If it could not be fetched, overlayfs arrives at `error/`: a failure of the
network must not look like a file that does not exist.

No name below a shard ever exists here, so nothing that a container opens
through triggers is served by FUSE, and nothing it holds open breaks when this
process dies.

One directory per image: an object is fetched only for an image whose index
names it, so no index can reach the content of another image.
Safe from any thread.
"""

from __future__ import annotations

import logging
import stat
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from gear_plugin.digest import SHARD_HEX_DIGITS, Digest
from gear_plugin.errors import BadDigest, GearError
from gear_plugin.image import NO_XATTRS, Status

log = logging.getLogger(__name__)

ROOT, OBJECTS, ERROR, TREES = 1, 2, 3, 4
SHARDS = 16**SHARD_HEX_DIGITS
_IMAGE_STRIDE = 2 * SHARDS
"""Image number n (from 1) is the inode n * stride, its shards the inodes just above."""
FIRST_TREE_INODE = 1 << 40
"""The inodes of trees are above all others: 2**27 images would have to be met first."""

_DIRECTORY = Status(stat.S_IFDIR | 0o755, 0, 0, 0, 0, 2, (0, 0))


class Members(Protocol):
    """The objects of one image."""

    def __contains__(self, digest: Digest, /) -> bool: ...


class Lookup:
    """What a look-up found."""

    @dataclass(frozen=True, slots=True)
    class Inode:
        """An inode of this tree; it never changes."""

        inode: int

    class Never:
        """No such name, now and for ever."""

    class Absent:
        """No such name, now; ask again each time."""

    class Failed:
        """An input/output error."""


Found = Lookup.Inode | Lookup.Never | Lookup.Absent | Lookup.Failed
NEVER, ABSENT, FAILED = Lookup.Never(), Lookup.Absent(), Lookup.Failed()


class Filesystem(Protocol):
    """
    A read-only filesystem whose inodes never change; the root is ROOT.

    Only `lookup` and `open` may wait.  Inodes are those that `lookup` or
    `entries` gave out; any other is a KeyError or IndexError.
    """

    @property
    def finished(self) -> int:
        """Look-ups finished so far, about; a sign of life."""
        ...

    def lookup(self, parent: int, name: bytes) -> Found:
        """Look *name* up in the directory *parent*."""
        ...

    def status(self, inode: int) -> Status:
        """The metadata of *inode*."""
        ...

    def entries(self, inode: int) -> Sequence[tuple[bytes, int]]:
        """The names in a directory with their inodes, in an order that stays."""
        ...

    def target(self, inode: int) -> bytes:
        """The text of a symbolic link."""
        ...

    def xattrs(self, inode: int) -> Mapping[bytes, bytes]:
        """The extended attributes of *inode*."""
        ...

    def open(self, inode: int) -> int:
        """A descriptor of a regular file's content, EMPTY if it has none; GearError, OSError."""
        ...


EMPTY = -1
"""Stands for the handle of an empty file, which has no object."""


class Trees(Protocol):
    """What LazyTree needs of `trees.ImageTrees`."""

    def image(self, image: str) -> Found: ...
    def lookup(self, inode: int, name: bytes) -> Found: ...
    def status(self, inode: int) -> Status: ...
    def entries(self, inode: int) -> list[tuple[bytes, int]]: ...
    def target(self, inode: int) -> bytes: ...
    def xattrs(self, inode: int) -> Mapping[bytes, bytes]: ...
    def open(self, inode: int) -> int: ...


class LazyTree:
    """
    The tree above.

    *members_of* gives the objects of an image that was applied on this node
    (None: unknown image); *fetch* returns once an object is in the image's
    private folder and raises GearError if it cannot be brought there;
    *trees* are the whole images.
    """

    def __init__(
        self,
        members_of: Callable[[str], Members | None],
        fetch: Callable[[str, Digest], None],
        trees: Trees,
    ) -> None:
        self._members_of = members_of
        self._fetch = fetch
        self._trees = trees
        self._lock = threading.Lock()
        self._numbers: dict[str, int] = {}
        self._images: list[tuple[str, Members]] = []
        self.finished = 0

    def lookup(self, parent: int, name: bytes) -> Found:
        """Look *name* up in the directory *parent*; may wait for a fetch."""
        if parent >= FIRST_TREE_INODE:
            self.finished += 1
            return self._trees.lookup(parent, name)
        if parent == ROOT:
            inode = {b"objects": OBJECTS, b"error": ERROR, b"trees": TREES}.get(name)
            return ABSENT if inode is None else Lookup.Inode(inode)
        if parent == ERROR:
            return FAILED
        if parent == TREES:
            return self._trees.image(name.decode("ascii", "replace"))
        if parent == OBJECTS:
            return self._lookup_image(name)
        number, place = divmod(parent, _IMAGE_STRIDE)
        if place == 0:
            return self._lookup_shard(parent, name)
        self._trigger(number, place - 1, name)
        self.finished += 1
        return ABSENT

    def status(self, inode: int) -> Status:
        """The metadata of *inode*."""
        return self._trees.status(inode) if inode >= FIRST_TREE_INODE else _DIRECTORY

    def entries(self, inode: int) -> Sequence[tuple[bytes, int]]:
        """Of a tree's directory; triggers have no listing."""
        return self._trees.entries(inode) if inode >= FIRST_TREE_INODE else ()

    def target(self, inode: int) -> bytes:
        """The text of a tree's symbolic link."""
        return self._trees.target(inode)

    def xattrs(self, inode: int) -> Mapping[bytes, bytes]:
        """Of a tree's inode; triggers have none."""
        return self._trees.xattrs(inode) if inode >= FIRST_TREE_INODE else NO_XATTRS

    def open(self, inode: int) -> int:
        """Open a tree's regular file; may wait for a fetch."""
        return self._trees.open(inode)

    def _lookup_image(self, name: bytes) -> Found:
        image = name.decode("ascii", "replace")
        with self._lock:
            number = self._numbers.get(image)
            if number is None:
                members = self._members_of(image)
                if members is None:
                    return ABSENT
                self._images.append((image, members))
                number = self._numbers[image] = len(self._images)
        return Lookup.Inode(number * _IMAGE_STRIDE)

    @staticmethod
    def _lookup_shard(image_inode: int, name: bytes) -> Found:
        text = name.decode("ascii", "replace")
        if len(text) != SHARD_HEX_DIGITS or any(c not in "0123456789abcdef" for c in text):
            return ABSENT
        return Lookup.Inode(image_inode + 1 + int(text, 16))

    def _trigger(self, number: int, shard: int, name: bytes) -> None:
        image, members = self._images[number - 1]
        try:
            digest = Digest.from_hex(f"{shard:0{SHARD_HEX_DIGITS}x}" + name.decode("ascii"))
        except (BadDigest, UnicodeDecodeError):
            return
        if digest not in members:
            log.warning("image %s asked for %s, which its index does not name", image[:12], digest)
            return
        try:
            self._fetch(image, digest)
        except GearError as error:
            log.warning("%s for image %s: %s", digest, image[:12], error)
