"""
The places where a Gear image's index is found by name: a node, a build folder,
an engine, a registry.  `locate` asks them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Protocol

from gear_plugin.durable import storage_full
from gear_plugin.errors import (
    BadConfig,
    EngineUnavailable,
    ImageNotFound,
    IndexDamaged,
    SourceUnavailable,
    Unsupported,
)
from gear_plugin.image import FOLDER, INDEX_NAME, MANIFEST_NAME, Kind, TarReader
from gear_plugin.jobs import saved
from gear_plugin.jobs.build import digest_of_file
from gear_plugin.jobs.engine import Engine
from gear_plugin.jobs.folder import BuildFolder
from gear_plugin.jobs.locate import IndexFiles
from gear_plugin.layers import installed_image
from gear_plugin.names import ImageId

_COPY_BYTES = 1 << 20
_LARGEST_BYTES = 2 << 30
"""An index of a million files has 250 MB; what is larger is an ordinary image with a wrong name."""


class IndexFetcher(Protocol):
    """What is needed of a registry."""

    def fetch_index_layer(self, image: ImageId, target: Path) -> None:
        """
        Write the only layer of *image*, as a plain tar, to the new file *target*.

        Raises ImageNotFound, SourceUnavailable, Unsupported (more than one layer).
        """
        ...


class NodeSource:
    """The images installed on the node below *root*."""

    def __init__(self, root: Path) -> None:
        self.name = f"node {root}"
        self._root = root

    def find(self, gear_image: ImageId, scratch: Path) -> IndexFiles:
        image = installed_image(self._root, gear_image.original)
        try:
            digest = digest_of_file(image.erofs)
            is_file = stat.S_ISREG(image.objects_file.stat().st_mode)
        except FileNotFoundError as error:
            raise ImageNotFound(f"not on the node {self._root}") from error
        except OSError as error:
            raise SourceUnavailable(
                f"cannot read {error.filename} ({error.strerror}); run it as root"
            ) from error
        # It was checked when it was installed; all that can have happened
        # since then is that the disk went bad.
        if digest.hex != image.index or not is_file:
            raise IndexDamaged(
                f"{image.erofs} is damaged; remove the image from the node and pull it again"
            )
        return IndexFiles(image.erofs, image.manifest_file, image.objects_file)


class BuildSource:
    """The builds below Gear's main folder *root*."""

    def __init__(self, root: Path) -> None:
        self.name = f"build in {root / 'build'}"
        self._root = root

    def find(self, gear_image: ImageId, scratch: Path) -> IndexFiles:
        folder = BuildFolder.of(self._root, gear_image.original)
        try:
            if not folder.path.is_dir():
                raise ImageNotFound(f"not built in {folder.path.parent}")
            with folder.in_use() as built, folder.index_tar.open("rb") as layer:
                if str(digest_of_file(folder.index_tar)) != built.layer:
                    raise IndexDamaged(
                        f"{folder.index_tar} is not what was built; "
                        f"run `gear build {built.image}` again"
                    )
                return take_index(layer, scratch)
        except FileNotFoundError as error:
            raise ImageNotFound(f"the build in {folder.path} is incomplete") from error
        except (OSError, BadConfig) as error:
            raise SourceUnavailable(f"cannot read {folder.path} ({error}); run it as root") from (
                error
            )


class EngineSource:
    """The images of an engine, connected to when it is asked."""

    def __init__(self, connect: Callable[[], AbstractContextManager[Engine]]) -> None:
        self.name = "Docker engine"
        self._connect = connect

    def find(self, gear_image: ImageId, scratch: Path) -> IndexFiles:
        try:
            return self._find(gear_image, scratch)
        except EngineUnavailable as error:
            # Where there is no engine at all, there are no images in one.
            if isinstance(error.__cause__, FileNotFoundError):
                raise ImageNotFound(str(error)) from error
            raise

    def _find(self, gear_image: ImageId, scratch: Path) -> IndexFiles:
        with self._connect() as engine:
            found = engine.inspect(gear_image)
            layers = (found.get("RootFS") or {}).get("Layers") or []
            if len(layers) != 1 or int(found.get("Size") or 0) > _LARGEST_BYTES:
                raise Unsupported(
                    f"the engine's {gear_image} is no Gear image, or stands on one: it has "
                    f"{len(layers)} layers; a Gear image has its index and nothing else"
                )
            spool = scratch / "saved"
            with storage_full(spool):
                engine.export(gear_image, spool, lambda _count: None)
        with saved.opened(spool, scratch) as image:
            files = take_index(image.layers[0].open(), scratch)
        spool.unlink()
        return files


class RegistrySource:
    """A registry."""

    def __init__(self, registry: IndexFetcher) -> None:
        self.name = "registry"
        self._registry = registry

    def find(self, gear_image: ImageId, scratch: Path) -> IndexFiles:
        layer = scratch / "layer.tar"
        with storage_full(layer):
            self._registry.fetch_index_layer(gear_image, layer)
        with layer.open("rb") as tar:
            files = take_index(tar, scratch)
        layer.unlink()
        return files


def take_index(layer: BinaryIO, target: Path) -> IndexFiles:
    """
    Unpack the two files of the index layer *layer* below the folder *target*.

    Raises Unsupported (an ordinary layer), ArchiveMalformed, StorageFull.
    """
    wanted = {name.encode(): target / name for name in (INDEX_NAME, MANIFEST_NAME)}
    with storage_full(target / FOLDER):
        (target / FOLDER).mkdir()
        reader = TarReader(layer, seekable=True)
        for member in reader:
            if member.name == FOLDER.encode() and member.kind is Kind.DIR:
                continue
            path = wanted.pop(member.name, None)
            if path is None or member.kind is not Kind.FILE:
                raise Unsupported(
                    f"not a Gear image: its layer holds {os.fsdecode(member.name)[:100]!r}"
                )
            with path.open("wb") as out:
                while data := reader.read_data(_COPY_BYTES):
                    out.write(data)
    if wanted:
        raise Unsupported("not a Gear image: its layer holds no index")
    return IndexFiles.in_layer(target)
