"""
Finding a Gear image's index by the image's name, wherever it is.

`locate_index` asks sources in their order and hands out files that were
checked: those of a node were when they were installed, all others are by the
checker process (`confined.check`) before anybody reads them.  What a source is
and how it is asked: `index_sources`.
"""

from __future__ import annotations

import logging
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gear_plugin.errors import (
    Damaged,
    GearError,
    ImageNotFound,
    IndexDamaged,
    SourceUnavailable,
    Unavailable,
    Unsupported,
)
from gear_plugin.image import INDEX_NAME, MANIFEST_NAME, Manifest, Tree, read_erofs
from gear_plugin.layers import check_layer
from gear_plugin.names import ImageId

log = logging.getLogger(__name__)

_LEVELS = {True: logging.WARNING, False: logging.DEBUG}
"""Of what went wrong at one place while another may have the index: damaged, or anything else."""


@dataclass(frozen=True, slots=True)
class IndexFiles:
    """
    An index as files.

    `objects` is its object table; None: these files come from outside and
    were not checked yet.
    """

    erofs: Path
    manifest: Path
    objects: Path | None = None

    @classmethod
    def in_layer(cls, folder: Path) -> IndexFiles:
        """Those of the index layer that is unpacked in *folder*, unchecked."""
        return cls(folder / INDEX_NAME, folder / MANIFEST_NAME)


class IndexSource(Protocol):
    """A place where indexes are found by name."""

    @property
    def name(self) -> str:
        """For messages, such as `node /var/lib/gear`."""
        ...

    def find(self, gear_image: ImageId, scratch: Path) -> IndexFiles:
        """
        The index of *gear_image*; what has to be copied goes into *scratch*, an
        empty folder.  Unchecked files lie there as in an unpacked layer.

        Raises ImageNotFound, Unavailable, Damaged, Unsupported (not a Gear image).
        """
        ...


@dataclass(frozen=True, slots=True)
class Located:
    """
    A checked index as files, `objects` that of its object table.

    Its files may lie in the scratch folder, or be a node's own, which go when
    the image is removed there.
    """

    gear_image: ImageId
    erofs: Path
    objects: Path
    manifest_file: Path
    manifest: Manifest
    found_in: str
    """The source's name."""

    def tree(self) -> Tree:
        """All of the image's inodes; raises IndexDamaged."""
        with (
            self.erofs.open("rb") as file,
            mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as erofs,
        ):
            return read_erofs(erofs)


def locate_index(gear_image: ImageId, sources: Sequence[IndexSource], scratch: Path) -> Located:
    """
    The index of *gear_image* from the first of *sources* that has a sound one.

    *scratch* is an empty folder; it holds what had to be copied, and must
    outlive the result.

    Raises BadName (not a Gear image's name), IndexDamaged (found, but every
    copy is damaged), SourceUnavailable (a source that may have it could not
    be asked), ImageNotFound; Unsupported (an image of that name is no Gear image).
    """
    _ = gear_image.original  # raises BadName
    failures: list[GearError] = []
    for number, source in enumerate(sources):
        folder = scratch / str(number)
        folder.mkdir()
        try:
            return _checked(gear_image, source, folder)
        except ImageNotFound as error:
            failures.append(error)
        except (Damaged, Unsupported, Unavailable) as error:
            log.log(_LEVELS[isinstance(error, Damaged)], "%s: %s", source.name, error)
            failures.append(error)
    reasons = "; ".join(str(failure) for failure in failures)
    for kind, raised in ((Damaged, IndexDamaged), (Unsupported, Unsupported)):
        if any(isinstance(failure, kind) for failure in failures):
            raise raised(reasons)
    if any(isinstance(failure, Unavailable) for failure in failures):
        raise SourceUnavailable(f"{gear_image} was not found: {reasons}")
    raise ImageNotFound(f"no Gear image {gear_image}: {reasons or 'nowhere to look'}")


def _checked(gear_image: ImageId, source: IndexSource, folder: Path) -> Located:
    found = source.find(gear_image, folder)
    objects = found.objects
    if objects is None:
        objects = folder / "objects"
        check_layer(folder, objects)
    try:
        raw = found.manifest.read_bytes()
    except FileNotFoundError as error:
        raise ImageNotFound(f"{source.name} no longer has {gear_image}") from error
    except OSError as error:
        raise SourceUnavailable(f"{source.name}: {error.strerror}: {error.filename}") from error
    manifest = Manifest.decode(raw)
    return Located(gear_image, found.erofs, objects, found.manifest, manifest, source.name)
