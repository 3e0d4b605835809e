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

from bench import ordinary
from bench.disk import Disk
from bench.link import SERVER, SERVER_ADDRESS
from bench.results import GEAR, OVERLAY2, Results

MANY = "files50k"
MANY_FILES = 50_000
_FILES_A_FOLDER = 100
_PORT = 5000


class Supply:
    """
    Registry, store and builder under *work*; `gear build` works on *disk*.

    Figures of building go to *results*.
    """

    def __init__(self, work: Path, disk: Disk, results: Results) -> None:
        self._data = work / "bench-data"
        self._results = results
        self.registry = Registry(work / "bench-registry", SERVER_ADDRESS, SERVER, _PORT)
        environ = self.registry.client_environ
        self._builder = Engine("bench-a", work / "bench-a", env=environ, netns=SERVER)
        self.store = self._data / "store"
        self._gear = Gear(self._builder, disk.folder / "build", self.store)
        self.plugin_ref = ""

    def start(self) -> None:
        """Start registry and builder."""
        self._data.mkdir(parents=True, exist_ok=True)
        self.registry.start()
        self._builder.start()

    def rest(self) -> None:
        """Stop the builder: nothing more will be made."""
        self._builder.stop()

    def stop(self) -> None:
        """Stop everything; builder and store keep what they have for the next time."""
        self._builder.stop()
        self.registry.stop()

    def make_plugin(self) -> None:
        """Build the plugin and push it to the registry."""
        self.plugin_ref = f"{self.registry.address}/gear/graphdriver:1"
        plugin.publish(self._builder, self.plugin_ref)

    def make(self, image: str, builds: int) -> None:
        """Have *image* and its Gear image in the registry; build it *builds* times."""
        ref = self._tag(image, images.ensure(self._builder, image))
        self._builder.docker("push", "-q", ref)
        for _ in range(builds):
            built = json.loads(self._gear("build", "--json", ref).stdout)
            rate = built["original_bytes"] / 1e6 / built["seconds"]
            self._results.add("build_mb_s", image, "-", GEAR, rate)
        self._note_image(image, built)
        before = self.registry.stored_bytes()
        self._gear("push", self._gear_ref(image))
        self._note_index(image, built, self.registry.stored_bytes() - before)

    def make_many(self) -> None:
        """
        The image of 50,000 files and its Gear image, saved to be loaded.

        Its files do not go to the store: no node opens any.
        """
        archive = self._data / f"{MANY}.tar"
        if not archive.exists():
            write_many(archive)
        local = f"bench/{MANY}:1"
        self._builder.docker("import", str(archive), local)
        ref = self._tag(MANY, local)
        built = json.loads(self._gear("build", "--json", ref).stdout)
        (index_tar,) = (self._gear.root / "build").glob(f"*+{MANY}=1/build/index.tar")
        shutil.copy(index_tar, self.many_index)
        self._note_image(MANY, built)
        before = self.registry.stored_bytes()
        self._builder.docker("push", "-q", self._gear_ref(MANY))
        self._note_index(MANY, built, self.registry.stored_bytes() - before)
        for name in (MANY, f"{MANY}-gear"):
            saved = str(self.saved(name))
            self._builder.docker("save", "-o", saved, f"{self.registry.address}/{name}:1")

    def make_large(self) -> None:
        """The ordinary image of 30,000 files, in the registry and saved to be loaded."""
        archive = self._data / f"{ordinary.LARGE}.tar"
        if not archive.exists():
            ordinary.write_large(archive)
        local = f"bench/{ordinary.LARGE}:1"
        self._builder.docker("import", str(archive), local)
        ref = self._tag(ordinary.LARGE, local)
        self._builder.docker("push", "-q", ref)
        self._builder.docker("save", "-o", str(self.saved(ordinary.LARGE)), ref)

    @property
    def many_index(self) -> Path:
        """The index layer of the image of 50,000 files."""
        return self._data / f"{MANY}-index.tar"

    def saved(self, name: str) -> Path:
        """An image of many files as `docker save` wrote it."""
        return self._data / f"saved-{name}.tar"

    def _gear_ref(self, image: str) -> str:
        return f"{self.registry.address}/{image}-gear:1"

    def _tag(self, image: str, local: str) -> str:
        ref = f"{self.registry.address}/{image}:1"
        self._builder.docker("tag", local, ref)
        return ref

    def _note_image(self, image: str, built: dict[str, int]) -> None:
        self._results.add("image_bytes", image, "-", OVERLAY2, built["original_bytes"])

    def _note_index(self, image: str, built: dict[str, int], size_bytes: int) -> None:
        """*size_bytes*: what the registry keeps of the Gear image, compressed."""
        rate = size_bytes / built["files"]
        self._results.add("index_bytes_per_file", image, "-", GEAR, rate)


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
