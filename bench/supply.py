"""
What is measured, made ready on the server's side: a registry with each image
as it is and as a Gear image, the store with their files, and the plugin.

The builder is an engine in the server's namespace, so that nothing of this
crosses the link.
"""

from __future__ import annotations

import io
import json
import random
import shutil
import tarfile
from pathlib import Path

from tests.engine import images, plugin
from tests.engine.engine import Engine
from tests.engine.registry import Registry
from tests.engine.world import Gear

from bench.link import SERVER, SERVER_ADDRESS
from bench.results import GEAR, OVERLAY2, Results

MANY = "files50k"
MANY_FILES = 50_000
_FILES_A_FOLDER = 100


class Supply:
    """Registry, store and builder under *work*; figures of building go to *results*."""

    def __init__(self, work: Path, results: Results) -> None:
        self._work = work
        self._results = results
        self.registry = Registry(work / "bench-registry", SERVER_ADDRESS, SERVER)
        environ = self.registry.client_environ
        self._builder = Engine("bench-a", work / "bench-a", env=environ, netns=SERVER)
        self.store = work / "bench-data" / "store"
        self._gear = Gear(self._builder, work / "bench-data" / "root", self.store)
        self.plugin_ref = ""

    def start(self) -> None:
        """Start registry and builder."""
        shutil.rmtree(self._gear.root, ignore_errors=True)
        shutil.rmtree(self.store, ignore_errors=True)
        self.store.parent.mkdir(parents=True, exist_ok=True)
        self.registry.start()
        self._builder.start()

    def rest(self) -> None:
        """Stop the builder: nothing more will be made."""
        self._builder.stop()

    def stop(self) -> None:
        """Stop everything.  The builder keeps its images for the next time."""
        self._builder.stop()
        self.registry.stop()

    def make_plugin(self) -> None:
        """Build the plugin and push it to the registry."""
        self.plugin_ref = f"{self.registry.address}/gear/graphdriver:1"
        plugin.publish(self._builder, self.plugin_ref)

    def make(self, image: str, builds: int) -> None:
        """Have *image* and its Gear image in the registry; build it *builds* times."""
        self._make(image, images.ensure(self._builder, image), builds)

    def make_many(self, builds: int) -> None:
        """The image of 50,000 files, which is there to be loaded."""
        archive = self._work / "bench-data" / f"{MANY}.tar"
        if not archive.exists():
            write_many(archive)
        local = f"bench/{MANY}:1"
        self._builder.docker("import", str(archive), local)
        self._make(MANY, local, builds)
        for name in (MANY, f"{MANY}-gear"):
            saved = str(self.saved(name))
            self._builder.docker("save", "-o", saved, f"{self.registry.address}/{name}:1")

    def saved(self, name: str) -> Path:
        """The image of 50,000 files, or its Gear image, as `docker save` wrote it."""
        return self._work / "bench-data" / f"saved-{name}.tar"

    def index_tar(self, image: str) -> Path:
        """The index layer that `gear build` left for *image*."""
        return next((self._gear.root / "build").glob(f"*+{image}=1/build/index.tar"))

    def _make(self, image: str, local: str, builds: int) -> None:
        ref = f"{self.registry.address}/{image}:1"
        gear_ref = f"{self.registry.address}/{image}-gear:1"
        self._builder.docker("tag", local, ref)
        self._builder.docker("push", "-q", ref)
        for _ in range(builds):
            built = json.loads(self._gear("build", "--json", ref).stdout)
            rate = built["original_bytes"] / 1e6 / built["seconds"]
            self._results.add("build_mb_s", image, "-", GEAR, rate)
        before = self.registry.stored_bytes()
        self._gear("push", gear_ref)
        index_bytes = self.registry.stored_bytes() - before
        self._results.add("image_bytes", image, "-", OVERLAY2, built["original_bytes"])
        self._results.add("index_bytes_per_file", image, "-", GEAR, index_bytes / built["files"])


def write_many(target: Path, files: int = MANY_FILES) -> None:
    """A tar of *files* small files, no two alike, 100 to a folder; always the same."""
    content = random.Random(3).randbytes
    partial = target.with_suffix(".new")
    with tarfile.open(partial, "w") as archive:
        for number in range(files):
            if number % _FILES_A_FOLDER == 0:
                folder = tarfile.TarInfo(f"data/{number // _FILES_A_FOLDER:04}")
                folder.type, folder.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(folder)
            data = content(100 + number % 800)
            member = tarfile.TarInfo(f"{folder.name}/file-{number:06}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    partial.rename(target)
