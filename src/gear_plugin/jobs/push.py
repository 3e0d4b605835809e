"""
`gear push`: a built Gear image into the store, the catalog and the registry.

In this order, so that whoever can see a part can reach what it needs:
objects into the store, then their names and the image's record into the
catalog, last the index image to the registry.  A crash leaves objects that
nothing names yet, and the next push finds them there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gear_plugin.catalog import Catalog, ImageRecord
from gear_plugin.content import ObjectStore
from gear_plugin.digest import Digest, object_id
from gear_plugin.errors import Conflict, ImageNotFound
from gear_plugin.image import INDEX_NAME, TarReader, read_erofs
from gear_plugin.jobs.build import BUILD, FILES, INDEX_TAR, RESULT, folder_of, tree_paths
from gear_plugin.jobs.engine import Engine, Progress
from gear_plugin.names import ImageId


@dataclass(frozen=True, slots=True)
class PushResult:
    """What `gear push` did; sizes in bytes, uncompressed."""

    gear_image: str
    objects: int
    new_objects: int
    sent_bytes: int
    saved_bytes: int
    """Of objects that the store had already."""
    index_bytes: int
    seconds: float


def push(
    gear_image: ImageId,
    engine: Engine,
    store: ObjectStore,
    catalog: Catalog,
    root: Path,
    progress: Progress,
) -> PushResult:
    """
    Push *gear_image*, which `gear build` made on this machine.

    Raises BadName (not a Gear image's name), ImageNotFound (not built here),
    Conflict (the engine's image is another build), SourceUnavailable,
    StorageFull.  Safe to repeat.
    """
    begun = time.monotonic()
    image = gear_image.original
    folder = folder_of(root, image)
    try:
        built = json.loads((folder / BUILD / RESULT).read_text())
    except FileNotFoundError as error:
        raise ImageNotFound(
            f"{gear_image} was not built in {root}; run `gear build {image}` first"
        ) from error
    found = engine.inspect(gear_image)["RootFS"].get("Layers")
    if found != [built["layer"]]:
        raise Conflict(
            f"the engine's {gear_image} is not the one built in {folder}; "
            f"run `gear build {image}` again"
        )
    progress(f"storing {built['objects']} objects")
    sizes = _store_objects(folder / FILES, store)
    names = {object_id(str(image), path): digest for path, digest in _index_paths(folder)}
    record = ImageRecord(
        image=image,
        gear_image=gear_image,
        index=Digest.from_hex(built["index"]),
        original=Digest.parse(built["original_id"]),
        manifest=Digest.from_hex(built["manifest"]),
        objects=built["objects"],
        size_bytes=built["object_bytes"],
        created_s=int((folder / BUILD / RESULT).stat().st_mtime),
    )
    progress(f"recording {len(names)} paths")
    catalog.put_image(record, names)
    progress(f"pushing {gear_image}")
    engine.push(gear_image, progress)
    return PushResult(
        gear_image=str(gear_image),
        objects=len(sizes),
        new_objects=sum(1 for new, _ in sizes if new),
        sent_bytes=sum(size for new, size in sizes if new),
        saved_bytes=sum(size for new, size in sizes if not new),
        index_bytes=built["index_bytes"],
        seconds=round(time.monotonic() - begun, 3),
    )


def _store_objects(files: Path, store: ObjectStore) -> list[tuple[bool, int]]:
    """Put every object; whether each was new, and its size."""

    def put(path: Path) -> tuple[bool, int]:
        digest = Digest.from_shard_path(f"{path.parent.name}/{path.name}")
        return store.put(digest, path), path.stat().st_size

    # Twice the processors: each put compresses, and then waits for the disk.
    with ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as pool:
        return list(pool.map(put, sorted(files.glob("*/*"))))


def _index_paths(folder: Path) -> Iterator[tuple[bytes, Digest]]:
    """Every path with an object, read back from the index that is being pushed."""
    with (folder / BUILD / INDEX_TAR).open("rb") as tar:
        reader = TarReader(tar, seekable=True)
        for member in reader:
            if member.name == INDEX_NAME.encode():
                yield from tree_paths(read_erofs(reader.read_data(member.size)))
