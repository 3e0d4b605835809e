"""
`make bench`: the same images on overlay2 and on Gear, in one run.

For each link every system is started.  Then, for each image, in random order,
each node pulls it and does its task, having never seen it; then come warm
starts and, on loopback, reading and stat of the cached trees.  On the first
link an image of 50,000 files is loaded and its index applied.  Medians and
ratios go to stdout, every row to build/bench/results.json.  How each figure
is measured: docs/benchmarks.md.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console
from tests.engine import plugin
from tests.engine.engine import EngineError
from tests.engine.recipes import TASKS

from bench import options, ordinary, report, results, systems
from bench.disk import Disk
from bench.link import Link, Network, StoreShare
from bench.rounds import Rounds, seconds, shuffled
from bench.supply import Supply
from bench.systems import System, Unsupported

WORK = plugin.BUILD / "engines"

_console = Console(stderr=True, soft_wrap=True)


def main() -> int:
    """See the module's text; 1 if a task failed, 0 whatever the figures are."""
    chosen = options.parse(sys.argv[1:])
    bench = Bench(chosen)
    begun = time.monotonic()
    try:
        bench.run()
    finally:
        results.write(chosen.results, bench.results.rows(), merge=chosen.merge)
    show(results.read(chosen.results), bench)
    say(f"done in {(time.monotonic() - begun) / 60:.1f} minutes; rows in {chosen.results}")
    return 1 if bench.failures else 0


class Bench:
    """One run: figures gather in `results`."""

    def __init__(self, chosen: options.Options) -> None:
        self._chosen = chosen
        self.results = results.Results()
        self.unsupported: dict[str, str] = {}
        """Systems that could not be had here, and why."""
        self.failures: list[str] = []
        """Tasks that were not done."""
        self._network = Network()
        self._disk = Disk(WORK / "bench-disk")
        self._supply = Supply(WORK, self._disk, self.results)

    def run(self) -> None:
        """Start everything, measure, stop everything."""
        chosen = self._chosen
        with ExitStack() as stack:
            systems.clean(self._disk)
            stack.callback(self._network.stop)
            self._network.start()
            stack.callback(self._disk.stop)
            self._disk.start()
            stack.callback(self._supply.stop)
            say("starting registry and builder")
            self._supply.start()
            for image in chosen.images:
                say(f"{image}: image, gear build, pushes")
                self._supply.make(image, chosen.builds)
            if "many" in chosen.parts:
                say("50,000 files: image, gear build, pushes")
                self._supply.make_many()
            if "ordinary" in chosen.parts:
                say("30,000 files: image and push")
                self._supply.make_large()
                if ordinary.BASE not in chosen.images:
                    self._supply.make(ordinary.BASE, 1)
            say("the plugin")
            self._supply.make_plugin()
            self._supply.rest()
            for link in chosen.links:
                with self._nodes(link) as nodes:
                    self._measure(link, nodes)

    @contextmanager
    def _nodes(self, link: Link) -> Iterator[list[System]]:
        """Every system that can be had, started on a new disk."""
        self._disk.start()
        self._network.shape(link)
        share = StoreShare(link, self._supply.store, WORK / "bench-share")
        with ExitStack() as stack:
            stack.callback(share.stop)
            share.start()
            nodes = []
            for name in systems.names(self._chosen.ways):
                say(f"{link.name}: starting {name}")
                node = systems.make(name, link, share, self._supply.registry, self._disk)
                stack.callback(node.stop)
                try:
                    node.start(self._supply.plugin_ref)
                except Unsupported as reason:
                    say(f"{name} is not supported here: {reason}")
                    self.unsupported[name] = str(reason)
                else:
                    nodes.append(node)
            yield nodes

    def _measure(self, link: Link, nodes: Sequence[System]) -> None:
        chosen = self._chosen
        supply = self._supply
        rounds = Rounds(link, self._network, supply.registry, supply.store, self.results)
        for image in chosen.images:
            able = self._cold(rounds, link, nodes, image)
            if "warm" in chosen.parts:
                say(f"{link.name}: {image}: warm starts")
                rounds.warm_starts(able, image, TASKS[image], chosen.warm)
            if "tree" in chosen.parts and not link.is_wire:
                say(f"{link.name}: {image}: reading the whole tree")
                rounds.trees(able, image, _walker(), chosen.walks)
        if "many" in chosen.parts and link == chosen.links[0]:
            say("50,000 files: docker load, ApplyDiff")
            rounds.loads(nodes, self._supply, chosen.runs)
            rounds.applies([node for node in nodes if node.way], self._supply, chosen.runs)
        if "ordinary" in chosen.parts and link == chosen.links[0]:
            self._ordinary(nodes)

    def _ordinary(self, nodes: Sequence[System]) -> None:
        work = ordinary.Ordinary(self._supply.registry, self.results, seconds)
        plain = [node for node in nodes if not node.way]
        gear = [node for node in nodes if node.way][:1]
        for number in range(self._chosen.runs):
            say(f"ordinary images: load, pull, commit, build, {number + 1}")
            for node in shuffled([*plain, *gear]):
                work.layers(node, self._supply.saved(ordinary.LARGE))
        for number in range(self._chosen.runs):
            say(f"containers: run, rm, {number + 1}")
            for node in shuffled(nodes):
                work.containers(node)

    def _cold(
        self, rounds: Rounds, link: Link, nodes: Sequence[System], image: str
    ) -> list[System]:
        """Cold rounds; returns the nodes that did the task each time, and have it now."""
        able = list(nodes)
        for number in range(self._chosen.runs):
            for node in shuffled(able):
                say(f"{link.name}: {image}: cold run {number + 1}, {node.name}")
                try:
                    rounds.cold(node, image, TASKS[image])
                except EngineError as error:
                    say(f"FAILED: {error}")
                    self.failures.append(f"{link.name}, {image}, {node.name}: {error}")
                    able.remove(node)
        return able


def show(rows: Sequence[results.Row], bench: Bench) -> None:
    """Tables, goals, and what is missing, on stdout."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    for table in report.tables(rows):
        console.print(table)
    console.print(report.goals(report.verdicts(rows)))
    for name, reason in bench.unsupported.items():
        print(f"not measured: {name}: {reason}")
    for failure in bench.failures:
        print(f"FAILED: {failure}")
    print("medians; in brackets multiples of overlay2's median, so below 1.00x is better")


def _walker() -> Path:
    """walk.c, compiled."""
    program = plugin.BUILD / "bench" / "walk"
    program.parent.mkdir(parents=True, exist_ok=True)
    source = Path(__file__).with_name("walk.c")
    subprocess.run(["gcc", "-O2", "-Wall", "-o", str(program), str(source)], check=True)
    return program


def say(text: str) -> None:
    """One line of progress, on stderr."""
    _console.print(f"{time.strftime('%H:%M:%S')} {text}", markup=False, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
