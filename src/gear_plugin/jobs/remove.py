"""
`gear rm`: a Gear image's record out of the catalog, and its build folder off this machine.

Its objects stay in the store, where others may need them, until `gear gc`; the
engine's image and the registry's stay too.

Crash windows: the record goes first; the folder is then renamed, and removed
under that name by the next build if this one did not get so far.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gear_plugin.catalog import Catalog, ImageRecord
from gear_plugin.errors import ImageNotFound
from gear_plugin.jobs.folder import BuildFolder
from gear_plugin.names import ImageId


@dataclass(frozen=True, slots=True)
class Removed:
    """What `gear rm` removed of one image."""

    image: str
    """The original's name."""
    gear_image: str
    record: bool
    """The catalog had it."""
    build: bool
    """It was built here."""
    objects: int
    """By its record: those that `gear gc` may now find unneeded."""
    size_bytes: int
    """Their content, uncompressed."""


def remove(name: ImageId, catalog: Catalog | None, root: Path) -> Removed:
    """
    Remove the image *name*, which is the Gear image's name or the original's.

    *catalog*: None if there is none.  Raises ImageNotFound (neither recorded
    nor built here), Conflict (being built or pushed now; nothing is removed),
    Unavailable, BadConfig.
    """
    image = name.original if name.is_gear else name
    folder = BuildFolder.of(root, image)
    with folder.held_for_removal() as is_built:
        record = _recorded(image, catalog)
        if catalog is not None:
            catalog.remove_image(image)
    if not (record or is_built):
        raise ImageNotFound(
            f"no image {image.gear}: neither in the catalog nor built in {folder.path.parent}; "
            "`gear images` lists what there is"
        )
    return Removed(
        image=str(image),
        gear_image=str(image.gear),
        record=record is not None,
        build=is_built,
        objects=record.objects if record else 0,
        size_bytes=record.size_bytes if record else 0,
    )


def _recorded(image: ImageId, catalog: Catalog | None) -> ImageRecord | None:
    try:
        return None if catalog is None else catalog.get_image(image)
    except ImageNotFound:
        return None
