"""
Settings into concrete classes, for the commands that make and publish images.
(`node.py` does it for a node's processes.)
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from gear_plugin.config import Config
from gear_plugin.errors import BadConfig, SourceUnavailable
from gear_plugin.names import ImageId

if TYPE_CHECKING:
    from gear_plugin.catalog import Catalog
    from gear_plugin.content import DirectoryStore
    from gear_plugin.jobs import DockerEngine


def engine(config: Config) -> DockerEngine:
    """The Docker engine that the settings, or DOCKER_HOST, name."""
    from gear_plugin.jobs import DockerEngine

    return DockerEngine(config.docker_host or os.environ.get("DOCKER_HOST"), os.environ)


def store(config: Config, *, create: bool) -> DirectoryStore:
    """
    The object store to push to; made if its folder does not exist, or with *create*.

    A folder that exists without being a store is most likely a share that is
    not mounted, and filling the disk below it helps nobody.  Raises
    SourceUnavailable.
    """
    from gear_plugin.content import DirectoryStore

    root = Path(config.store)
    if create or not root.exists():
        return DirectoryStore.create(root)
    if not (root / "objects").is_dir():
        raise SourceUnavailable(
            f"{root} holds no object store; if it is a share, mount it, "
            "and if it is to become a new store, push with --create-store"
        )
    return DirectoryStore(root)


def catalog(config: Config) -> Catalog:
    """The catalog, made if it is not there."""
    from gear_plugin.catalog import open_catalog

    try:
        config.root.mkdir(parents=True, exist_ok=True)  # the default catalog lies in it
    except OSError as error:
        raise BadConfig(f"cannot make {config.root} ({error.strerror}); set --root") from error
    return open_catalog(config.catalog, timeout_s=config.catalog_timeout_s)


def index_layer(config: Config, name: ImageId, target: Path) -> None:
    """
    Put the `.gear` folder of a Gear image into *target*.

    Raises ImageNotFound.
    """
    from gear_plugin.jobs import BuildFolder
    from gear_plugin.layers.apply import unpack

    folder = BuildFolder.of(config.root, name.original)
    with folder.in_use(), folder.index_tar.open("rb") as tar:
        unpack(target, tar.read, lowest=True)
