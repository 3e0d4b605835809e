"""
What the lazy layer means, with no FUSE in it.

    /                        inode 1
    /objects/<image>/<shard>/<rest>   a *trigger*: looking a name up has the
                             object fetched, and then answers "not there"
    /error/<anything>        every look-up is an input/output error

overlayfs asks its data-only layers in order: `public/`, this tree's
`objects/<image>/`, `private/<image>/`, this tree's `error/`.  A look-up that
comes here means that `public/` lacks the object; when it returns, the object
is in `private/<image>/`, where overlayfs goes next and finds a plain file.
If it could not be fetched, overlayfs arrives at `error/`: a failure of the
network must not look like a file that does not exist.

No name below a shard ever exists here, so nothing that a container opens is
served by FUSE, and nothing it holds open breaks when this process dies.

One directory per image: an object is fetched only for an image whose index
names it, so no index can reach the content of another image.
Safe from any thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from gear_plugin.digest import SHARD_HEX_DIGITS, Digest
from gear_plugin.errors import BadDigest, GearError

log = logging.getLogger(__name__)

ROOT, OBJECTS, ERROR = 1, 2, 3
SHARDS = 16**SHARD_HEX_DIGITS
_IMAGE_STRIDE = 2 * SHARDS
"""Image number n (from 1) is the inode n * stride, its shards the inodes just above."""


class Members(Protocol):
    """The objects of one image."""

    def __contains__(self, digest: Digest, /) -> bool: ...


class Lookup:
    """What a look-up found."""

    @dataclass(frozen=True, slots=True)
    class Directory:
        """A directory of this tree; it never changes."""

        inode: int

    class Absent:
        """No such name, now; ask again each time."""

    class Failed:
        """An input/output error."""


Found = Lookup.Directory | Lookup.Absent | Lookup.Failed
ABSENT, FAILED = Lookup.Absent(), Lookup.Failed()


class LazyTree:
    """
    The tree above.

    *members_of* gives the objects of an image that was applied on this node
    (None: unknown image); *fetch* returns once an object is in the image's
    private folder and raises GearError if it cannot be brought there.
    """

    def __init__(
        self,
        members_of: Callable[[str], Members | None],
        fetch: Callable[[str, Digest], None],
    ) -> None:
        self._members_of = members_of
        self._fetch = fetch
        self._lock = threading.Lock()
        self._numbers: dict[str, int] = {}
        self._images: list[tuple[str, Members]] = []
        self.finished = 0
        """Look-ups finished so far, about; a sign of life."""

    def lookup(self, parent: int, name: bytes) -> Found:
        """Look *name* up in the directory *parent*; may wait for a fetch."""
        if parent == ROOT:
            inode = {b"objects": OBJECTS, b"error": ERROR}.get(name)
            return ABSENT if inode is None else Lookup.Directory(inode)
        if parent == ERROR:
            return FAILED
        if parent == OBJECTS:
            return self._lookup_image(name)
        number, place = divmod(parent, _IMAGE_STRIDE)
        if place == 0:
            return self._lookup_shard(parent, name)
        self._trigger(number, place - 1, name)
        self.finished += 1
        return ABSENT

    def is_directory(self, inode: int) -> bool:
        """Whether *inode* was ever given out by `lookup`."""
        number, place = divmod(inode, _IMAGE_STRIDE)
        if number == 0:
            return inode in (ROOT, OBJECTS, ERROR)
        return bool(number <= len(self._images) and place <= SHARDS)

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
        return Lookup.Directory(number * _IMAGE_STRIDE)

    @staticmethod
    def _lookup_shard(image_inode: int, name: bytes) -> Found:
        text = name.decode("ascii", "replace")
        if len(text) != SHARD_HEX_DIGITS or any(c not in "0123456789abcdef" for c in text):
            return ABSENT
        return Lookup.Directory(image_inode + 1 + int(text, 16))

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
