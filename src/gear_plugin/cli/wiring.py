"""
Settings into concrete classes, for the commands that make and publish images.
(`node.py` does it for a node's processes.)
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import getproxies_environment

from gear_plugin.config import Config
from gear_plugin.errors import EngineUnavailable, SourceUnavailable

if TYPE_CHECKING:
    from gear_plugin.catalog import Catalog
    from gear_plugin.content import DirectoryStore
    from gear_plugin.jobs import BuiltImages, DockerEngine, Platform, Registry
    from gear_plugin.names import ImageId

_DOCKER_SOCKET = Path("/var/run/docker.sock")
_DOCKER_DAEMON = Path("/etc/docker/daemon.json")
_DOCKER_CERTS = Path("/etc/docker/certs.d")


def engine(config: Config) -> DockerEngine:
    """The Docker engine that the settings, or DOCKER_HOST, name."""
    from gear_plugin.jobs import DockerEngine

    return DockerEngine(config.docker_host or os.environ.get("DOCKER_HOST"), os.environ)


def registry(config: Config) -> Registry:
    """
    Registries without an engine, with the logins, certificates and insecure
    registries that docker has on this machine.
    """
    from gear_plugin.jobs import Logins, Registry, RegistrySettings

    folder = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    listed = [name.strip() for name in config.insecure_registries.split(",")]
    settings = RegistrySettings(
        logins=Logins(folder / "config.json"),
        certs=_DOCKER_CERTS,
        insecure=[name for name in listed if name] + _insecure_to_docker(),
        proxies=getproxies_environment(),
    )
    return Registry(settings)


def platform(config: Config) -> Platform:
    """That of the engine, if there is one that answers; else that of this machine."""
    from gear_plugin.jobs import Platform

    if config.docker_host or os.environ.get("DOCKER_HOST") or _DOCKER_SOCKET.exists():
        with contextlib.suppress(EngineUnavailable), contextlib.closing(engine(config)) as found:
            return found.platform()
    return Platform.of_machine()


def pusher(config: Config, gear_image: ImageId) -> DockerEngine | BuiltImages:
    """
    Whoever can push *gear_image*: the engine that it was loaded into, or Gear itself.

    Raises ImageNotFound (not built), BadName, Conflict, EngineUnavailable.
    """
    from gear_plugin.jobs import BuildFolder, BuiltImages

    with BuildFolder.of(config.root, gear_image.original).in_use() as built:
        if built.loaded:
            return engine(config)
    return BuiltImages(config.root, registry(config))


def _insecure_to_docker() -> list[str]:
    """The `insecure-registries` of this machine's dockerd, if it has such a file."""
    try:
        found = json.loads(_DOCKER_DAEMON.read_bytes())["insecure-registries"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [str(name) for name in found] if isinstance(found, list) else []


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

    config.root.mkdir(parents=True, exist_ok=True)  # the default catalog lies in it
    return open_catalog(config.catalog)
