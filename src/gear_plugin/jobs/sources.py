"""
Where `gear build` gets an image from: an engine, a file, or a registry.

Each gives the same: the image with its layers as plain tars, readable while a
block runs, with what had to be copied or unpacked in a scratch folder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from gear_plugin.digest import Digest
from gear_plugin.jobs import oci, saved
from gear_plugin.jobs.bundle import Stretch
from gear_plugin.jobs.engine import Engine
from gear_plugin.jobs.parallel import for_each
from gear_plugin.jobs.platforms import Platform
from gear_plugin.jobs.progress import Progress
from gear_plugin.jobs.references import Reference, Wish
from gear_plugin.jobs.registry import Registry
from gear_plugin.jobs.saved import SavedImage
from gear_plugin.names import ImageId

_COPY_BYTES = 1 << 20
_PULLS = 3
"""Layers on their way at once, as docker does it."""


class Source(Protocol):
    """One image somewhere."""

    @property
    def place(self) -> str:
        """Where, in a word for the build's record."""
        ...

    def opened(self, scratch: Path, progress: Progress) -> AbstractContextManager[SavedImage]:
        """
        The image, readable during the block.

        Raises ImageNotFound, Unavailable, AccessDenied, Damaged, Unsupported,
        BadInput; OSErrors of *scratch* as they are.
        """
        ...


@dataclass(frozen=True, slots=True)
class EngineSource:
    """An image of a Docker engine; *platform* is asked if that has several by the name."""

    engine: Engine
    image: ImageId
    platform: Callable[[], Platform] = Platform.of_machine
    place: str = "engine"

    @contextmanager
    def opened(self, scratch: Path, progress: Progress) -> Iterator[SavedImage]:
        found = self.engine.inspect(self.image)
        spool = scratch / "spool"
        total_bytes = int(found.get("Size") or 0)
        progress.step(f"saving {self.image} from the engine", total_bytes=total_bytes)
        self.engine.export(self.image, spool, progress.advance)
        wish = Wish(self.image, self.platform, "the saved image")
        # An engine checks each layer while it saves it (moby layer/ro_layer.go, TarStream).
        with saved.opened(spool, scratch, wish, progress, known_good=True) as image:
            yield image


@dataclass(frozen=True, slots=True)
class FileSource:
    """An image in an archive or a layout folder, read where it lies."""

    path: Path
    image: ImageId
    platform: Callable[[], Platform] = Platform.of_machine

    @property
    def place(self) -> str:
        return str(self.path)

    def opened(self, scratch: Path, progress: Progress) -> AbstractContextManager[SavedImage]:
        wish = Wish(self.image, self.platform, str(self.path))
        return saved.opened(self.path, scratch, wish, progress)


@dataclass(frozen=True, slots=True)
class StreamSource:
    """An image archive that can be read once, from a pipe; it is copied first."""

    stream: BinaryIO
    image: ImageId
    platform: Callable[[], Platform] = Platform.of_machine
    place: str = "-"

    @contextmanager
    def opened(self, scratch: Path, progress: Progress) -> Iterator[SavedImage]:
        spool = scratch / "spool"
        progress.step("reading the archive")
        with spool.open("wb") as out:
            shutil.copyfileobj(self.stream, out, _COPY_BYTES)
        wish = Wish(self.image, self.platform, "the archive")
        with saved.opened(spool, scratch, wish, progress) as image:
            yield image


@dataclass(frozen=True, slots=True)
class RegistrySource:
    """An image in a registry; its layers are unpacked while they come."""

    registry: Registry
    reference: Reference
    platform: Callable[[], Platform] = Platform.of_machine

    @property
    def place(self) -> str:
        return f"docker://{self.reference}"

    @contextmanager
    def opened(self, scratch: Path, progress: Progress) -> Iterator[SavedImage]:
        what = str(self.reference)
        progress.step(f"asking the registry for {what}")
        manifest = self.registry.manifest(self.reference, self.platform)
        raw = self.registry.small_blob(self.reference, manifest.config, oci.MAX_CONFIG_BYTES)
        config = oci.parse(raw, what)
        diff_ids = oci.diff_ids(config, len(manifest.layers), what)
        layers = dict(zip(diff_ids, manifest.layers, strict=True))
        total_bytes = sum(layer.size for layer in layers.values())
        progress.step(f"pulling {len(layers)} layers", total_bytes=total_bytes)

        def pull(item: tuple[Digest, oci.Descriptor]) -> None:
            diff_id, layer = item
            target = _layer_file(scratch, diff_id)
            self.registry.fetch_layer(self.reference, layer, diff_id, target, progress.advance)

        for_each(pull, layers.items(), threads=_PULLS, stopping=self.registry.stop)
        with ExitStack() as files:
            opened = {diff_id: _opened(_layer_file(scratch, diff_id), files) for diff_id in layers}
            yield SavedImage(
                config, manifest.config.digest, [opened[diff_id] for diff_id in diff_ids]
            )


def _layer_file(scratch: Path, diff_id: Digest) -> Path:
    return scratch / f"layer-{diff_id.hex}.tar"


def _opened(path: Path, files: ExitStack) -> Stretch:
    handle = files.enter_context(path.open("rb")).fileno()
    return Stretch(handle, 0, os.fstat(handle).st_size)
