"""
A node's processes, put together from the settings: the part of the wiring
that `gear graphdriver` and `gear client` need.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gear_plugin import __version__
from gear_plugin.config import ENV_PREFIX, Config
from gear_plugin.content import LocalClient
from gear_plugin.digest import Digest
from gear_plugin.errors import GearError
from gear_plugin.layers import Checker, LayerStore, NodeImages, Unpacker, mounted_images
from gear_plugin.rootfs import ImageTrees, LazyLayer, LazyTree, Plan, Views, probe

if TYPE_CHECKING:
    from flask import Flask

    from gear_plugin.api.local import LocalServer

log = logging.getLogger(__name__)

_ANSWER_MARGIN_S = 5.0
"""The client answers within `fetch_timeout_s`; its caller waits a little longer."""
_DAEMON_START_S = 20.0
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


def local_server(config: Config) -> LocalServer:
    """The client: cache, sources, and the socket in front of them."""
    from gear_plugin.api.local import LocalServer
    from gear_plugin.content import Cache, DirectoryProfiles, DirectoryStore, Fetcher, Starts

    images = NodeImages(config.root)
    cache = Cache(
        config.root,
        config.cache_limit,
        is_mounted=lambda image: image.hex in mounted_images(config.root),
    )
    for image in cache.images():
        if images.objects(image.hex) is None:
            cache.forget(image)
    fetcher = Fetcher(
        cache,
        [DirectoryStore(Path(config.store))],
        stall_s=config.fetch_stall_s,
        timeout_s=config.fetch_timeout_s,
        workers=config.fuse_workers,
        size_of=images.object_size,
    )

    def objects_of(image: Digest) -> Iterator[Digest]:
        return (digest for digest, _ in images.objects(image.hex) or ())

    starts = None
    if config.start_profiles:
        profiles = DirectoryProfiles(Path(config.store))
        starts = Starts(fetcher, profiles, images.object_size)
    return LocalServer(config.run / "client.sock", fetcher, cache, objects_of, starts)


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
            self._images |= mounted_images(self._config.root)
        self.resume()

    def resume(self) -> None:
        """To be called after each start of a client: ask again for what is still mounted."""
        with self._lock:
            if self._images:
                self._images &= mounted_images(self._config.root)
            images = sorted(self._images)
        for image in images:
            self._client.complete(Digest.from_hex(image))


def graphdriver_app(config: Config) -> Flask:
    """The plugin's app; the kernel is probed while it already listens."""
    from gear_plugin.api.graphdriver import GraphDriver

    node = _Node(config)
    threading.Thread(target=node.warm_up, daemon=True).start()
    return GraphDriver(node.layers, node.status).app()


class _Node:
    """The graphdriver's store, made on first use and again after a failure."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._layers: LayerStore | None = None
        self._plan: Plan | None = None

    def warm_up(self) -> None:
        try:
            self.layers()
        except GearError as error:
            log.error("not ready: %s", error)

    def layers(self) -> LayerStore:
        """The store, waiting for it while it is being made; raises MountFailed."""
        with self._lock:
            if self._layers is None:
                self._plan = probe(self._config.root / "probe", self._config.mount_way)
                self._layers = self._make(self._plan)
                log.info("mounting Gear images the %s way", self._plan.way)
            return self._layers

    def _make(self, plan: Plan) -> LayerStore:
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
        return LayerStore(
            config.root,
            images,
            views,
            lambda image: client.forget(Digest.from_hex(image)),
            unpacker=Unpacker(ahead=True),
        )

    def status(self) -> list[tuple[str, str]]:
        """What `docker info` shows."""
        config = self._config
        self.layers()
        assert self._plan is not None
        return [
            ("Gear Version", __version__),
            ("Root Dir", str(config.root)),
            ("Mount Way", f"{self._plan.way} (of {', '.join(self._plan.available)})"),
            ("Index Mounts", "loop device" if self._plan.loop_index else "file"),
            ("Gear Images", str(sum(1 for _ in NodeImages(config.root)))),
            ("Object Store", config.store),
            ("Catalog", config.catalog),
            ("Cache Limit", str(config.cache_limit) if config.cache_limit else "none"),
        ]
