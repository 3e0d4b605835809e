"""
The node's port: the process that serves :2020, and how `gear client` keeps it running.

A process of its own, because the client process must answer containers at once
however much is being sent to other nodes.  It ends with the client process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import TYPE_CHECKING

from gear_plugin.cli import clustered, node, sources, wiring
from gear_plugin.cli.supervisor import Child
from gear_plugin.cluster import Settings, parse_address
from gear_plugin.config import Config
from gear_plugin.content import LocalClient
from gear_plugin.digest import Digest
from gear_plugin.errors import BadConfig, BadRequest, ContentNotFound, TimedOut
from gear_plugin.names import ImageId

if TYPE_CHECKING:
    from flask import Flask

    from gear_plugin.catalog import Catalog

log = logging.getLogger(__name__)

_SELF = (sys.executable, "-m", "gear_plugin")
_DOCKER_SOCKET = Path("/var/run/docker.sock")
_POLL_S = 0.2
_STOP_S = 3.0
"""docker kills a plugin 10 s after it asked it to end; whoever downloads asks another node."""
_TAKEN_AGAIN_S = 1.0
_QUICK_S = 3.0
_CATALOG_THREADS = 4
_CATALOG_MARGIN_S = 5.0
_GETTING_MARGIN_S = 10.0
"""The client process, and its socket's caller, give up a little before."""


class PortKeeper:
    """Keeps *command* running from `start` to `stop`, in a thread of its own."""

    def __init__(self, command: Sequence[str], environ: dict[str, str]) -> None:
        # It asks to be killed with the thread that starts it (prctl(2)), so that
        # must be this one, which lives as long as the port may.
        self._child = Child("port", lambda: subprocess.Popen(list(command), env=environ))
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="port", daemon=True)

    def start(self) -> None:
        """Return at once."""
        self._thread.start()

    def stop(self) -> None:
        """End the process, and return when it has ended."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._child.tend(time.monotonic())
            except OSError as error:  # out of memory or processes; both pass
                log.warning("cannot start the port: %s", error)
            self._stopping.wait(_POLL_S)
        self._child.signal(signal.SIGTERM)
        if self._child.process is not None:
            try:
                self._child.process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._child.signal(signal.SIGKILL)
                self._child.process.wait()


@contextlib.contextmanager
def beside(config: Config) -> Iterator[None]:
    """
    During the block, which is the client's, its port is served if there is a cluster.

    Raises BadConfig.
    """
    if not config.manager:
        yield
        return
    clustered.token_of(config)
    _host_and_port(config.listen)
    environ = {**os.environ, **node.as_environment(config)}
    keeper = PortKeeper([*_SELF, "run-port"], environ)
    keeper.start()
    try:
        yield
    finally:
        keeper.stop()


def await_address(listen: str, *, again_s: float = _TAKEN_AGAIN_S) -> None:
    """
    Return when nobody else has the address `HOST:PORT`; if one has, the log says so, once.

    Raises BadConfig: that is no address.
    """
    host, port = _host_and_port(listen)
    is_told = False
    while True:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            family, _, _, _, address = found[0]
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                probe.listen(1)
        except OSError as error:
            if not is_told:
                log.error(
                    "cannot listen on %s (%s): other nodes get nothing from this one until it is "
                    "free; or set listen to another port",
                    listen,
                    error.strerror,
                )
            is_told = True
            time.sleep(again_s)
        else:
            return


def port_app(config: Config) -> Flask:
    """What `gear run-port` serves."""
    from gear_plugin.api.client import Collaborators, PortLimits, client_app
    from gear_plugin.api.uploads import Uploads

    def command(verb: str, image: ImageId) -> list[str]:
        settings = clustered.remembered(config.root) or Settings()
        there = clustered.with_settings(config, settings)
        clustered.check_catalog(there, settings)
        places = ("--store", there.store, "--catalog", there.catalog)
        source = ("--from", _image_source(config)) if verb == "build" else ()
        return [*_SELF, *places, verb, str(image), *source, "--json"]

    return client_app(
        Collaborators(
            token=clustered.token_of(config),
            client=node.local_client(config),
            quick_client=LocalClient(config.run / "client.sock", _QUICK_S),
            root=config.root,
            resolve=Resolver(
                lambda: _catalog(config), config.catalog_timeout_s + _CATALOG_MARGIN_S
            ),
            uploads=Uploads(command),
            upload_limit=config.upload_limit,
            limits=PortLimits(getting_s=config.fetch_timeout_s + _GETTING_MARGIN_S),
        )
    )


def _image_source(config: Config) -> str:
    """Where an image to upload is: in the engine, or where none can be reached in its registry."""
    has_engine = config.docker_host or os.environ.get("DOCKER_HOST") or _DOCKER_SOCKET.exists()
    return sources.ENGINE if has_engine else sources.REGISTRY


class Resolver:
    """
    Object ids' contents from the catalog, in *timeout_s* whatever hangs.

    A few threads of its own may be lost to a catalog that hangs; callers are not.
    *open_catalog* is asked at first use, and again after a failure.
    """

    def __init__(self, open_catalog: Callable[[], Catalog], timeout_s: float) -> None:
        self._open, self._timeout_s = open_catalog, timeout_s
        self._lock = threading.Lock()
        self._catalog: Catalog | None = None
        self._pool = ThreadPoolExecutor(_CATALOG_THREADS, "catalog")

    def __call__(self, oid: str) -> Digest:
        """Raises ContentNotFound, and Unavailable or BadConfig as the catalog does."""
        future = self._pool.submit(self._resolve, oid)
        try:
            return future.result(self._timeout_s)
        except FutureTimeoutError as error:
            future.cancel()
            raise TimedOut(f"the catalog did not answer in {self._timeout_s:g} s") from error

    def _resolve(self, oid: str) -> Digest:
        with self._lock:
            if self._catalog is None:
                self._catalog = self._open()
            catalog = self._catalog
        return catalog.resolve(oid)


def _catalog(config: Config) -> Catalog:
    """The catalog, never made here."""
    from gear_plugin.catalog import is_unmade

    there = clustered.with_settings(config, clustered.remembered(config.root) or Settings())
    if is_unmade(there.catalog):
        raise ContentNotFound("this node has no catalog, so object ids stand for nothing here")
    return wiring.catalog(there)


def _host_and_port(listen: str) -> tuple[str, int]:
    try:
        host, _, number = parse_address(listen).rpartition(":")
    except BadRequest as error:
        raise BadConfig(f"setting 'listen': not HOST:PORT: {listen!r}") from error
    return host.strip("[]") or "0.0.0.0", int(number)  # noqa: S104 - that is what a port is for
