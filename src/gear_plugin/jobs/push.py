"""
`gear push`: a built Gear image into the store, the catalog and the registry.

In this order, so that whoever can see a part can reach what it needs:
objects into the store, then their names and the image's record into the
catalog, last the index image to the registry.  Nobody can pull an index whose
objects are not there.  A crash leaves objects that nothing names yet, and the
next push finds them there.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from gear_plugin.catalog import Catalog, ImageRecord
from gear_plugin.content import ObjectStore
from gear_plugin.digest import Digest, object_id
from gear_plugin.errors import Conflict, ContentNotFound, IndexDamaged
from gear_plugin.image import INDEX_NAME, TarReader, Tree, read_erofs
from gear_plugin.jobs.build import digest_of_file
from gear_plugin.jobs.engine import Pusher
from gear_plugin.jobs.folder import BuildFolder, BuildResult
from gear_plugin.jobs.parallel import for_each
from gear_plugin.jobs.progress import Progress
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
    engine: Pusher,
    store: ObjectStore,
    catalog: Catalog,
    root: Path,
    progress: Progress,
) -> PushResult:
    """
    Push *gear_image*, which `gear build` made on this machine.

    Safe to repeat.

    Raises BadName (not a Gear image's name), ImageNotFound (not built here,
    or not in the engine), Conflict (the engine's image is another build, or
    one is being made), Damaged (the build folder was tampered with),
    Unavailable (engine, registry, store or catalog).
    """
    begun = time.monotonic()
    folder = BuildFolder.of(root, gear_image.original)
    with folder.in_use() as built:
        _check_same_build(gear_image, engine, folder, built)
        tree = _read_index(folder, built)
        sent = _store_objects(tree, folder.files, store, progress)
        _record(gear_image, folder, built, tree, catalog, progress)
        progress.step(f"pushing {gear_image} to its registry")
        engine.push(gear_image, progress)
    return PushResult(
        gear_image=str(gear_image),
        objects=sent.objects,
        new_objects=sent.new_objects,
        sent_bytes=sent.sent_bytes,
        saved_bytes=sent.saved_bytes,
        index_bytes=built.index_bytes,
        seconds=round(time.monotonic() - begun, 3),
    )


def _check_same_build(
    gear_image: ImageId, engine: Pusher, folder: BuildFolder, built: BuildResult
) -> None:
    """Raise Conflict unless the engine's image has exactly the layer that was built here."""
    if engine.inspect(gear_image)["RootFS"].get("Layers") != [built.layer]:
        raise Conflict(
            f"the engine's {gear_image} is not the one built in {folder.path}; "
            f"run `gear build {built.image}` again"
        )


def _read_index(folder: BuildFolder, built: BuildResult) -> Tree:
    """The tree of the index that is being pushed, which says what it needs."""
    if str(digest_of_file(folder.index_tar)) != built.layer:
        raise IndexDamaged(
            f"{folder.index_tar} is not what was built; run `gear build {built.image}` again"
        )
    with folder.index_tar.open("rb") as tar:
        reader = TarReader(tar, seekable=True)
        for member in reader:
            if member.name == INDEX_NAME.encode():
                return read_erofs(reader.read_data(member.size))
    raise IndexDamaged(f"{folder.index_tar} holds no index")


class _Sent:
    """Counts of what went into the store."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.objects = self.new_objects = self.sent_bytes = self.saved_bytes = 0

    def add(self, size_bytes: int, *, is_new: bool) -> None:
        with self._lock:
            self.objects += 1
            self.new_objects += is_new
            self.sent_bytes += size_bytes if is_new else 0
            self.saved_bytes += 0 if is_new else size_bytes


def _store_objects(tree: Tree, files: Path, store: ObjectStore, progress: Progress) -> _Sent:
    """Put every object of *tree*, or raise: then nothing will name them."""
    objects = tree.objects()
    progress.step(f"storing {len(objects)} objects", total_bytes=sum(objects.values()))
    sent = _Sent()

    def put(item: tuple[Digest, int]) -> None:
        digest, size_bytes = item
        try:
            is_new = store.put(digest, files / digest.shard_path)
        except FileNotFoundError as error:
            raise ContentNotFound(
                f"the build lacks {files / digest.shard_path}; run `gear build` again"
            ) from error
        sent.add(size_bytes, is_new=is_new)
        progress.advance(size_bytes)

    # Twice the processors: each put compresses, and then waits for the disk.
    for_each(put, objects.items(), threads=2 * (os.cpu_count() or 1))
    return sent


def _record(
    gear_image: ImageId,
    folder: BuildFolder,
    built: BuildResult,
    tree: Tree,
    catalog: Catalog,
    progress: Progress,
) -> None:
    """The image and the OID of every path with content, hard links included."""
    names = {
        object_id(built.image, path): inode.digest
        for path, inode in tree.walk()
        if inode.digest is not None
    }
    progress.step(f"recording {len(names)} paths in the catalog")
    catalog.put_image(
        ImageRecord(
            image=gear_image.original,
            gear_image=gear_image,
            index=Digest.from_hex(built.index),
            original=Digest.parse(built.original_id),
            manifest=Digest.from_hex(built.manifest),
            objects=built.objects,
            size_bytes=built.object_bytes,
            created_s=folder.built_s(),
        ),
        names,
    )
