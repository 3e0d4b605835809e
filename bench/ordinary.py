"""
The work of every day, on ordinary images: what a storage driver costs those
who do not use Gear images at all, and how quickly containers come and go.

Layers (load, pull, commit, build) do not depend on the way of mounting, so one
Gear system stands for all; runs and removals are of the Gear image there.
"""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.engine.engine import Engine
from tests.engine.registry import Registry

from bench.link import drop_caches
from bench.results import Results
from bench.systems import System

LARGE = "files30k"
LARGE_FILES = 30_000
_FOLDERS = 300
_MEDIAN_BYTES, _SIGMA, _MAX_BYTES = 9_900, 1.6, 4_000_000
"""Sizes as in /usr: half the files under 10 KB, most of the bytes in a few; 1.07 GB together."""

BASE = "web"
"""The image that containers are made of; it has a shell and Python."""
CHANGED_FILES = 10_000
STEPS = 20
SEQUENTIAL = 100
PARALLEL = 20
REMOVED = 50

_WRITE = f"""
import os
for number in range({CHANGED_FILES}):
    if number % 100 == 0:
        os.mkdir(f"/srv/d{{number}}")
        folder = f"/srv/d{{number}}"
    with open(f"{{folder}}/f{{number}}", "wb") as file:
        file.write(b"%d" % number * 200)
"""


def write_large(target: Path) -> None:
    """A tar of LARGE_FILES files, always the same; its bytes do not compress."""
    chance = random.Random(30)
    blob = chance.randbytes(2 * _MAX_BYTES)
    partial = target.with_suffix(".new")
    with tarfile.open(partial, "w") as archive:
        for number in range(LARGE_FILES):
            if number % (LARGE_FILES // _FOLDERS) == 0:
                folder = tarfile.TarInfo(f"usr/d{number}")
                folder.type, folder.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(folder)
            size = draw_size_bytes(chance)
            start = chance.randrange(len(blob) - size)
            member = tarfile.TarInfo(f"{folder.name}/f{number}")
            member.size = size
            archive.addfile(member, io.BytesIO(blob[start : start + size]))
    partial.rename(target)


def draw_size_bytes(chance: random.Random) -> int:
    """The size of one file of an ordinary image."""
    return min(int(_MEDIAN_BYTES * chance.lognormvariate(0, _SIGMA)), _MAX_BYTES)


class Ordinary:
    """The measurements; *timed* gives the seconds of an action."""

    def __init__(
        self, registry: Registry, results: Results, timed: Callable[[Callable[[], object]], float]
    ) -> None:
        self._registry = registry
        self._results = results
        self._timed = timed

    def layers(self, system: System, saved: Path) -> None:
        """Once each: load and pull of the large image, commit, build."""
        docker, large = system.engine.docker, f"{self._registry.address}/{LARGE}:1"
        system.make_cold()
        drop_caches()
        self._add("load_s", LARGE, system, lambda: docker("load", "-q", "-i", str(saved)))
        system.make_cold()
        drop_caches()
        self._add("pull_s", LARGE, system, lambda: docker("pull", "-q", large))
        docker("pull", "-q", self._base)
        self._commit(system)
        self._build(system)

    def containers(self, system: System) -> None:
        """Once each: containers one after another, many at once, and the removal of many."""
        docker, ref = system.engine.docker, system.ref(BASE, self._registry)
        docker("pull", "-q", ref)
        container = ("--network", "none", "--entrypoint", "true", ref)
        run = ("run", "--rm", *container)
        docker(*run)

        def one_by_one() -> None:
            for _ in range(SEQUENTIAL):
                docker(*run)

        self._add("run_many_s", BASE, system, one_by_one)
        self._add("run_parallel_s", BASE, system, lambda: _at_once(system.engine, run))
        names = [docker("create", *container).stdout.strip() for _ in range(REMOVED)]
        self._add("rm_s", BASE, system, lambda: docker("rm", *names))

    @property
    def _base(self) -> str:
        return f"{self._registry.address}/{BASE}:1"

    def _commit(self, system: System) -> None:
        docker = system.engine.docker
        words = ("run", "-d", "--network", "none", "--user", "0", "--entrypoint", "sleep")
        name = docker(*words, self._base, "3600").stdout.strip()
        try:
            docker("exec", "--user", "0", name, "python3", "-c", _WRITE)
            self._add("commit_s", BASE, system, lambda: docker("commit", name, "bench/commit"))
        finally:
            docker("rm", "-f", name)

    def _build(self, system: System) -> None:
        """A Dockerfile of STEPS steps, half of them copying, half of them running."""
        with TemporaryDirectory() as context:
            lines = [f"FROM {self._base}", "USER root"]
            for number in range(STEPS // 2):
                Path(context, f"f{number}").write_bytes(b"%d\n" % number * 1000)
                lines.append(f"COPY f{number} /srv/f{number}")
                lines.append(f"RUN mv /srv/f{number} /srv/g{number} && mkdir /srv/d{number}")
            Path(context, "Dockerfile").write_text("\n".join(lines) + "\n")
            words = ("build", "-q", "--no-cache", "--network", "none", "-t", "bench/build", context)
            self._add("image_build_s", BASE, system, lambda: system.engine.docker(*words))

    def _add(self, measure: str, image: str, system: System, action: Callable[[], object]) -> None:
        self._results.add(measure, image, "-", system.name, self._timed(action))


def _at_once(engine: Engine, words: tuple[str, ...]) -> None:
    with ThreadPoolExecutor(PARALLEL) as workers:
        for done in [workers.submit(engine.docker, *words) for _ in range(PARALLEL)]:
            done.result()
