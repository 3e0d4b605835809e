"""
`gear fs`: a Gear image on a directory, without Docker.

Three parts: the command finds the image's index and takes it in; a process of
its own (`run-fs`) serves the tree until it is unmounted; and that process sees
to it that a client answers on this node, its own or another's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gear_plugin import log as logs
from gear_plugin.cli import clustered, node, output, wiring
from gear_plugin.cli.completion import GEAR_IMAGE
from gear_plugin.config import Config
from gear_plugin.digest import Digest
from gear_plugin.errors import BadInput, DaemonUnavailable, GearError, MountFailed
from gear_plugin.layers import NodeImages
from gear_plugin.names import ImageId
from gear_plugin.rootfs import OneImage, detach_dead_tree, is_mount, mount_name

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

_START_S = 30.0
_POLL_S = 0.5


@click.command("fs")
@click.argument("image", metavar="IMAGE-gear[:TAG]", type=GEAR_IMAGE)
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("-f", "--foreground", is_flag=True, help="Stay, and unmount at Ctrl-C.")
@click.option("--prefetch", is_flag=True, help="Fetch every file in the background.")
@output.as_json
@clustered.pass_store
def fs(
    config: Config, image: str, directory: Path, foreground: bool, prefetch: bool, as_json: bool
) -> None:
    """
    Show a Gear image's files in a directory, each fetched when it is opened.

    Needs no Docker: the index is taken from this node, from `gear build`'s
    folder, from an engine if one answers, or from the registry; the files come
    from this node's cache and the store.  Read-only.  `umount DIRECTORY` ends it.

    \b
        mkdir /mnt/app
        gear fs registry.example/team/app-gear:1 /mnt/app
        ls /mnt/app && umount /mnt/app
    """
    name = ImageId.parse(image)
    point = _mount_point(directory)
    with node.usable_folders():
        config.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        images = NodeImages(config.root)
    found = _take_in(config, images, name)
    os.environ.update(node.as_environment(config))
    if as_json:
        shown = {"gear_image": str(name), "index": found, "directory": str(point)}
    if foreground:
        if as_json:
            output.print_json(shown)
        announce = partial(print, _ready_text(name, point), file=sys.stderr)
        _serve(config, found, point, announce, prefetch=prefetch)
        return
    _start(config, found, point, prefetch=prefetch)
    if as_json:
        output.print_json(shown)
    else:
        print(_ready_text(name, point))


@click.command("run-fs", hidden=True)
@click.option("--image", required=True)
@click.option("--mountpoint", type=click.Path(path_type=Path), required=True)
@click.option("--ready", type=int, required=True)
@click.option("--prefetch", is_flag=True)
@click.pass_obj
def run_fs(config: Config, image: str, mountpoint: Path, ready: int, prefetch: bool) -> None:
    """Serve one image's tree."""
    logs.setup(config.log_level, "fs")

    def announce() -> None:
        os.write(ready, b".")
        os.close(ready)

    _serve(config, image, mountpoint, announce, prefetch=prefetch)


def _ready_text(name: ImageId, point: Path) -> str:
    return f"{name} is on {point}; `umount {point}` ends it"


def _mount_point(directory: Path) -> Path:
    """The absolute path of an empty directory; raises BadInput."""
    point = directory.resolve()
    detach_dead_tree(point)
    if is_mount(point):
        raise BadInput(f"something is mounted on {point} already; `umount {point}` first")
    try:
        is_empty = not any(point.iterdir())
    except FileNotFoundError as error:
        raise BadInput(f"{point} does not exist; `mkdir {point}` first") from error
    except NotADirectoryError as error:
        raise BadInput(f"{point} is not a directory") from error
    except OSError as error:
        raise BadInput(f"cannot look into {point}: {error.strerror}") from error
    if not is_empty:
        raise BadInput(f"{point} is not empty; its files would be hidden, choose another")
    if os.geteuid():
        raise BadInput("mounting needs root; run it with sudo")
    return point


def _take_in(config: Config, images: NodeImages, name: ImageId) -> str:
    """The digest of the image's index, which is on this node afterwards, checked."""
    from gear_plugin.jobs.taking_in import take_in

    sources = wiring.index_sources(config, name, wiring.nodes(config))
    return take_in(images, name, sources, lambda index: images.objects(index) is not None)


def _start(config: Config, image: str, point: Path, *, prefetch: bool) -> None:
    """Start the serving process and wait until the mount answers."""
    ready_r, ready_w = os.pipe()
    log_path = config.run / "fs.log"
    command = [sys.executable, "-m", "gear_plugin", "run-fs", "--image", image]
    command += ["--mountpoint", str(point), "--ready", str(ready_w)]
    command += ["--prefetch"] if prefetch else []
    with log_path.open("ab") as log_file:
        begins = log_file.tell()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
            pass_fds=(ready_w,),
            start_new_session=True,
            cwd="/",
        )
    os.close(ready_w)
    with os.fdopen(ready_r, "rb", buffering=0) as pipe:
        if pipe.read(1):
            return
    process.wait(_START_S)
    with log_path.open("rb") as file:
        file.seek(begins)
        said = file.read().decode(errors="replace").strip().splitlines()
    # libfuse gives its reason in a line of its own.
    reasons = [line for line in said if line.startswith("fuse: ")] or said[-1:]
    raise MountFailed(f"cannot mount on {point}: {reasons[0] if reasons else 'no reason given'}")


def _serve(
    config: Config, image: str, point: Path, announce: Callable[[], None], *, prefetch: bool
) -> None:
    """Serve until unmounted, SIGTERM or SIGINT."""
    from gear_plugin.rootfs.fuse import SHARED, serve

    keeper = _ClientKeeper(config)
    keeper.start()
    try:
        keeper.wait()
        client = node.local_client(config)
        client.admit(Digest.from_hex(image))

        def ready() -> None:
            announce()
            if prefetch:
                client.complete(Digest.from_hex(image))

        def fetch(of: str, digest: Digest) -> None:
            try:
                client.fetch(Digest.from_hex(of), digest)
            except DaemonUnavailable:
                keeper.wait()
                client.fetch(Digest.from_hex(of), digest)

        trees = node.image_trees(config, NodeImages(config.root), fetch)
        tree = OneImage(trees, image)
        name = mount_name(image)
        serve(tree, point, config.fuse_workers, ready, name=name, options=SHARED)
    finally:
        keeper.stop()


class _ClientKeeper:
    """
    Sees to it that a client answers: whoever's it is, or else one of its own.

    One client serves all of a node; when it goes with its owner, the next
    keeper to notice starts another.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._stopping = threading.Event()
        # The child ends with the thread that started it (prctl(2),
        # PR_SET_PDEATHSIG), so one thread stays for as long as it is needed.
        self._thread = threading.Thread(target=self._keep, name="client", daemon=True)
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._thread.start()

    def wait(self) -> None:
        """Return when a client answers; raises DaemonUnavailable after some time."""
        deadline = time.monotonic() + _START_S
        while not self._answers():
            if time.monotonic() > deadline:
                raise DaemonUnavailable(f"no client came up within {_START_S:g} s; see its log")
            time.sleep(_POLL_S / 5)

    def stop(self) -> None:
        """End the own client, if there is one."""
        self._stopping.set()
        self._thread.join(_START_S)

    def _keep(self) -> None:
        command = [sys.executable, "-m", "gear_plugin", "client"]
        while not self._stopping.is_set():
            if self._child is None and not self._answers():
                self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
            if self._child is not None and self._child.poll() is not None:
                self._child = None
            self._stopping.wait(_POLL_S)
        if self._child is not None:
            self._child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(_START_S / 2)
            self._child.kill()

    def _answers(self) -> bool:
        client = node.local_client(self._config)
        try:
            client.status()
        except GearError:
            return False
        return True
