"""
`gear push`: a built Gear image into the store, the catalog and the registry.

In this order, so that whoever can see a part can reach what it needs:
objects into the store, then their names and the image's record into the
catalog, last the index image to the registry.  Nobody can pull an index whose
objects are not there.

The objects and the record are announced to collectors of garbage (`until_named`):
an object that the store has already must not go before the record names it.

Crash windows: before the record, objects are left that nothing names yet, and
the next push finds them there; after it, `gear images` shows an image whose
index cannot be pulled yet, or is an older one, until the push is repeated.
Two pushers at once store each object once, and the later record stands.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from gear_plugin.catalog import Catalog, ImageRecord
from gear_plugin.content import Announcement, ObjectStore, until_named
from gear_plugin.digest import Digest, object_id
from gear_plugin.errors import Conflict, IndexDamaged
from gear_plugin.image import INDEX_NAME, TarReader, Tree, read_erofs
from gear_plugin.jobs.build import digest_of_file
from gear_plugin.jobs.engine import Pusher
from gear_plugin.jobs.folder import BuildFolder, BuildResult
from gear_plugin.jobs.progress import Progress
from gear_plugin.jobs.upload import Uploaded, upload
from gear_plugin.jobs.watched import Watch
from gear_plugin.names import ImageId


@dataclass(frozen=True, slots=True)
class PushResult:
    """What `gear push` did; bytes of content, uncompressed, unless they say `stored`."""

    gear_image: str
    objects: int
    """Distinct ones, however many files of the image hold them."""
    object_bytes: int
    new_objects: int
    new_bytes: int
    new_stored_bytes: int
    """What the new ones take in the store: what was written."""
    saved_bytes: int
    """Of objects that the store had already."""
    saved_stored_bytes: int
    """What those take in the store: what did not have to be written."""
    index_bytes: int
    seconds: float


def push(
    gear_image: ImageId,
    engine: Pusher,
    store: ObjectStore,
    catalog: Catalog,
    root: Path,
    progress: Progress,
    *,
    stall_s: float = 120.0,
) -> PushResult:
    """
    Push *gear_image*, which `gear build` made on this machine.

    A store or catalog that does nothing for *stall_s* is given up.  Safe to
    repeat.

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
        watch = Watch(store.name, stall_s, progress)
        names = _names(built, tree)
        record = _record(gear_image, folder, built)

        def put(announcement: Announcement) -> Uploaded:
            sending = _Renewing(progress, announcement)
            return upload(tree.objects(), folder.files, store, watch, sending)

        def name() -> None:
            progress.step(f"recording {len(names)} paths in the catalog")
            Watch("the catalog", stall_s, progress).call(lambda: catalog.put_image(record, names))

        sent = until_named(store, put, name, call=watch.call)
        progress.step(f"pushing {gear_image} to its registry")
        engine.push(gear_image, progress)
    return PushResult(
        gear_image=str(gear_image),
        **asdict(sent),
        index_bytes=built.index_bytes,
        seconds=round(time.monotonic() - begun, 3),
    )


@dataclass(frozen=True, slots=True)
class _Renewing:
    """A progress that says to collectors, too, that the push goes on."""

    shown: Progress
    announcement: Announcement

    def step(self, text: str, *, total_bytes: int = 0) -> None:
        self.shown.step(text, total_bytes=total_bytes)

    def advance(self, count_bytes: int) -> None:
        self.announcement.renew()
        self.shown.advance(count_bytes)

    def note(self, text: str) -> None:
        self.shown.note(text)


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


def _names(built: BuildResult, tree: Tree) -> dict[str, Digest]:
    """The OID of every path with content, hard links included."""
    return {
        object_id(built.image, path): inode.digest
        for path, inode in tree.walk()
        if inode.digest is not None
    }


def _record(gear_image: ImageId, folder: BuildFolder, built: BuildResult) -> ImageRecord:
    return ImageRecord(
        image=gear_image.original,
        gear_image=gear_image,
        index=Digest.from_hex(built.index),
        original=Digest.parse(built.original_id),
        manifest=Digest.from_hex(built.manifest),
        objects=built.objects,
        size_bytes=built.object_bytes,
        created_s=folder.built_s(),
    )
