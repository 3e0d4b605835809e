"""
`gear build`: a Docker image into a Gear image.

Peak memory grows with the number of files (about 1.5 KB each), not with their
size.  What is left on disk: `folder`.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from gear_plugin.digest import Digest
from gear_plugin.durable import storage_full
from gear_plugin.errors import BadInput
from gear_plugin.image import (
    INDEX_NAME,
    MANIFEST_NAME,
    Flattened,
    Manifest,
    TarReader,
    flatten,
    write_erofs,
    write_layer,
)
from gear_plugin.jobs import dockerfile, saved
from gear_plugin.jobs.contents import Chunks, store_contents
from gear_plugin.jobs.engine import Engine
from gear_plugin.jobs.folder import BuildFolder, BuildResult
from gear_plugin.jobs.loadable import write_archive
from gear_plugin.jobs.progress import Progress
from gear_plugin.names import ImageId


def build(image: ImageId, engine: Engine, root: Path, progress: Progress) -> BuildResult:
    """
    Turn *image* of *engine* into `<image>-gear`, loaded into the same engine.

    Safe to repeat: the same image gives the same Gear image, byte for byte.

    Raises BadInput (a Gear image already), BadConfig (*root* cannot be
    written), ImageNotFound, EngineUnavailable, ArchiveMalformed, Unsupported,
    StorageFull, Conflict (being built or pushed now); nothing half-made is left.
    """
    begun = time.monotonic()
    found = engine.inspect(image)
    folder = BuildFolder.of(root, image)
    with storage_full(folder.path), folder.replaced() as fresh:
        spool = fresh.path / "spool"
        progress.step(f"saving {image} from the engine", total_bytes=int(found.get("Size") or 0))
        engine.export(image, spool, progress.advance)
        with saved.opened(spool, fresh.path) as source:
            merged = _merge(image, source, progress)
            total = sum(content.size for content in merged.contents)
            progress.step(f"hashing {len(merged.contents)} files", total_bytes=total)
            chunks = store_contents(merged.contents, source.layers, fresh.files, progress)
        spool.unlink()
        progress.step("writing the index")
        manifest = _write_index(image, source, merged, chunks, fresh)
        layer = digest_of_file(fresh.index_tar)
        archive = fresh.path / "archive"
        image_id = write_archive(image.gear, source.config, fresh.index_tar, layer, archive)
        progress.step(f"loading {image.gear} into the engine")
        engine.load(archive)
        result = BuildResult(
            image=str(image),
            gear_image=str(image.gear),
            gear_image_id=str(image_id),
            layer=str(layer),
            index=manifest.index_digest.hex,
            manifest=Digest.of(manifest.encode()).hex,
            original_id=str(source.config_digest),
            original_bytes=sum(saved_layer.size for saved_layer in source.layers),
            layers=len(source.layers),
            files=manifest.totals.files,
            directories=manifest.totals.directories,
            objects=manifest.totals.objects,
            object_bytes=manifest.totals.object_bytes,
            index_bytes=fresh.index_tar.stat().st_size,
            seconds=round(time.monotonic() - begun, 3),
        )
        fresh.write_result(result)
    return result


def _merge(image: ImageId, source: saved.SavedImage, progress: Progress) -> Flattened:
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
    source: saved.SavedImage,
    merged: Flattened,
    chunks: Chunks,
    folder: BuildFolder,
) -> Manifest:
    """Write the index layer and the Dockerfile."""
    erofs = write_erofs(merged.tree)
    manifest = Manifest(
        image=image,
        image_digest=source.config_digest,
        platform=source.platform,
        config=source.config,
        totals=merged.tree.totals(),
        index_digest=Digest.of(erofs),
        chunks=chunks,
    )
    with folder.index_tar.open("wb") as out:
        write_layer(erofs, manifest.encode(), out)
    folder.dockerfile.write_text(dockerfile.text(source.config, folder.index_tar.name))
    return manifest


def digest_of_file(path: Path) -> Digest:
    """The digest of a file's content."""
    with path.open("rb") as file:
        return Digest(hashlib.file_digest(file, "sha256").digest())
