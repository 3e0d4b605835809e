"""
The measurements themselves.  Each takes systems that are up, and repeats them
in a random order, so that what else the machine does falls on all alike.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.engine.engine import EngineError
from tests.engine.recipes import Task
from tests.engine.registry import Registry
from tests.engine.world import Node

from bench.driver import apply_layer
from bench.link import Link, Network, drop_caches
from bench.results import Results
from bench.supply import MANY, Supply
from bench.systems import System

_ORDER = random.Random()
_LEARN_S = 1.0
"""An image's start is learned when the image leaves the node; the writing takes a moment."""


def shuffled(systems: Sequence[System]) -> list[System]:
    """The systems in a random order."""
    return _ORDER.sample(systems, len(systems))


def seconds(action: Callable[[], object]) -> float:
    """How long *action* takes."""
    begun = time.monotonic()
    action()
    return time.monotonic() - begun


class Rounds:
    """Measurements over one link; *store* is its own folder; figures go to *results*."""

    def __init__(
        self, link: Link, network: Network, registry: Registry, store: Path, results: Results
    ) -> None:
        self._link = link
        self._store = store
        self._network = network
        self._registry = registry
        self._results = results

    def cold(self, system: System, image: str, task: Task) -> None:
        """
        A node that has never seen *image* pulls it and does its task, once; on
        Gear a second time, as the fleet's next node, which knows how it starts.
        """
        self._make_cold(system)
        shutil.rmtree(self._store / "profiles", ignore_errors=True)
        pull_s, run_s = self._pull_and_run(system, image, task)
        self._add("pull_s", image, system, pull_s)
        self._add("first_run_s", image, system, run_s)
        self._add("pull_run_s", image, system, pull_s + run_s)
        if system.way:
            self._make_cold(system)
            pull_s, run_s = self._pull_and_run(system, image, task, note=False)
            self._add("known_run_s", image, system, run_s)
            self._add("known_pull_run_s", image, system, pull_s + run_s)

    def _make_cold(self, system: System) -> None:
        system.make_cold()
        time.sleep(_LEARN_S)
        system.share.remount()
        drop_caches()

    def _pull_and_run(
        self, system: System, image: str, task: Task, *, note: bool = True
    ) -> tuple[float, float]:
        """The seconds of both; *note*: and what went over the wire and to the disk."""
        ref = system.ref(image, self._registry)
        disk = system.disk_bytes()
        drop_caches()
        wire = self._network.received_bytes()
        pull_s = seconds(lambda: system.pull(ref))
        run_s = seconds(lambda: system.run(ref, task))
        if note and self._link.is_wire:
            self._add("wire_bytes", image, system, self._network.received_bytes() - wire)
        if note:
            self._add("disk_bytes", image, system, system.disk_bytes() - disk)
        return pull_s, run_s

    def warm_starts(
        self, systems: Sequence[System], image: str, task: Task, repetitions: int
    ) -> None:
        """The task again, on nodes that have done it before."""
        for number in range(repetitions + 1):
            for system in shuffled(systems):
                ref = system.ref(image, self._registry)
                took_s = seconds(lambda system=system, ref=ref: system.run(ref, task))  # type: ignore[misc]
                if number:  # the first warms up
                    self._add("warm_start_s", image, system, took_s)

    def trees(self, systems: Sequence[System], image: str, walker: Path, repetitions: int) -> None:
        """Stat and read every file of *image*, all of them cached, through running containers."""
        with ExitStack() as stack:
            roots = {
                system.name: stack.enter_context(running(system, system.ref(image, self._registry)))
                for system in systems
            }
            seen = {name: walk(walker, "read", root).visited for name, root in roots.items()}
            if len(set(seen.values())) != 1:
                raise EngineError(f"the trees of {image} differ: {seen}")
            for number in range(repetitions + 1):
                for mode in ("stat", "read"):
                    for system in shuffled(systems):
                        took = walk(walker, mode, roots[system.name])
                        if number:
                            self._add(f"warm_{mode}_s", image, system, took.wall_s)
                            self._add(f"warm_{mode}_cpu_s", image, system, took.cpu_s)

    def loads(self, systems: Sequence[System], supply: Supply, repetitions: int) -> None:
        """`docker load` of the image of 50,000 files."""
        for _ in range(repetitions):
            for system in shuffled(systems):
                system.make_cold()
                drop_caches()
                archive = supply.saved(f"{MANY}-gear" if system.way else MANY)
                words = ("load", "-q", "-i", str(archive))
                took_s = seconds(lambda system=system, words=words: system.engine.docker(*words))  # type: ignore[misc]
                self._add("load_s", MANY, system, took_s)

    def applies(self, systems: Sequence[System], supply: Supply, repetitions: int) -> None:
        """ApplyDiff of the 50,000-file index on the plugin's own socket, without docker."""
        for number in range(repetitions + 1):
            for system in shuffled(systems):
                plugin_socket = Node(system.engine, system.share.folder).plugin_socket
                took_s = apply_layer(plugin_socket, supply.many_index)
                if number:
                    self._add("apply_s", MANY, system, took_s)

    def _add(self, measure: str, image: str, system: System, value: float) -> None:
        link = "-" if measure in ("load_s", "apply_s") else self._link.name
        self._results.add(measure, image, link, system.name, value)


@contextmanager
def running(system: System, ref: str) -> Iterator[Path]:
    """A waiting container of *ref*; its root as its own processes see it."""
    words = ("run", "-d", "--network", "none", "--user", "0", "--entrypoint", "sleep")
    name = system.engine.docker(*words, ref, "3600").stdout.strip()
    try:
        yield Path(f"/proc/{system.engine.container_pid(name)}/root")
    finally:
        system.engine.docker("rm", "-f", name)


class Walk(NamedTuple):
    """One walk through a tree."""

    wall_s: float
    cpu_s: float
    visited: tuple[int, int]
    """Entries and bytes."""


def walk(walker: Path, mode: str, root: Path) -> Walk:
    """Run walk.c."""
    command = [str(walker), mode, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EngineError(f"{' '.join(command)}: {done.stderr.strip()}")
    wall_s, cpu_s, entries, size_bytes = done.stdout.split()
    return Walk(float(wall_s), float(cpu_s), (int(entries), int(size_bytes)))
