"""
`gear images`: the Gear images that are known here, and where they are.

One line an index: the same name may stand for another index in the catalog
than in a build folder or on a node, and that must show.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gear_plugin.catalog import ImageRecord
from gear_plugin.digest import Digest
from gear_plugin.errors import BadName, GearError, ImageNotFound, SourceUnavailable
from gear_plugin.jobs.folder import BuildFolder
from gear_plugin.layers import InstalledImage, installed_images
from gear_plugin.names import ImageId


@dataclass(frozen=True, slots=True)
class ListedImage:
    """One Gear image; sizes in bytes, uncompressed, each content counted once."""

    image: str
    """The original's name, as `gear build` was given it."""
    gear_image: str
    index: str
    """`sha256:…` of its index."""
    objects: int
    size_bytes: int
    created_s: int | None
    """When it was built, Unix time; None: not known here."""
    pushed: bool = False
    """The catalog has it."""
    built: bool = False
    """It was built on this machine, and its files are still in the build folder."""
    installed: bool = False
    """It is on this node: pulled, or shown by `gear fs`."""
    cached_objects: int | None = None
    """How many of its objects are in this node's cache; None: it is not on the node."""
    cached_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """What was found, by name; *problems* are what could not be looked at, a line each."""

    images: list[ListedImage]
    problems: list[str]


def list_images(records: Iterable[ImageRecord], root: Path, nodes: Sequence[Path]) -> Listing:
    """
    Merge the catalog's *records*, the builds below *root*, and the images on
    the *nodes* (their main folders).
    """
    merge = _Merge()
    for record in records:
        merge.add(_from_record(record))
    merge.add_all(_builds(root))
    for node in dict.fromkeys(nodes):
        merge.add_all(_installed(node))
    images = sorted(merge.images.values(), key=lambda image: (image.gear_image, image.index))
    return Listing(images, merge.problems)


class _Merge:
    """Images by name and index, and what went wrong."""

    def __init__(self) -> None:
        self.images: dict[tuple[str, str], ListedImage] = {}
        self.problems: list[str] = []

    def add_all(self, found: Iterator[ListedImage | GearError]) -> None:
        for image in found:
            if isinstance(image, GearError):
                self.problems.append(str(image))
            else:
                self.add(image)

    def add(self, image: ListedImage) -> None:
        key = image.gear_image, image.index
        known = self.images.setdefault(key, image)
        self.images[key] = replace(
            known,
            created_s=image.created_s if known.created_s is None else known.created_s,
            pushed=known.pushed or image.pushed,
            built=known.built or image.built,
            installed=known.installed or image.installed,
            cached_objects=_larger(known.cached_objects, image.cached_objects),
            cached_bytes=_larger(known.cached_bytes, image.cached_bytes),
        )


def _larger(one: int | None, other: int | None) -> int | None:
    return max((count for count in (one, other) if count is not None), default=None)


def _from_record(record: ImageRecord) -> ListedImage:
    return ListedImage(
        image=str(record.image),
        gear_image=str(record.gear_image),
        index=str(record.index),
        objects=record.objects,
        size_bytes=record.size_bytes,
        created_s=record.created_s,
        pushed=True,
    )


def _builds(root: Path) -> Iterator[ListedImage | GearError]:
    try:
        folders = sorted((root / "build").iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        yield _unreadable(error)
        return
    for path in folders:
        try:
            ImageId.from_folder(path.name)
            folder = BuildFolder(path)
            built = folder.glance()
            if built is not None:
                yield ListedImage(
                    image=built.image,
                    gear_image=built.gear_image,
                    index=str(Digest.from_hex(built.index)),
                    objects=built.objects,
                    size_bytes=built.object_bytes,
                    created_s=folder.built_s(),
                    built=True,
                )
        except BadName:
            continue  # locks, builds under way, and what people put there
        except GearError as error:
            yield error
        except OSError as error:
            yield _unreadable(error)


def _installed(root: Path) -> Iterator[ListedImage | GearError]:
    try:
        images = list(installed_images(root))
    except SourceUnavailable as error:
        yield error
        return
    for image in images:
        try:
            yield _on_node(image)
        except ImageNotFound:
            continue  # it left the node meanwhile
        except SourceUnavailable as error:
            yield error
            return  # the same is true of the others
        except GearError as error:
            yield error


def _on_node(image: InstalledImage) -> ListedImage:
    manifest, cached = image.manifest(), image.cached()
    return ListedImage(
        image=str(manifest.image),
        gear_image=str(manifest.image.gear),
        index=f"sha256:{image.index}",
        objects=manifest.totals.objects,
        size_bytes=manifest.totals.object_bytes,
        created_s=None,
        installed=True,
        cached_objects=cached.objects,
        cached_bytes=cached.size_bytes,
    )


def _unreadable(error: OSError) -> GearError:
    return SourceUnavailable(f"cannot read {error.filename} ({error.strerror}); run it as root")
