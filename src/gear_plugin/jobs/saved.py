"""
Images that lie on disk: what `docker save`, skopeo, BuildKit and others write.

Two forms, told apart by what is in them: docker's own (`docker_archive`), and
OCI image layouts (`layout`), which may be folders too.  docker 25 and later
write both into one archive; then the layout is read, as it knows of platforms
and of digests.  Layers are read where they lie, never copied unless compressed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gear_plugin.digest import Digest
from gear_plugin.errors import ArchiveMalformed, BadInput
from gear_plugin.jobs import docker_archive, layout, oci, unpack
from gear_plugin.jobs.bundle import Bundle, FolderBundle, Stretch, TarBundle
from gear_plugin.jobs.parallel import for_each
from gear_plugin.jobs.platforms import Platform
from gear_plugin.jobs.progress import Progress, Silent
from gear_plugin.jobs.references import Wish


@dataclass(frozen=True, slots=True)
class SavedImage:
    """An image that can be read: layers as plain tars, from the lowest up."""

    config: dict[str, Any]
    config_digest: Digest
    layers: list[Stretch]

    @property
    def platform(self) -> str:
        """`os/architecture[/variant]`, as in the OCI image-spec."""
        parts = [self.config.get(key) for key in ("os", "architecture", "variant")]
        return "/".join(str(part) for part in parts if part)


@contextmanager
def opened(
    path: Path,
    scratch: Path,
    wish: Wish | None = None,
    progress: Progress | None = None,
    *,
    known_good: bool = False,
) -> Iterator[SavedImage]:
    """
    The image that *wish* names in the archive or folder *path*, readable during the block.

    Without a *wish* the archive must hold one image, without *progress* nobody watches.

    What is compressed, the whole archive or a layer, is unpacked into the
    folder *scratch*.  Every layer is checked against its digest; with
    *known_good* (whoever wrote it has just done so) only the unpacked ones.

    Raises BadInput (cannot be read), ImageNotFound (not in it), Unsupported,
    ArchiveMalformed, ContentCorrupt.
    """
    wish = wish or Wish(None, Platform.of_machine, "the saved image")
    with ExitStack() as files:
        bundle = _bundle(path, scratch, wish, files)
        if bundle.find(layout.MARK) is not None:
            found = layout.read(bundle, wish)
        elif isinstance(bundle, FolderBundle):
            raise BadInput(f"{wish.place} is no OCI layout: it holds no file {layout.MARK!r}")
        else:
            found = docker_archive.read(bundle, wish)
        diff_ids = oci.diff_ids(found.config, len(found.blobs), wish.place)
        work = _Layers(found.blobs, diff_ids, scratch, wish.place, check_plain=not known_good)
        yield SavedImage(found.config, found.config_digest, work.run(progress or Silent(), files))


def _bundle(path: Path, scratch: Path, wish: Wish, files: ExitStack) -> Bundle:
    try:
        if path.is_dir():
            return FolderBundle(path, files)
        file = files.enter_context(path.open("rb"))
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from error
    if unpack.is_packed(os.pread(file.fileno(), unpack.HEAD_BYTES, 0)):
        inner = scratch / "archive.tar"
        unpack.store(unpack.plain(file.read, wish.place), inner, None, wish.place)
        file = files.enter_context(inner.open("rb"))
    try:
        return TarBundle(file)
    except ArchiveMalformed as error:
        if not os.fstat(file.fileno()).st_size:
            raise ArchiveMalformed(f"{wish.place} is empty; what wrote it has failed") from error
        raise ArchiveMalformed(f"{wish.place} is no image archive, or damaged: {error}") from error


class _Layers:
    """The blobs of an image on their way to plain and checked layers, in threads."""

    def __init__(
        self,
        blobs: Sequence[Stretch],
        diff_ids: Sequence[Digest],
        scratch: Path,
        what: str,
        *,
        check_plain: bool,
    ) -> None:
        self._blobs = blobs
        self._diff_ids = diff_ids
        self._scratch = scratch
        self._what = what
        self._check_plain = check_plain

    def run(self, progress: Progress, files: ExitStack) -> list[Stretch]:
        """All of them; the unpacked ones are open until *files* is closed."""
        # Equal layers are done once: `docker build` writes empty ones by the dozen.
        distinct: dict[Digest, Stretch] = {}
        for diff_id, blob in zip(self._diff_ids, self._blobs, strict=True):
            distinct.setdefault(diff_id, blob)
        packed = {diff_id for diff_id, blob in distinct.items() if _is_packed(blob)}
        todo = {
            diff_id: blob
            for diff_id, blob in distinct.items()
            if self._check_plain or diff_id in packed
        }
        if todo:
            total = sum(blob.size for blob in todo.values())
            progress.step(f"reading {len(todo)} layers", total_bytes=total)
            for_each(
                lambda item: self._one(*item, progress),
                todo.items(),
                threads=os.cpu_count() or 1,
            )
        plain = {
            diff_id: self._open(diff_id, files) if diff_id in packed else blob
            for diff_id, blob in distinct.items()
        }
        return [plain[diff_id] for diff_id in self._diff_ids]

    def _one(self, diff_id: Digest, blob: Stretch, progress: Progress) -> None:
        """Unpack, or only check, one blob."""
        what = f"the layer {diff_id} of {self._what}"
        with blob.open() as file:

            def read(count: int) -> bytes:
                piece = file.read(count)
                progress.advance(len(piece))
                return piece

            pieces = unpack.plain(read, what)
            if _is_packed(blob):
                unpack.store(pieces, self._target(diff_id), diff_id, what)
                return
            found = hashlib.sha256()
            for piece in pieces:
                found.update(piece)
            unpack.check(found.digest(), diff_id, what)

    def _target(self, diff_id: Digest) -> Path:
        return self._scratch / f"layer-{diff_id.hex}.tar"

    def _open(self, diff_id: Digest, files: ExitStack) -> Stretch:
        file = files.enter_context(self._target(diff_id).open("rb"))
        return Stretch(file.fileno(), 0, os.fstat(file.fileno()).st_size)


def _is_packed(blob: Stretch) -> bool:
    return unpack.is_packed(blob.head(unpack.HEAD_BYTES))
