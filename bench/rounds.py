"""
The measurements themselves.  Each takes systems that are up, and repeats them
in a random order, so that what else the machine does falls on all alike.
"""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

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


def shuffled(systems: Sequence[System]) -> list[System]:
    """The systems in a random order."""
    return _ORDER.sample(systems, len(systems))


def seconds(action: Callable[[], object]) -> float:
    """How long *action* takes."""
    begun = time.monotonic()
    action()
    return time.monotonic() - begun


class Rounds:
    """Measurements over one link; figures go to *results*."""

    def __init__(self, link: Link, network: Network, registry: Registry, results: Results) -> None:
        self._link = link
        self._network = network
        self._registry = registry
        self._results = results

    def cold(self, system: System, image: str, task: Task) -> None:
        """A node that has never seen *image* pulls it and does its task, once."""
        ref = system.ref(image, self._registry)
        system.make_cold()
        system.share.remount()
        drop_caches()
        disk = system.disk_bytes()
        drop_caches()
        wire = self._network.received_bytes()
        pull_s = seconds(lambda: system.pull(ref))
        run_s = seconds(lambda: system.run(ref, task))
        self._add("pull_s", image, system, pull_s)
        self._add("first_run_s", image, system, run_s)
        self._add("pull_run_s", image, system, pull_s + run_s)
        if self._link.is_wire:
            self._add("wire_bytes", image, system, self._network.received_bytes() - wire)
        self._add("disk_bytes", image, system, system.disk_bytes() - disk)

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
            seen = {system.name: walk(walker, "read", roots[system.name])[1:] for system in systems}
            if len(set(seen.values())) != 1:
                raise EngineError(f"the trees of {image} differ: {seen}")
            for number in range(repetitions + 1):
                for mode in ("stat", "read"):
                    for system in shuffled(systems):
                        took_s, *_ = walk(walker, mode, roots[system.name])
                        if number:
                            self._add(f"warm_{mode}_s", image, system, took_s)

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


def walk(walker: Path, mode: str, root: Path) -> tuple[float, int, int]:
    """Run walk.c: seconds, entries, bytes."""
    command = [str(walker), mode, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EngineError(f"{' '.join(command)}: {done.stderr.strip()}")
    took_s, entries, size = done.stdout.split()
    return float(took_s), int(entries), int(size)
