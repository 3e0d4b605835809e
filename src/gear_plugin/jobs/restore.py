"""
`gear restore`: a Gear image back into an ordinary Docker image.

One layer that unpacks to the same tree, bit for bit, and the original's whole
configuration.  Needs the index and every object, and no original.  The
archive is written to disk first, complete and verified; memory grows with the
number of files (about 1 KB each), not with their size.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gear_plugin.content import ObjectSource
from gear_plugin.durable import storage_full, write_once
from gear_plugin.errors import BadConfig, BadInput, BadName, Conflict, ImageNotFound
from gear_plugin.image import Tree, write_tree
from gear_plugin.jobs.ahead import ReadAhead
from gear_plugin.jobs.engine import Engine
from gear_plugin.jobs.image_archive import ImageArchive
from gear_plugin.jobs.locate import Located
from gear_plugin.jobs.progress import Progress
from gear_plugin.names import ImageId

_MADE_BY = "gear restore"
_OUTPUT_MODE = 0o600
"""As `docker save -o` does: an image may hold secrets."""


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """What `gear restore` made; sizes in bytes."""

    gear_image: str
    image: str
    """Its name in the engine, or in the archive."""
    image_id: str
    layer: str
    """Digest of its only layer (uncompressed)."""
    original_id: str
    """The id of the image that the Gear image was built from."""
    index: str
    """Digest of the index (64 hex digits)."""
    found_in: str
    output: str | None
    """The archive; None: loaded into the engine."""
    files: int
    objects: int
    layer_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class IntoEngine:
    """
    Load the image into *engine*; *scratch* is a folder for the archive on its way.

    An image of that name that the engine has already is refused unless
    *replace*: it may be the original.
    """

    engine: Engine
    scratch: Path
    replace: bool = False


@dataclass(frozen=True, slots=True)
class IntoFile:
    """Write an archive for `docker load` to *path*, in place of an older file."""

    path: Path


def restore(
    located: Located,
    name: ImageId,
    sources: Sequence[ObjectSource],
    target: IntoEngine | IntoFile,
    progress: Progress,
    *,
    stall_s: float,
) -> RestoreResult:
    """
    Make the ordinary image *name* of the Gear image *located*.

    Objects come from *sources*, asked in their order; one that delivers
    nothing for *stall_s* is given up.  Safe to repeat: the same Gear image and
    name give the same image.

    Raises BadName (a Gear image's name), Conflict (the engine has that name),
    ContentNotFound, ContentCorrupt, SourceUnavailable (an object cannot be
    had), EngineUnavailable, StorageFull, BadInput, BadConfig (cannot write
    there), Unsupported; nothing half-made is left.
    """
    begun = time.monotonic()
    if name.is_gear:
        raise BadName(f"{name} would be an ordinary image with a Gear image's name; choose another")
    tree = located.tree()
    # Whatever cannot be put into a layer is found here, before anything is written.
    layer_bytes = sum(
        len(piece) if isinstance(piece, bytes) else piece.size for piece in write_tree(tree)
    )
    maker = _Maker(located, name, tree, layer_bytes, sources, progress, stall_s)
    match target:
        case IntoFile(path):
            image_id, layer = _to_file(path, maker)
        case IntoEngine():
            image_id, layer = _to_engine(target, name, maker, progress)
    totals = located.manifest.totals
    return RestoreResult(
        gear_image=str(located.gear_image),
        image=str(name),
        image_id=image_id,
        layer=layer,
        original_id=str(located.manifest.image_digest),
        index=located.manifest.index_digest.hex,
        found_in=located.found_in,
        output=str(target.path) if isinstance(target, IntoFile) else None,
        files=totals.files,
        objects=totals.objects,
        layer_bytes=layer_bytes,
        seconds=round(time.monotonic() - begun, 3),
    )


@dataclass(frozen=True, slots=True)
class _Maker:
    """All that the archive is made from."""

    located: Located
    name: ImageId
    tree: Tree
    layer_bytes: int
    sources: Sequence[ObjectSource]
    progress: Progress
    stall_s: float

    def write(self, out: BinaryIO) -> tuple[str, str]:
        """Write the whole archive; the image's id and its layer's digest."""
        self.progress.step(
            f"reading {self.located.manifest.totals.objects} objects", total_bytes=self.layer_bytes
        )
        archive = ImageArchive(out, self.layer_bytes)
        # The order in which write_tree comes to them.
        wanted = ((n.digest, n.size) for n in self.tree.inodes() if n.digest is not None)
        with ReadAhead(wanted, self.sources, stall_s=self.stall_s) as objects:
            for piece in write_tree(self.tree):
                if isinstance(piece, bytes):
                    archive.write(piece)
                else:
                    _copy(objects, archive)
                    self.progress.advance(piece.size)
        return archive.finish(self.name, self.located.manifest.config, made_by=_MADE_BY)


def _copy(objects: ReadAhead, archive: ImageArchive) -> None:
    mark = archive.mark()
    for chunk in objects.contents():
        if chunk is None:
            archive.back_to(mark)
        else:
            archive.write(chunk)


def _to_file(path: Path, maker: _Maker) -> tuple[str, str]:
    if path.exists() and not path.is_file():
        raise BadInput(f"cannot write an archive to {path}: it is not a file")
    try:
        with write_once(path, mode=_OUTPUT_MODE) as out:
            return maker.write(out)
    except OSError as error:
        raise BadInput(f"cannot write {path} ({error.strerror})") from error


def _to_engine(
    target: IntoEngine, name: ImageId, maker: _Maker, progress: Progress
) -> tuple[str, str]:
    if not target.replace:
        _check_free(target.engine, name)
    try:
        target.scratch.mkdir(parents=True, exist_ok=True)
        # It has no name, so that not even a kill leaves anything of it.
        spool = tempfile.TemporaryFile(dir=target.scratch)  # noqa: SIM115 - closed below
    except OSError as error:
        raise BadConfig(f"cannot write in {target.scratch} ({error.strerror}); set --root") from (
            error
        )
    # In this order: what is still buffered is written, and fails, at the end.
    with storage_full(target.scratch / "archive"), spool:
        made = maker.write(spool)
        spool.flush()
        progress.step(f"loading {name} into the engine")
        target.engine.load(Path(f"/proc/self/fd/{spool.fileno()}"))
    return made


def _check_free(engine: Engine, name: ImageId) -> None:
    try:
        engine.inspect(name)
    except ImageNotFound:
        return
    raise Conflict(
        f"the engine has an image {name} already; give the restored one another --name, "
        "or take that one's name with --replace"
    )
