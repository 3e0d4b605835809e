"""
`make demo`: one real image, on overlay2 and on Gear, with nothing configured.

Makes an image (Debian, Python, numpy, scipy, pandas), turns it into a Gear
image, pushes both to a private registry; then, on a fresh engine each time,
pulls the image and runs a task with it.  Everything is started here, on
loopback, and stopped at the end.  `--runs N` repeats the two sides in turn
and shows medians; the figures also go to build/bench/results.json.
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
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tests.engine import images, plugin
from tests.engine.engine import Engine
from tests.engine.registry import Registry
from tests.engine.storewatch import StoreWatch
from tests.engine.world import Gear, Node, install

IMAGE = "scipy"
TASK = ("-c", "import numpy, scipy.linalg; print(scipy.linalg.det(numpy.eye(3)))")
WORK = plugin.BUILD / "engines"
RESULTS = plugin.BUILD / "bench" / "results.json"

console = Console(stderr=True)


@dataclass(frozen=True)
class Run:
    """One pull and two runs of the task on an engine that had nothing."""

    pull_s: float
    first_run_s: float
    second_run_s: float
    objects: int = 0
    object_bytes: int = 0


def main() -> None:
    """See the module's text."""
    parser = ArgumentParser(prog="make demo", description="overlay2 and Gear side by side")
    parser.add_argument("--runs", type=int, default=1, help="repetitions of each side")
    runs = parser.parse_args().runs
    registry = Registry(WORK / "demo-registry")
    registry.start()
    builder = Engine("demo-a", WORK / "demo-a", env=registry.client_environ)
    try:
        say("starting a private engine and registry")
        builder.start()
        with tempfile.TemporaryDirectory(prefix="gear-demo-") as folder:
            compare(builder, registry, Path(folder), runs)
    finally:
        builder.stop()
        registry.stop()


def compare(builder: Engine, registry: Registry, folder: Path, runs: int) -> None:
    """Build, push, run on both sides, print the table."""
    say(f"making the image {IMAGE!r} (minutes the first time, then cached)")
    ref = f"{registry.address}/{IMAGE}:1"
    gear_ref = f"{registry.address}/{IMAGE}-gear:1"
    builder.docker("tag", images.ensure(builder, IMAGE), ref)
    builder.docker("push", "-q", ref)
    image_bytes = registry.stored_bytes()
    gear = Gear(builder, folder / "root", folder / "store")
    say("gear build, gear push")
    built = json.loads(gear("build", "--json", ref).stdout)
    gear("push", gear_ref)
    index_bytes = registry.stored_bytes() - image_bytes
    say("making the plugin and pushing it to the registry")
    plugin_ref = f"{registry.address}/gear/graphdriver:1"
    plugin.publish(builder, plugin_ref)
    before: list[Run] = []
    after: list[Run] = []
    for number in range(runs):
        say(f"run {number + 1} of {runs}: overlay2, then gear")
        before.append(on_overlay2(registry, ref))
        after.append(on_gear(registry, gear_ref, plugin_ref, gear.store))
    show(before, after, image_bytes, index_bytes, built)


def on_overlay2(registry: Registry, ref: str) -> Run:
    """The original image on docker's own driver."""
    with fresh_engine("demo-o", registry) as engine:
        return measure(engine, ref)


def on_gear(registry: Registry, ref: str, plugin_ref: str, store: Path) -> Run:
    """The Gear image on the plugin, installed as a user would."""
    with fresh_engine("demo-g", registry) as engine:
        install(engine, plugin_ref, store)
        engine.restart("gear")
        watch = StoreWatch(store)
        run = measure(engine, ref)
        cached = Node(engine, store).cached_bytes()
        return Run(run.pull_s, run.first_run_s, run.second_run_s, len(watch.read()), cached)


@contextmanager
def fresh_engine(name: str, registry: Registry) -> Iterator[Engine]:
    """An engine without any image, gone at the end."""
    shutil.rmtree(WORK / name, ignore_errors=True)
    engine = Engine(name, WORK / name, env=registry.client_environ)
    try:
        engine.start("overlay2")
        yield engine
    finally:
        engine.remove()


def measure(engine: Engine, ref: str) -> Run:
    """Pull *ref* and run the task twice."""
    words = ("run", "--rm", "--network", "none", ref, *TASK)
    marks = [time.monotonic()]
    for command in (("pull", "-q", ref), words, words):
        engine.docker(*command)
        marks.append(time.monotonic())
    pull, first, second = (end - start for start, end in pairwise(marks))
    return Run(pull, first, second)


def show(
    before: list[Run], after: list[Run], image_bytes: int, index_bytes: int, built: dict[str, int]
) -> None:
    """The table on stdout, and every figure in RESULTS."""
    rows: list[dict[str, object]] = []

    def seconds(title: str, name: str) -> tuple[str, str, str, str]:
        old, new = ([float(asdict(run)[name]) for run in side] for side in (before, after))
        rows.extend(
            row(name, system, values) for system, values in (("overlay2", old), ("gear", new))
        )
        a, b = statistics.median(old), statistics.median(new)
        return title, f"{a:.2f} s", f"{b:.2f} s", f"{a / b:.1f} x"

    table = Table(
        "", "overlay2", "gear", "ratio", title=f"Debian + numpy + scipy + pandas ({IMAGE})"
    )
    table.add_row("image in layers", megabytes(built["original_bytes"]), "", "")
    table.add_row(
        "in the registry, to pull",
        megabytes(image_bytes),
        megabytes(index_bytes),
        f"{image_bytes / index_bytes:.0f} x",
    )
    table.add_row("files of the image", str(built["files"]), f"{built['objects']} objects", "")
    run = after[-1]
    table.add_row("objects fetched to run", "all", str(run.objects), "")
    share = built["object_bytes"] / max(run.object_bytes, 1)
    table.add_row(
        "bytes of files on the node",
        megabytes(built["object_bytes"]),
        megabytes(run.object_bytes),
        f"{share:.1f} x",
    )
    table.add_row(*seconds("docker pull", "pull_s"))
    table.add_row(*seconds("first docker run", "first_run_s"))
    table.add_row(*seconds("second docker run", "second_run_s"))
    old = statistics.median(run.pull_s + run.first_run_s for run in before)
    new = statistics.median(run.pull_s + run.first_run_s for run in after)
    table.add_row("pull + first run", f"{old:.2f} s", f"{new:.2f} s", f"{old / new:.1f} x")
    Console().print(table)
    print(f"loopback registry, nothing shaped; medians of {len(after)} run(s) each")
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=2) + "\n")


def row(measure_name: str, system: str, values: list[float]) -> dict[str, object]:
    """One line of results.json."""
    return {
        "measure": measure_name,
        "image": IMAGE,
        "link": "loopback",
        "system": system,
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "n": len(values),
        "unit": "s",
    }


def megabytes(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e6:.1f} MB"


def say(text: str) -> None:
    """One line of progress, on stderr."""
    console.print(f"{time.strftime('%H:%M:%S')} {text}")


if __name__ == "__main__":
    main()
