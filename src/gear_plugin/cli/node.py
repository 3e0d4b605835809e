"""
A node's processes, put together from the settings: the part of the wiring
that `gear graphdriver` and `gear client` need.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gear_plugin import __version__
from gear_plugin.cli import clustered, wiring
from gear_plugin.config import ENV_PREFIX, Config
from gear_plugin.content import LocalClient
from gear_plugin.digest import Digest
from gear_plugin.durable import is_full
from gear_plugin.errors import BadConfig, GearError, StorageFull
from gear_plugin.layers import (
    Checker,
    ImageKeepers,
    LayerStore,
    NodeImages,
    Unpacker,
    VolumeImages,
    VolumeStore,
    images_in_use,
    own_layers,
)
from gear_plugin.names import ImageId
from gear_plugin.rootfs import ImageTrees, LazyLayer, LazyTree, Plan, Views, clear_scratch, probe

if TYPE_CHECKING:
    from flask import Flask

    from gear_plugin.api.local import LocalServer
    from gear_plugin.content import ObjectSource

log = logging.getLogger(__name__)

_ANSWER_MARGIN_S = 5.0
"""The client answers within `fetch_timeout_s`; its caller waits a little longer."""
_DAEMON_START_S = 20.0
_PREDECESSOR_S = 20.0
"""A killed driver is gone at once, unless the kernel waits for a FUSE daemon that hangs."""
_CLIENT_RESTART_S = 5.0
"""A killed client is back in about 1 s; an open of a missing file waits this long for it."""


def as_environment(config: Config) -> dict[str, str]:
    """The settings in force, for child processes."""
    values = config.model_dump(exclude_none=True)
    return {ENV_PREFIX + key.upper(): str(value) for key, value in values.items()}


def local_client(config: Config) -> LocalClient:
    """The caller's side of the client's socket."""
    return LocalClient(
        config.run / "client.sock",
        config.fetch_timeout_s + _ANSWER_MARGIN_S,
        patience_s=_CLIENT_RESTART_S,
    )


@contextlib.contextmanager
def usable_folders() -> Iterator[None]:
    """Raises BadConfig, StorageFull for a folder of the settings that the block cannot make."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        if is_full(error):
            raise StorageFull(f"no room to make {error.filename}; free space there") from error
        raise BadConfig(
            f"cannot make {error.filename} ({error.strerror}); run it as root, or set root and run"
        ) from error


def local_server(config: Config) -> LocalServer:
    """The client: cache, sources, and the socket in front of them."""
    from gear_plugin.api.local import LocalServer
    from gear_plugin.cli.membership import membership, mount_store, own_store
    from gear_plugin.content import BuiltFiles, Cache, Fetcher, Starts

    images = NodeImages(config.root)
    cache = Cache(
        config.root,
        config.cache_limit,
        is_mounted=lambda image: image.hex in images_in_use(config.root),
    )
    for image in cache.images():
        if images.objects(image.hex) is None:
            cache.forget(image)
    sources: Sequence[ObjectSource]
    peers = joined = None
    if config.manager:
        member = membership(config, mount_store)
        peers, sources, profiles = member.peers, member.sources, member.profiles
        joined = member.joined
    else:
        store, profiles = own_store(config, mount_store)
        # Last: what is not in the store is in nobody else's reach.
        sources = [store, BuiltFiles(config.root / "build")]
    fetcher = Fetcher(
        cache,
        sources,
        peers=peers,
        stall_s=config.fetch_stall_s,
        timeout_s=config.fetch_timeout_s,
        workers=config.fuse_workers,
        size_of=images.object_size,
    )

    def objects_of(image: Digest) -> Iterator[Digest]:
        return (digest for digest, _ in images.objects(image.hex) or ())

    starts = None
    if config.start_profiles:
        starts = Starts(fetcher, profiles, images.object_size, cache.room_bytes)
    return LocalServer(config.run / "client.sock", fetcher, cache, objects_of, starts, joined)


def lazy_tree(config: Config) -> LazyTree:
    """What the FUSE daemon serves."""
    client, images = local_client(config), NodeImages(config.root)

    def fetch(image: str, digest: Digest) -> None:
        client.fetch(Digest.from_hex(image), digest)

    return LazyTree(images.objects, fetch, image_trees(config, images, fetch))


def image_trees(
    config: Config, images: NodeImages, fetch: Callable[[str, Digest], None]
) -> ImageTrees:
    """The whole trees of this node's images, their content from the cache."""

    def open_object(image: str, digest: Digest) -> int:
        path = config.root / "private" / image / digest.shard_path
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        fetch(image, digest)
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    return ImageTrees(images.view, open_object)


class Healer:
    """
    Has the client complete the images whose containers stand on the mount of
    a FUSE daemon that is gone; a new client does not know of them.
    Both methods raise what the client's socket does, and are safe to repeat.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._client = local_client(config)
        self._lock = threading.Lock()
        self._images: set[str] = set()

    def heal(self) -> None:
        """To be called after each start of a FUSE daemon."""
        with self._lock:
            self._images |= images_in_use(self._config.root)
        self.resume()

    def resume(self) -> None:
        """To be called after each start of a client: ask again for what is still mounted."""
        with self._lock:
            if self._images:
                self._images &= images_in_use(self._config.root)
            images = sorted(self._images)
        for image in images:
            self._client.complete(Digest.from_hex(image))


def graphdriver_app(config: Config) -> Flask:
    """The plugin's app; the kernel is probed while it already listens."""
    from gear_plugin.api import graphdriver, volume
    from gear_plugin.api.plugin import plugin_app

    node = _Node(config)
    threading.Thread(target=node.warm_up, daemon=True).start()
    app = plugin_app([graphdriver.INTERFACE, volume.INTERFACE])
    graphdriver.GraphDriver(lambda: node.stores().layers, node.status).serve_on(app)
    volume.VolumeDriver(lambda: node.stores().volumes).serve_on(app)
    return app


@dataclass(frozen=True, slots=True)
class _Stores:
    """What the api serves."""

    layers: LayerStore
    volumes: VolumeStore
    plan: Plan


class _Node:
    """The api's stores, made on first use and again after a failure."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._stores: _Stores | None = None
        self._owned: int | None = None
        """The lock on the layers' folder; it goes with the process."""

    def warm_up(self) -> None:
        try:
            self.stores()
        except GearError as error:
            log.error("not ready: %s", error)

    def stores(self) -> _Stores:
        """The stores, waiting for them while they are being made; raises MountFailed, Conflict."""
        with self._lock:
            if self._stores is None:
                self._own()
                plan = probe(self._config.root / "probe", self._config.mount_way)
                self._stores = self._make(plan)
                log.info("mounting Gear images the %s way", plan.way)
            return self._stores

    def _own(self) -> None:
        if self._owned is None:
            self._owned = own_layers(self._config.root, wait_s=_PREDECESSOR_S)
            clear_scratch(self._config.root / "probe")

    def _make(self, plan: Plan) -> _Stores:
        config = self._config
        client = local_client(config)
        images = NodeImages(config.root, checker=Checker(ahead=True))
        images.remove_half_made()
        views = Views(
            config.run,
            config.root,
            plan,
            LazyLayer(config.run),
            index_file=images.index_file,
            admit=lambda image: client.admit(Digest.from_hex(image)),
            wait_s=_DAEMON_START_S,
        )
        keepers = ImageKeepers(
            config.root, images, views, lambda image: client.forget(Digest.from_hex(image))
        )

        def take_in(image: ImageId, note: Callable[[str], bool]) -> str:
            return wiring.take_in_for_volume(config, images, image, note)

        shows = VolumeImages(config.root, images, views, keepers, take_in)
        return _Stores(
            LayerStore(config.root, images, views, keepers, unpacker=Unpacker(ahead=True)),
            VolumeStore(config.root, shows, keepers),
            plan,
        )

    def status(self) -> list[tuple[str, str]]:
        """What `docker info` shows."""
        config = self._config
        stores = self.stores()
        plan = stores.plan
        named = clustered.remembered(config.root) if config.manager else None
        places = clustered.with_settings(config, named) if named else config
        return [
            ("Gear Version", __version__),
            ("Root Dir", str(config.root)),
            ("Mount Way", f"{plan.way} (of {', '.join(plan.available)})"),
            ("Index Mounts", "loop device" if plan.loop_index else "file"),
            ("Gear Images", str(sum(1 for _ in NodeImages(config.root)))),
            ("Volumes", str(len(stores.volumes.all()))),
            ("Object Store", places.store),
            ("Catalog", places.catalog),
            ("Cache Limit", str(config.cache_limit) if config.cache_limit else "none"),
        ]
