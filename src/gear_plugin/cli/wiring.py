"""
Settings into concrete classes, for the commands that make and publish images.
(`node.py` does it for a node's processes.)
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.request import getproxies_environment

from gear_plugin.config import Config
from gear_plugin.errors import (
    AccessDenied,
    BadConfig,
    EngineUnavailable,
    ImageNotFound,
    SourceUnavailable,
    TimedOut,
)

if TYPE_CHECKING:
    from gear_plugin.catalog import Catalog, Roster
    from gear_plugin.content import DirectoryStore, ObjectSource
    from gear_plugin.jobs import BuiltImages, DockerEngine, Limits, Platform, Registry
    from gear_plugin.jobs.engine_facts import EngineFacts
    from gear_plugin.jobs.locate import IndexSource, Located
    from gear_plugin.jobs.nodes import NodePlace
    from gear_plugin.layers import NodeImages
    from gear_plugin.names import ImageId

_T = TypeVar("_T")

_CATALOG_MARGIN_S = 5.0
"""The catalog has a limit of its own; this is for what it does not see coming."""
_MOUNT_S = 30.0
_QUICK_S = 3
"""An engine that is asked on the way to something else gets no longer."""
_DOCKER_SOCKET = Path("/var/run/docker.sock")


def engine(config: Config) -> DockerEngine:
    """The Docker engine that the settings, or DOCKER_HOST, name."""
    from gear_plugin.jobs import DockerEngine

    return DockerEngine(config.docker_host or os.environ.get("DOCKER_HOST"), os.environ)


def registry(config: Config, limits: Limits | None = None) -> Registry:
    """
    Registries without an engine, with the logins, certificates and insecure
    registries that docker has on this machine.
    """
    from gear_plugin.jobs import Limits, Logins, Registry, RegistrySettings

    listed = [name.strip() for name in config.insecure_registries.split(",")]
    settings = RegistrySettings(
        logins=Logins(logins_file(config)),
        certs=config.docker_etc / "certs.d",
        insecure=[name for name in listed if name] + _insecure_to_docker(config),
        proxies=getproxies_environment(),
        limits=limits or Limits(),
    )
    return Registry(settings)


def logins_file(config: Config) -> Path:
    """Where docker keeps the logins that Gear uses."""
    folder = config.docker_config or os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker"
    return Path(folder) / "config.json"


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


def _insecure_to_docker(config: Config) -> list[str]:
    """The `insecure-registries` of this machine's dockerd, if it has such a file."""
    try:
        found = json.loads((config.docker_etc / "daemon.json").read_bytes())["insecure-registries"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [str(name) for name in found] if isinstance(found, list) else []


def store_folder(config: Config) -> Path:
    """
    Where the objects of the settings' store are; on NFS it is mounted first.

    Raises BadConfig, SourceUnavailable, TimedOut, Conflict.
    """
    from gear_plugin.content.nfs_address import NfsAddress, is_nfs, store_folder
    from gear_plugin.jobs.nfs_mount import ensure_mounted

    folder = store_folder(config.store, config.root)
    if is_nfs(config.store):
        ensure_mounted(NfsAddress.parse(config.store), folder, _MOUNT_S, read_only=False)
    return folder


def store(config: Config, *, create: bool) -> DirectoryStore:
    """
    The object store to push to; made if its folder does not exist, or with *create*.

    A folder that exists without being a store is most likely a share that is
    not mounted, and filling the disk below it helps nobody.  Raises
    SourceUnavailable.
    """
    from gear_plugin.content import DirectoryStore

    root = store_folder(config)
    if create or not root.exists():
        return DirectoryStore.create(root)
    if not root.is_dir():
        raise SourceUnavailable(f"{root} is a file; a store is a folder, name one with --store")
    if not (root / "objects").is_dir():
        raise SourceUnavailable(
            f"{root} holds no object store; if it is a share, mount it, "
            "and if it is to become a new store, push with --create-store"
        )
    return DirectoryStore(root)


def catalog(config: Config) -> Catalog:
    """The catalog, made if it is not there."""
    from gear_plugin.catalog import open_catalog

    make_root(config)  # the default catalog lies in it
    return open_catalog(config.catalog, timeout_s=config.catalog_timeout_s)


def roster(config: Config) -> Roster:
    """The cluster's records, in the catalog, which is made if it is not there."""
    from gear_plugin.catalog import open_roster

    make_root(config)
    return open_roster(config.catalog, timeout_s=config.catalog_timeout_s)


def make_root(config: Config) -> None:
    """Gear's main folder; raises BadConfig."""
    try:
        config.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadConfig(f"cannot make {config.root} ({error.strerror}); set --root") from error


def ask_catalog(config: Config, question: Callable[[Catalog], _T]) -> _T | None:
    """
    The answer of *question* about the catalog, in bounded time whatever hangs;
    None: there is no catalog, and asking has not made one.

    The question is asked in another process.  Raises what it or the catalog
    raises, and TimedOut.
    """
    from gear_plugin.catalog import is_unmade

    def ask() -> _T | None:
        if is_unmade(config.catalog):
            return None
        with contextlib.closing(catalog(config)) as opened:
            return question(opened)

    return _ask_apart(config, ask)


def ask_roster(config: Config, question: Callable[[Roster], _T]) -> _T:
    """As `ask_catalog`, about the cluster's records; the catalog is made if it is not there."""

    def ask() -> _T:
        with contextlib.closing(roster(config)) as opened:
            return question(opened)

    return _ask_apart(config, ask)


def _ask_apart(config: Config, ask: Callable[[], _T]) -> _T:
    from gear_plugin.jobs.apart import call_apart

    outcome = call_apart(ask, timeout_s=config.catalog_timeout_s + _CATALOG_MARGIN_S)
    if outcome.error is not None:
        raise outcome.error
    if outcome.trouble:
        raise TimedOut(f"catalog {config.catalog}: {outcome.trouble}")
    answer: _T = outcome.values[0]
    return answer


@contextlib.contextmanager
def quick_engine(config: Config) -> Iterator[DockerEngine]:
    """
    The engine, if it answers at once; one that hangs would be waited for as
    long as one that saves an image.  Raises EngineUnavailable.
    """
    _ask_engine(config)
    with contextlib.closing(engine(config)) as connected:
        yield connected


def nodes(config: Config) -> list[NodePlace]:
    """The nodes on this machine: the plugin's if there is one, and the settings' own."""
    from gear_plugin.jobs.nodes import find_nodes

    try:
        facts = _ask_engine(config)
    except EngineUnavailable:
        facts = None
    return find_nodes(config.root, config.run, facts)


def _ask_engine(config: Config) -> EngineFacts:
    from gear_plugin.jobs.engine_facts import ask_engine

    host = config.docker_host or os.environ.get("DOCKER_HOST")
    return ask_engine(host, os.environ, timeout_s=_QUICK_S)


def index_sources(
    config: Config,
    gear_image: ImageId,
    places: Sequence[NodePlace],
    only: str | None = None,
) -> list[IndexSource]:
    """
    Where the index of *gear_image* is looked for, in this order: the nodes
    *places*, the build folder, the engine, the registry that its name begins
    with; with *only* in one kind of place alone.

    A name without a registry is docker's for Docker Hub, which is asked if
    *only* says so: nobody looks for what was built here by a stranger's name.
    """
    from gear_plugin.jobs import index_sources as kinds

    sources: dict[str, list[IndexSource]] = {
        "node": [kinds.NodeSource(place.root) for place in places],
        "build": [kinds.BuildSource(config.root)],
        "engine": [kinds.EngineSource(lambda: quick_engine(config))],
        "registry": [],
    }
    if only == "registry" or gear_image.names_registry:
        sources["registry"].append(kinds.RegistrySource(registry(config)))
    return [source for kind in ([only] if only else sources) for source in sources[kind]]


def take_in_for_volume(
    config: Config, images: NodeImages, gear_image: ImageId, note: Callable[[str], bool]
) -> str:
    """
    Have *gear_image* among the node's *images* (`jobs.taking_in`), as the
    volume driver does: from the node itself, or the registry that the name
    begins with.

    No engine is asked, as it is one that waits for the answer.
    """
    from gear_plugin.jobs import Limits
    from gear_plugin.jobs import index_sources as kinds
    from gear_plugin.jobs.taking_in import take_in

    sources: list[IndexSource] = [kinds.NodeSource(config.root)]
    # docker waits for 2 minutes.
    limits = Limits(connect_s=5, stall_s=20, attempts=3)
    with contextlib.closing(registry(config, limits)) as registries:
        if gear_image.names_registry:
            sources.append(kinds.RegistrySource(registries))
        try:
            return take_in(images, gear_image, sources, note)
        except ImageNotFound as error:
            if gear_image.names_registry:
                raise
            raise ImageNotFound(
                f"{error}; name its registry, as in image=registry.example/{gear_image}"
            ) from error
        except AccessDenied as error:
            raise AccessDenied(
                f"{error}; the volume driver looks for it in {logins_file(config)} "
                "(docs/volumes.md)"
            ) from error


def object_sources(
    config: Config, located: Located, places: Sequence[NodePlace]
) -> list[ObjectSource]:
    """Where the objects of an image are looked for: caches, the build folder, the store."""
    from gear_plugin.content import DirectoryStore, FileSource
    from gear_plugin.jobs import BuildFolder

    index = located.manifest.index_digest.hex
    folders = [
        (f"cache of {place.name}", place.root / folder)
        for place in places
        for folder in ("public", f"private/{index}")
    ]
    build = BuildFolder.of(config.root, located.gear_image.original)
    folders.append((f"build {build.path}", build.files))
    return [
        *(FileSource(name, path) for name, path in folders),
        DirectoryStore(store_folder(config)),
    ]
