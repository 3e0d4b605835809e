"""
The long-running commands: `gear graphdriver`, `gear client`, and the two
processes that `gear graphdriver` starts for itself.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gear_plugin import log as logs
from gear_plugin.cli import node, port
from gear_plugin.cli.supervisor import Supervisor
from gear_plugin.config import Config, override
from gear_plugin.errors import BadInput
from gear_plugin.rootfs import LazyLayer, LazyTree

if TYPE_CHECKING:
    from flask import Flask

log = logging.getLogger(__name__)

DEFAULT_SOCKET = "/run/docker/plugins/gear.sock"
_SELF = (sys.executable, "-m", "gear_plugin")
_PORT_THREADS = 128
"""One is held by each download and batch under way (`api.client.PortLimits`)."""
_API_THREADS = 500
"""
Made as they are needed.  Each `docker commit` or step of a build has two calls
under way; were all threads taken by diffs that wait for their applies, for good.
"""
_HEARTBEAT_S = 1.0
_PR_SET_PDEATHSIG = 1


_CLUSTER_FLAGS = ("manager", "listen", "advertise", "upload_limit", "download_limit")


def _cluster_options(command: Callable[..., None]) -> Callable[..., None]:
    """Have the settings of a node in a cluster as options, too; but no secret."""

    @click.option("--manager", metavar="HOST[:PORT]", help="The cluster's manager.")
    @click.option("--listen", metavar="HOST:PORT", help="Where this node serves other nodes.")
    @click.option("--advertise", metavar="HOST[:PORT]", help="Where others reach that.")
    @click.option("--upload-limit", metavar="SIZE", help="To other nodes, bytes a second (50M).")
    @click.option("--download-limit", metavar="SIZE", help="From other nodes, bytes a second.")
    @click.pass_obj
    @functools.wraps(command)
    def run(config: Config, /, **words: Any) -> None:
        flags = {key: words.pop(key) for key in _CLUSTER_FLAGS}
        command(override(config, flags), **words)

    return run


@click.command()
@click.option(
    "--socket",
    type=click.Path(path_type=Path, dir_okay=False),
    default=DEFAULT_SOCKET,
    show_default=True,
    help="Where docker looks for the plugin.",
)
@_cluster_options
def graphdriver(config: Config, socket: Path) -> None:
    """
    Run the storage driver in the foreground.

    Everything a node needs is started with it: the lazy FUSE layer and the
    client that fills the cache.  The managed plugin does this by itself.

    \b
        gear --store /mnt/store graphdriver
        dockerd --experimental --storage-driver gear
    """
    if os.geteuid():
        raise BadInput("the storage driver needs root; run it with sudo")
    logs.setup(config.log_level, "supervisor")
    healer = node.Healer(config)
    commands = {
        "api": [*_SELF, "run-api", "--socket", str(socket)],
        "client": [*_SELF, "client"],
        "fuse": [*_SELF, "run-fuse"],
    }
    os.environ.update(node.as_environment(config))
    socket.parent.mkdir(parents=True, exist_ok=True)
    supervisor = Supervisor(
        config.run,
        commands,
        lazy=LazyLayer(config.run),
        heal=healer.heal,
        resume=healer.resume,
        watchdog_s=config.watchdog_s,
    )
    supervisor.serve()


@click.command()
@_cluster_options
def client(config: Config) -> None:
    """
    Run a node's client in the foreground: it fetches, verifies and caches files.

    `gear graphdriver` and `gear fs` start one when none answers.

    \b
        gear --store /mnt/store client
        GEAR_TOKEN=... gear client --manager 10.0.0.7 --upload-limit 50M
    """
    logs.setup(config.log_level, "client")
    _die_with_parent()
    with node.usable_folders():
        config.run.mkdir(parents=True, exist_ok=True)
        server = node.local_server(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=server.stop).start())
    with port.beside(config):
        server.serve()


@click.command("run-api", hidden=True)
@click.option("--socket", type=click.Path(path_type=Path), required=True)
@click.pass_obj
def run_api(config: Config, socket: Path) -> None:
    """Serve the plugin socket."""
    from gear_plugin.api.serve import serve

    logs.setup(config.log_level, "api")
    _die_with_parent()

    def make_app() -> Flask:
        # Called in gunicorn's worker, which does not notice at once that its
        # parent was killed: two would unpack layers in one folder.
        _die_with_parent()
        return node.graphdriver_app(config)

    serve(
        make_app,
        f"unix:{socket}",
        threads=_API_THREADS,
        log_level=config.log_level,
    )


@click.command("run-port", hidden=True)
@click.pass_obj
def run_port(config: Config) -> None:
    """Serve other nodes."""
    from gear_plugin.api.serve import serve

    logs.setup(config.log_level, "port")
    _die_with_parent()
    port.await_address(config.listen)

    def make_app() -> Flask:
        # A worker whose parent was killed would keep the port from the next.
        _die_with_parent()
        return port.port_app(config)

    serve(
        make_app,
        config.listen,
        threads=_PORT_THREADS,
        log_level=config.log_level,
        certfile=config.tls_cert,
        keyfile=config.tls_key,
        ca_certs=config.tls_ca,
    )


@click.command("run-fuse", hidden=True)
@click.option("--mountpoint", type=click.Path(path_type=Path), required=True)
@click.option("--ready", type=int, required=True, help="Pipe that gets a byte: ready, alive.")
@click.pass_obj
def run_fuse(config: Config, mountpoint: Path, ready: int) -> None:
    """Serve the lazy layer."""
    from gear_plugin.rootfs.fuse import serve

    logs.setup(config.log_level, "fuse")
    _die_with_parent()
    tree = node.lazy_tree(config)

    def announce() -> None:
        os.write(ready, b".")
        _beat(tree, ready)

    serve(tree, mountpoint, config.fuse_workers, announce)


def _beat(tree: LazyTree, pipe: int) -> None:
    """Tell the supervisor, once a second, when requests were finished since."""
    seen = 0
    while True:
        time.sleep(_HEARTBEAT_S)
        if tree.finished != seen:
            seen = tree.finished
            os.write(pipe, b".")


def _die_with_parent() -> None:
    """
    End with the supervisor, even when it is killed outright (prctl(2)).

    Outside a plugin nothing else would; a second set of daemons on one
    folder must never come to be.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
