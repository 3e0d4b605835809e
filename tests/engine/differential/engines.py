"""
Two engines with the same image: one on overlay2, one on Gear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.engine.differential import compare
from tests.engine.differential.side import BASE, Engines, Note, Side
from tests.engine.engine import Engine
from tests.engine.registry import Registry
from tests.engine.world import install

Scenario = Callable[[Side], None]
BASES = ("ordinary", "gear")
"""The image on Gear's engine: the same that overlay2 has, or the Gear image of it."""


@dataclass(frozen=True)
class Refs:
    """The image that scenarios work with, in the registry, by BASES."""

    ordinary: str
    gear: str

    def __getitem__(self, base: str) -> str:
        return str(getattr(self, base))


@dataclass
class Pair:
    """The two engines; what a scenario noted on overlay2 is kept."""

    overlay2: Engine
    gear: Engine
    registry: Registry
    refs: Refs
    scratch: Path
    kind: Engines
    _theirs: dict[str, Sequence[Note]] = field(default_factory=dict)

    def differences(self, name: str, scenario: Scenario, base: str) -> list[str]:
        """Where *scenario* noted something else on Gear's engine, on an image of BASES."""
        with ThreadPoolExecutor(2) as workers:
            theirs = workers.submit(self._on_overlay2, name, scenario)
            ours = workers.submit(self._on_gear, scenario, base)
            return compare.differences(theirs.result(), ours.result())

    def _on_overlay2(self, name: str, scenario: Scenario) -> Sequence[Note]:
        if name not in self._theirs:
            side = self._side("overlay2", self.overlay2, self.refs.ordinary)
            self._theirs[name] = compare.notes_of(side, scenario)
        return self._theirs[name]

    def _on_gear(self, scenario: Scenario, base: str) -> Sequence[Note]:
        return compare.notes_of(self._side(f"on-{base}", self.gear, self.refs[base]), scenario)

    def _side(self, name: str, engine: Engine, ref: str) -> Side:
        engine.docker("tag", ref, BASE)
        scratch = self.scratch / name
        scratch.mkdir(exist_ok=True)
        return Side(name, engine, self.registry, scratch, self.kind)


@contextmanager
def running(pair: Pair, plugin_ref: str, store: Path) -> Iterator[Pair]:
    """Both engines started, the plugin installed in one, images pulled."""
    both = (pair.overlay2, pair.gear)
    for engine in both:
        engine.remove()  # what a crashed predecessor left
    try:
        with ThreadPoolExecutor(2) as workers:
            list(workers.map(lambda engine: engine.start("overlay2"), both))
            pulled = workers.submit(pair.overlay2.docker, "pull", "-q", pair.refs.ordinary)
            install(pair.gear, plugin_ref, store)
            pair.gear.restart("gear")
            for base in BASES:
                pair.gear.docker("pull", "-q", pair.refs[base])
            pulled.result()
        yield pair
    finally:
        for engine in both:
            engine.remove()
