"""
The contract of the metadata database: which images exist, and which content
stands behind each path of theirs.

`tests/contracts/test_catalog.py` runs one suite over every implementation.
All methods may be called from any thread, and raise Unavailable (TimedOut,
SourceUnavailable, StorageFull) when the database does not answer or is full.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from gear_plugin.digest import Digest
from gear_plugin.names import ImageId


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image that was pushed, named as `gear build` was given it."""

    image: ImageId
    gear_image: ImageId
    """The index image's name in the registry."""
    index: Digest
    """Of `index.erofs`: keys the image on every node."""
    original: Digest
    """The original's image id (digest of its configuration)."""
    manifest: Digest
    """Of `.gear/manifest`."""
    objects: int
    """Distinct objects."""
    size_bytes: int
    """Their content, each counted once, uncompressed."""
    created_s: int
    """When it was built, Unix time."""


class Catalog(Protocol):
    """Image records, and the object ids (OID) of each image with their content ids."""

    def put_image(self, record: ImageRecord, objects: Mapping[str, Digest]) -> None:
        """
        Record the image and all its objects (OID, 64 hex digits, to content).

        An older record of that name is replaced, and OIDs that it alone had
        are gone; those of *objects* are not loose any more.  Whatever happens
        meanwhile, a record that can be seen has all its objects.  Durable on
        return; safe to repeat.
        """
        ...

    def get_image(self, image: ImageId) -> ImageRecord:
        """The record of *image* (the original's name); raises ImageNotFound."""
        ...

    def list_images(self) -> list[ImageRecord]:
        """Every record, by name."""
        ...

    def remove_image(self, image: ImageId) -> bool:
        """Remove the record and its OIDs; False if there was none."""
        ...

    def resolve(self, oid: str) -> Digest:
        """
        The content of one path of one image; raises ContentNotFound, BadDigest.

        What an image that was pushed says comes before what `name_object` said.
        """
        ...

    def objects_of(self, image: ImageId) -> frozenset[Digest]:
        """The distinct objects that *image* needs; raises ImageNotFound."""
        ...

    def name_object(self, oid: str, digest: Digest) -> None:
        """
        Let *oid* stand for that content, without a record of an image: it is *loose*.

        So a push through a manager names its objects one by one, which keeps
        them from being collected, until `put_image` takes their names over.
        While an image has an OID of that name, its own content counts.  A
        later call replaces an earlier one.  Durable on return.  Raises BadDigest.
        """
        ...

    def loose_objects(self) -> frozenset[Digest]:
        """
        The content of all loose OIDs, which is in use as images' objects are.

        To be asked before the images: a name goes from here to an image's
        record, and who looks in that order misses none.
        """
        ...

    def close(self) -> None:
        """Free what is open; nothing may be called after it."""
        ...
