"""
`gear build`: an image from anywhere into a Gear image.

Peak memory grows with the number of files (about 0.8 KB each), not with their
size.  What is left on disk: `folder`.
"""

from __future__ import annotations

import gc
import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gear_plugin.digest import Digest
from gear_plugin.durable import storage_full
from gear_plugin.errors import BadInput, ImageNotFound, Unsupported
from gear_plugin.image import (
    INDEX_NAME,
    MANIFEST_NAME,
    Flattened,
    Manifest,
    TarReader,
    copy_layer,
    flatten,
    write_erofs_to,
)
from gear_plugin.jobs import dockerfile
from gear_plugin.jobs.contents import Chunks, store_contents
from gear_plugin.jobs.engine import Engine
from gear_plugin.jobs.folder import BuildFolder, BuildResult
from gear_plugin.jobs.loadable import image_config, write_archive
from gear_plugin.jobs.output import Output, check_output, opened_output, output_name
from gear_plugin.jobs.platforms import Platform, choose
from gear_plugin.jobs.progress import Progress
from gear_plugin.jobs.saved import SavedImage
from gear_plugin.jobs.sources import EngineSource, Source
from gear_plugin.names import ImageId


def build(
    image: ImageId,
    engine: Engine | None,
    root: Path,
    progress: Progress,
    *,
    source: Source | None = None,
    output: Output | None = None,
    platform: Platform | None = None,
) -> BuildResult:
    """
    Turn *image* of *source* (None: of *engine*) into `<image>-gear`.

    The result is loaded into *engine* (None: it is not), written to *output*
    as an archive that `docker load` takes (None: it is not), and in any case
    stands below *root*, where `gear push` finds it.  *platform*: what the
    image has to be for; None: whatever *source* chose.

    Safe to repeat: the same image gives the same Gear image, byte for byte.

    Raises BadInput (a Gear image already; *output* cannot be written),
    BadConfig (*root* cannot be written), ImageNotFound, Unavailable,
    AccessDenied, Damaged, Unsupported, StorageFull, Conflict (being built or
    pushed now); nothing half-made is left.
    """
    begun = time.monotonic()
    if output is not None:
        check_output(output)
    if source is None:
        assert engine is not None, "an image has to come from somewhere"
        source = EngineSource(engine, image)
    folder = BuildFolder.of(root, image)
    with storage_full(folder.path), folder.replaced() as fresh, _no_garbage_collection():
        with source.opened(fresh.path, progress) as saved:
            _check_platform(image, saved, platform)
            merged = _merge(image, saved, progress)
            total = sum(content.size for content in merged.contents)
            progress.step(f"hashing {len(merged.contents)} files", total_bytes=total)
            chunks = store_contents(merged.contents, saved.layers, fresh.files, progress)
        progress.step("writing the index")
        merged.contents.clear()
        manifest = _write_index(image, saved, merged, chunks, fresh)
        layer = digest_of_file(fresh.index_tar)
        config = image_config(saved.config, layer)
        fresh.config.write_bytes(config)
        if engine is not None:
            archive = fresh.path / "archive"
            with archive.open("wb") as out:
                write_archive(image.gear, config, fresh.index_tar, layer, out)
            progress.step(f"loading {image.gear} into the engine")
            engine.load(archive)
        if output is not None:
            progress.step(f"writing {output_name(output)}")
            with opened_output(output) as out:
                write_archive(image.gear, config, fresh.index_tar, layer, out)
        result = BuildResult(
            image=str(image),
            gear_image=str(image.gear),
            gear_image_id=str(Digest.of(config)),
            layer=str(layer),
            index=manifest.index_digest.hex,
            manifest=Digest.of(manifest.encode()).hex,
            original_id=str(saved.config_digest),
            original_bytes=sum(saved_layer.size for saved_layer in saved.layers),
            layers=len(saved.layers),
            files=manifest.totals.files,
            directories=manifest.totals.directories,
            objects=manifest.totals.objects,
            object_bytes=manifest.totals.object_bytes,
            index_bytes=fresh.index_tar.stat().st_size,
            seconds=round(time.monotonic() - begun, 3),
            platform=saved.platform,
            source=source.place,
            loaded=engine is not None,
            output=output_name(output) if output is not None else None,
        )
        fresh.write_result(result)
    return result


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """
    A tree of a million inodes has no cycles, and the collector looks at all of
    them again and again: a fifth of the time of merging.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _check_platform(image: ImageId, saved: SavedImage, wanted: Platform | None) -> None:
    found = Platform.from_json(saved.config)
    if found is not None and found.os != "linux":
        raise Unsupported(f"{image} is for {found}; Gear carries images for Linux")
    if wanted is not None and (found is None or choose(wanted, [found]) is None):
        raise ImageNotFound(f"{image} is for {found or 'no known platform'}, not for {wanted}")


def _merge(image: ImageId, source: SavedImage, progress: Progress) -> Flattened:
    """The image's one tree; raises BadInput when it is a Gear image, or stands on one."""
    progress.step(f"merging {len(source.layers)} layers")
    merged = flatten([TarReader(layer.open(), seekable=True) for layer in source.layers])
    if any(merged.tree.lookup(name.encode()) for name in (INDEX_NAME, MANIFEST_NAME)):
        raise BadInput(
            f"{image} is a Gear image already, or stands on one; build from an ordinary image"
        )
    return merged


def _write_index(
    image: ImageId,
    source: SavedImage,
    merged: Flattened,
    chunks: Chunks,
    folder: BuildFolder,
) -> Manifest:
    """Write the index layer and the Dockerfile."""
    erofs = folder.path / "index.erofs"
    with erofs.open("wb") as out:
        write_erofs_to(merged.tree, out)
    manifest = Manifest(
        image=image,
        image_digest=source.config_digest,
        platform=source.platform,
        config=source.config,
        totals=merged.tree.totals(),
        index_digest=digest_of_file(erofs),
        chunks=chunks,
    )
    with folder.index_tar.open("wb") as out, erofs.open("rb") as index:
        copy_layer(index, erofs.stat().st_size, manifest.encode(), out)
    folder.dockerfile.write_text(dockerfile.text(source.config, folder.index_tar.name))
    return manifest


def digest_of_file(path: Path) -> Digest:
    """The digest of a file's content."""
    with path.open("rb") as file:
        return Digest(hashlib.file_digest(file, "sha256").digest())
