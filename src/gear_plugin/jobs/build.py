"""
`gear build`: a Docker image into a Gear image.

What stands in `<root>/build/<image>/` afterwards:

    files/abc/<61 hex>    every distinct content of the image, by its digest
    build/index.tar       the index layer
    build/Dockerfile      ADDs it (what the Gear image is, for people)
    build/build.json      the result, which `gear push` reads

The folder is made under another name and swapped in at the end, so one that
exists is whole.  Peak memory grows with the number of files (about 1.5 KB
each), not with their size.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import mmap
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from gear_plugin.digest import Digest
from gear_plugin.durable import storage_full
from gear_plugin.errors import BadInput, Conflict
from gear_plugin.image import (
    CHUNK_BYTES,
    INDEX_NAME,
    LARGE_OBJECT_BYTES,
    Content,
    Flattened,
    Manifest,
    TarReader,
    Tree,
    flatten,
    write_erofs,
    write_layer,
)
from gear_plugin.jobs import dockerfile, saved
from gear_plugin.jobs.engine import Engine, Progress
from gear_plugin.names import ImageId

FILES, BUILD = "files", "build"
INDEX_TAR, RESULT = "index.tar", "build.json"
_TEMP = ".tmp-"


@dataclass(frozen=True, slots=True)
class BuildResult:
    """What `gear build` made; sizes in bytes."""

    image: str
    gear_image: str
    gear_image_id: str
    layer: str
    """Digest of index.tar: the index layer's diff id."""
    index: str
    """Digest of index.erofs (64 hex digits), which keys the image on a node."""
    manifest: str
    """Digest of the manifest (64 hex digits)."""
    original_id: str
    original_bytes: int
    layers: int
    files: int
    directories: int
    objects: int
    object_bytes: int
    index_bytes: int
    seconds: float


def build(image: ImageId, engine: Engine, root: Path, progress: Progress) -> BuildResult:
    """
    Turn *image* of *engine* into `<image>-gear`, loaded into the same engine.

    Safe to repeat: the same image gives the same Gear image, byte for byte.

    Raises BadInput (a Gear image already), ImageNotFound, EngineUnavailable,
    ArchiveMalformed, Unsupported, StorageFull, Conflict (being built now);
    nothing half-made is left.
    """
    begun = time.monotonic()
    folder = folder_of(root, image)
    engine.inspect(image)
    with _fresh(folder) as fresh, storage_full(folder):
        spool_path = fresh / "spool"
        progress(f"saving {image} from the engine")
        engine.export(image, spool_path)
        with spool_path.open("rb") as spool:
            source = saved.read(spool, fresh)
            progress(f"merging {len(source.layers)} layers")
            merged = flatten([TarReader(layer.open(), seekable=True) for layer in source.layers])
            if merged.tree.lookup(INDEX_NAME.encode()) is not None:
                raise BadInput(f"{image} is a Gear image already; build from the original")
            progress(f"hashing {len(merged.contents)} files")
            chunks = _store_contents(merged.contents, source.layers, fresh / FILES)
        made = _write_index(image, source, merged, chunks, fresh / BUILD)
        archive = fresh / "archive.tar"
        image_id = _write_archive(image.gear, source.config, fresh / BUILD / INDEX_TAR, archive)
        progress(f"loading {image.gear}")
        engine.load(archive)
        totals = merged.tree.totals()
        result = BuildResult(
            image=str(image),
            gear_image=str(image.gear),
            gear_image_id=str(image_id),
            layer=str(made.layer),
            index=made.index.hex,
            manifest=made.manifest.hex,
            original_id=str(source.config_digest),
            original_bytes=sum(layer.size for layer in source.layers),
            layers=len(source.layers),
            files=totals.files,
            directories=totals.directories,
            objects=totals.objects,
            object_bytes=totals.object_bytes,
            index_bytes=(fresh / BUILD / INDEX_TAR).stat().st_size,
            seconds=round(time.monotonic() - begun, 3),
        )
        (fresh / BUILD / RESULT).write_text(json.dumps(asdict(result), indent=2) + "\n")
    return result


def folder_of(root: Path, image: ImageId) -> Path:
    """Where the build of *image* stands."""
    return root / "build" / image.folder


@contextlib.contextmanager
def _fresh(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of *folder* when the block ends well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".lock-{folder.name}").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(f"{ImageId.from_folder(folder.name)} is being built already") from error
        prefix = f"{_TEMP}{folder.name}-"
        for left in folder.parent.glob(f"{prefix}*"):
            shutil.rmtree(left)
        fresh = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
        try:
            for name in (FILES, BUILD):
                (fresh / name).mkdir()
            yield fresh
            for path in fresh.iterdir():
                if path.name not in (FILES, BUILD):
                    path.unlink()
            fresh.chmod(0o755)
            if folder.exists():
                folder.rename(f"{fresh}-old")
            fresh.rename(folder)
        finally:
            for left in folder.parent.glob(f"{prefix}*"):
                shutil.rmtree(left)


def _store_contents(
    contents: Sequence[Content], layers: Sequence[saved.Layer], files: Path
) -> dict[Digest, tuple[bytes, ...]]:
    """
    Copy every distinct content to its place below *files*, and set each inode's digest.

    Returns the chunk digests of the large ones.
    """
    maps = _Maps(layers)
    chunks: dict[Digest, tuple[bytes, ...]] = {}

    def store(content: Content) -> None:
        data = maps.slice(content)
        digest = Digest(hashlib.sha256(data).digest())
        content.inode.digest = digest
        target = files / digest.shard_path
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            _copy(layers[content.layer], content, target)
        if content.size >= LARGE_OBJECT_BYTES and digest not in chunks:
            chunks[digest] = tuple(
                hashlib.sha256(data[at : at + CHUNK_BYTES]).digest()
                for at in range(0, content.size, CHUNK_BYTES)
            )
        data.release()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(store, contents):
            pass
    return chunks


class _Maps:
    """The layers' files in memory, as views that cost no memory of their own."""

    def __init__(self, layers: Sequence[saved.Layer]) -> None:
        self._layers = layers
        self._views: dict[int, memoryview] = {}
        for layer in layers:
            handle = layer.file.fileno()
            if layer.size and handle not in self._views:
                self._views[handle] = memoryview(mmap.mmap(handle, 0, prot=mmap.PROT_READ))

    def slice(self, content: Content) -> memoryview:
        """A file's bytes."""
        layer = self._layers[content.layer]
        start = layer.start + content.offset
        return self._views[layer.file.fileno()][start : start + content.size]


def _copy(layer: saved.Layer, content: Content, target: Path) -> None:
    """
    Copy a content inside the kernel.

    Two threads with one content may both write it; each renames a whole file.
    """
    handle, name = tempfile.mkstemp(prefix=_TEMP, dir=target.parent)
    try:
        at, left = layer.start + content.offset, content.size
        while left:
            count = os.copy_file_range(layer.file.fileno(), handle, left, at)
            at, left = at + count, left - count
        os.fchmod(handle, 0o444)
    finally:
        os.close(handle)
    Path(name).rename(target)


@dataclass(frozen=True, slots=True)
class _Made:
    layer: Digest
    index: Digest
    manifest: Digest


def _write_index(
    image: ImageId,
    source: saved.SavedImage,
    merged: Flattened,
    chunks: dict[Digest, tuple[bytes, ...]],
    folder: Path,
) -> _Made:
    """Write index.tar and the Dockerfile into *folder*."""
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
    encoded = manifest.encode()
    with (folder / INDEX_TAR).open("wb") as out:
        write_layer(erofs, encoded, out)
    (folder / "Dockerfile").write_text(dockerfile.text(source.config, INDEX_TAR))
    return _Made(digest_of_file(folder / INDEX_TAR), manifest.index_digest, Digest.of(encoded))


def _write_archive(name: ImageId, config: dict[str, Any], layer: Path, target: Path) -> Digest:
    """
    Write an archive for `docker load`; returns the image id it will have.

    The configuration is the original's but for the layer and its history.
    """
    diff_id = digest_of_file(layer)
    ours = {
        **config,
        "rootfs": {"type": "layers", "diff_ids": [str(diff_id)]},
        "history": [{"created": config.get("created"), "created_by": "gear build"}],
    }
    raw = json.dumps(ours, sort_keys=True, separators=(",", ":")).encode()
    config_name, layer_name = f"{Digest.of(raw).hex}.json", f"{diff_id.hex}/layer.tar"
    entry = {"Config": config_name, "RepoTags": [str(name)], "Layers": [layer_name]}
    with tarfile.open(target, "w") as archive:
        _add(archive, config_name, BytesIO(raw), len(raw))
        with layer.open("rb") as data:
            _add(archive, layer_name, data, layer.stat().st_size)
        listing = json.dumps([entry]).encode()
        _add(archive, "manifest.json", BytesIO(listing), len(listing))
    return Digest.of(raw)


def _add(archive: tarfile.TarFile, name: str, data: BinaryIO, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size = size
    archive.addfile(info, data)


def digest_of_file(path: Path) -> Digest:
    """The digest of a file's content."""
    with path.open("rb") as file:
        return Digest(hashlib.file_digest(file, "sha256").digest())


def tree_paths(tree: Tree) -> Iterator[tuple[bytes, Digest]]:
    """Every path of *tree* that has an object, hard links included."""
    for path, inode in tree.walk():
        if inode.digest is not None:
            yield path, inode.digest
