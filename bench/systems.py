"""
The systems that are compared: an engine on overlay2, and one on the Gear
plugin for each way of mounting, all alive at the same time on one link.

An engine here is one node.  `make_cold` takes it back to a node that has never
seen the image.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import get_args

from tests.engine.engine import Engine, EngineError
from tests.engine.recipes import Task
from tests.engine.registry import Registry
from tests.engine.world import Node, install

from bench.disk import Disk
from bench.link import Link, StoreShare
from bench.results import OVERLAY2
from gear_plugin.config import MountWay

WAYS = ("direct", "nested", "fuse-tree")
_PREFIX = "gear-"


class Unsupported(Exception):
    """This system cannot be measured here; the text says why."""


def names(ways: tuple[str, ...]) -> list[str]:
    """The systems for these ways of mounting, overlay2 first."""
    return [OVERLAY2, *(_PREFIX + way for way in ways)]


@dataclass
class System:
    """One node: an engine, what it stands on, and the store that it sees."""

    name: str
    engine: Engine
    share: StoreShare
    disk: Disk

    @property
    def way(self) -> str:
        """The way of mounting; empty: overlay2."""
        return self.name.removeprefix(_PREFIX) if self.name != OVERLAY2 else ""

    def start(self, plugin_ref: str) -> None:
        """Start it without any image; raises Unsupported."""
        if self.way and self.way not in get_args(MountWay):
            raise Unsupported(f"this version of Gear has no mount_way={self.way}")
        self.engine.start(OVERLAY2)
        if not self.way:
            return
        settings = (f"mount_way={self.way}", "store=/mnt/store/store", "log_level=warning")
        try:
            install(self.engine, plugin_ref, self.share.folder, *settings)
            self.engine.restart("gear")
        except EngineError as error:
            raise Unsupported(_last_line(str(error))) from error
        used = self.engine.docker("info", "-f", "{{json .DriverStatus}}").stdout
        if f'["Mount Way","{self.way}' not in used:
            raise Unsupported(f"the plugin mounts otherwise: {used}")

    def stop(self) -> None:
        """Stop it; what it held goes with the disk."""
        self.engine.stop()

    def ref(self, image: str, registry: Registry) -> str:
        """What this node pulls to have *image*."""
        return f"{registry.address}/{image}{'-gear' if self.way else ''}:1"

    def make_cold(self) -> None:
        """Remove every image and all that is cached of one; their files are set aside first."""
        driver = self.engine.data_root / OVERLAY2
        for layer in driver.glob("*/diff"):
            self.disk.set_aside(layer, driver / "aside")
        # One that others were made from is refused until they are gone.
        while images := set(self.engine.docker("images", "-q").stdout.split()):
            self.engine.docker("rmi", "-f", *sorted(images), check=False)
            if images == set(self.engine.docker("images", "-q").stdout.split()):
                raise EngineError(f"{self.name}: these images cannot be removed: {images}")
        if self.way:
            root = Node(self.engine, self.share.folder).inner_root
            for cache in ("public", "private"):
                self.disk.set_aside(root / cache, root / "aside")

    def pull(self, ref: str) -> None:
        """`docker pull`."""
        self.engine.docker("pull", "-q", ref)

    def run(self, ref: str, task: Task) -> None:
        """`docker run` of the task; raises EngineError if it did not do it."""
        words = ("run", "--rm", "--network", "none", *task.run(ref))
        done = self.engine.docker(*words)
        if done.stdout.strip() != task.output:
            raise EngineError(f"{self.name}: {ref} printed {done.stdout!r}, not {task.output!r}")

    def disk_bytes(self) -> int:
        """The disk that everything of this node occupies."""
        command = ["du", "-sx", "--block-size=1", str(self.engine.data_root)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return int(done.stdout.split()[0])


def _last_line(text: str) -> str:
    return next((line for line in text.splitlines()[::-1] if line.strip()), text)


def make(name: str, link: Link, share: StoreShare, registry: Registry, disk: Disk) -> System:
    """The system *name* on *link*, not started."""
    environ = registry.client_environ
    engine = Engine(_engine(name), disk.folder / name, env=environ, netns=link.node_netns)
    return System(name, engine, share, disk)


def clean(disk: Disk) -> None:
    """End the engines that a crashed predecessor left; before its disk goes, which names them."""
    for name in names(WAYS):
        Engine(_engine(name), disk.folder / name).cleanup_predecessor()


def _engine(name: str) -> str:
    return f"bench-{name}"
