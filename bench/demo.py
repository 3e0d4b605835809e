"""
`make demo`: one real image, on overlay2 and on Gear, with nothing configured.

Makes an image (Debian, Python, numpy and scipy), turns it into a Gear image,
pushes both to a private registry, and then, on a fresh engine each time, pulls
the image and runs a task with it.  Everything is started here, on loopback,
and stopped at the end.  `--runs N` repeats the two sides in turn and shows
medians.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.engine import images, plugin
from tests.engine.conftest import Gear, install
from tests.engine.engine import Engine
from tests.engine.registry import Registry
from tests.engine.storewatch import StoreWatch

IMAGE = "scipy"
TASK = ("python3", "-c", "import numpy, scipy.linalg; print(scipy.linalg.det(numpy.eye(3)))")
WORK = plugin.BUILD / "engines" / "demo"
RESULTS = plugin.BUILD / "bench" / "results.json"


@dataclass(frozen=True)
class Run:
    """One side's one run: seconds, and the bytes its engine keeps for the image."""

    pull_s: float
    first_s: float
    second_s: float
    disk_bytes: int
    objects: int = 0
    object_bytes: int = 0


def say(console: Console, text: str) -> None:
    """One line of progress."""
    console.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim] {text}")


def measure(engine: Engine, ref: str, state: Path) -> Run:
    """Pull *ref* and run the task twice, on an engine that has neither."""
    used = disk_bytes(state)
    begun = time.monotonic()
    engine.docker("pull", "-q", ref)
    pulled = time.monotonic()
    words = ("run", "--rm", "--network", "none", "--entrypoint", TASK[0], ref, *TASK[1:])
    engine.docker(*words)
    first = time.monotonic()
    engine.docker(*words)
    second = time.monotonic()
    return Run(pulled - begun, first - pulled, second - first, disk_bytes(state) - used)


def disk_bytes(folder: Path) -> int:
    """Blocks in use on the filesystem of *folder*; a difference of two says what was added."""
    import os

    os.sync()
    status = os.statvfs(folder)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


@contextmanager
def fresh_engine(name: str, registry: Registry) -> Iterator[Engine]:
    """An engine without any image."""
    shutil.rmtree(WORK / name, ignore_errors=True)
    engine = Engine(name, WORK / name, env=registry.client_environ)
    engine.start("overlay2")
    try:
        yield engine
    finally:
        engine.remove()


def on_overlay2(registry: Registry, ref: str) -> Run:
    """The original image on docker's own driver."""
    with fresh_engine("overlay2", registry) as engine:
        return measure(engine, ref, WORK)


def on_gear(registry: Registry, ref: str, plugin_ref: str, store: Path) -> Run:
    """The Gear image on the plugin."""
    with fresh_engine("gear", registry) as engine:
        install(engine, plugin_ref, store)
        engine.restart("gear")
        watch = StoreWatch(store)
        run = measure(engine, ref, WORK)
        sizes = images.object_sizes(engine)
        return Run(
            run.pull_s,
            run.first_s,
            run.second_s,
            run.disk_bytes,
            len(watch.read()),
            sum(sizes),
        )
