"""
`gear inspect`: all that can be told of one Gear image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gear_plugin.catalog import ImageRecord
from gear_plugin.errors import GearError
from gear_plugin.image import ObjectTable
from gear_plugin.jobs.folder import BuildFolder
from gear_plugin.jobs.locate import Located
from gear_plugin.layers import Cached, cached


@dataclass(frozen=True, slots=True)
class LargeObject:
    """An object with digests of its chunks, which can be read before it is whole."""

    digest: str
    size_bytes: int
    chunks: int


@dataclass(frozen=True, slots=True)
class ImageReport:
    """One Gear image; sizes in bytes."""

    gear_image: str
    image: str
    """The original's name, as `gear build` was given it."""
    image_id: str
    """The original's image id."""
    platform: str
    found_in: str
    index: str
    """`sha256:…` of its index, which keys it on a node."""
    index_bytes: int
    manifest_bytes: int
    files: int
    directories: int
    others: int
    objects: int
    object_bytes: int
    large_objects: list[LargeObject]
    profile: list[str]
    """The objects that a start opens, in that order; empty: not known."""
    cached_objects: int | None
    """In this node's cache; None: this machine is no node, or only root can look."""
    cached_bytes: int | None
    built: str | None
    """The index in this machine's build folder; None: not built here."""
    pushed: str | None
    """The index in the catalog; None: it has none, or could not be asked."""
    config: Mapping[str, Any]
    """The original's whole configuration object (OCI image-spec, config.md)."""


def inspect(
    located: Located, root: Path, nodes: Sequence[Path], record: ImageRecord | None
) -> ImageReport:
    """
    Describe *located*.

    *root* holds builds, *nodes* are the main folders of nodes here, *record*
    is what the catalog says of the image.
    """
    manifest, totals = located.manifest, located.manifest.totals
    table = ObjectTable(located.objects.read_bytes())
    here = _cached(table, nodes)
    return ImageReport(
        gear_image=str(located.gear_image),
        image=str(manifest.image),
        image_id=str(manifest.image_digest),
        platform=manifest.platform,
        found_in=located.found_in,
        index=str(manifest.index_digest),
        index_bytes=located.erofs.stat().st_size,
        manifest_bytes=located.manifest_file.stat().st_size,
        files=totals.files,
        directories=totals.directories,
        others=totals.others,
        objects=totals.objects,
        object_bytes=totals.object_bytes,
        large_objects=[
            LargeObject(str(digest), table.size(digest) or 0, len(chunks))
            for digest, chunks in manifest.chunks.items()
        ],
        profile=[str(digest) for digest in manifest.profile],
        cached_objects=here.objects if here else None,
        cached_bytes=here.size_bytes if here else None,
        built=_built(located, root),
        pushed=str(record.index) if record else None,
        config=manifest.config,
    )


def _cached(table: ObjectTable, nodes: Sequence[Path]) -> Cached | None:
    """What the first node here that can be looked at has of it."""
    for node in nodes:
        try:
            if (node / "public").is_dir():
                return cached(node, table)
        except (GearError, PermissionError):
            continue
    return None


def _built(located: Located, root: Path) -> str | None:
    try:
        built = BuildFolder.of(root, located.gear_image.original).glance()
    except (GearError, OSError):
        return None
    return f"sha256:{built.index}" if built else None
