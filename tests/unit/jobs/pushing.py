"""Real `gear push` processes, their store, their catalog, and a look at both afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from gear_plugin.catalog import open_catalog
from gear_plugin.content import DirectoryStore
from gear_plugin.digest import Digest, object_id
from gear_plugin.jobs import PushResult, build, push
from gear_plugin.names import ImageId
from tests.unit.image.tars import tar
from tests.unit.jobs import saves
from tests.unit.jobs.fakes import FakeEngine, Recorder
from tests.unit.jobs.stub_engine import StubEngine


class Machine:
    """
    Everything that `gear push` touches; images are built in this process.

    Pushes are other processes while `engine` serves, or run in this one.
    """

    def __init__(self, folder: Path, catalog: str, fake: FakeEngine | None = None) -> None:
        self.root = folder / "root"
        self.store = folder / "store"
        self.catalog = catalog
        self.fake = fake or FakeEngine()
        self.contents: dict[ImageId, dict[str, bytes]] = {}
        self.folder = folder

    def build(self, image: ImageId, contents: dict[str, bytes]) -> None:
        """`gear build` of an image with these files."""
        layer = tar(*(saves.file(path, content) for path, content in contents.items()))
        self.fake.images[str(image)] = saves.saved_by_20(str(image), [layer])
        build(image, self.fake, self.root, Recorder())
        self.contents[image] = contents

    @contextmanager
    def served(self) -> Iterator[Machine]:
        """This machine, with an engine for other processes."""
        with StubEngine(self.fake) as self.engine:
            yield self

    def start(self, image: ImageId, **settings: object) -> subprocess.Popen[str]:
        """`gear push --json` of its Gear image, as a process of its own."""
        command = [sys.executable, "-m", "gear_plugin", "--host", self.engine.host]
        command += ["--root", str(self.root), "--store", str(self.store)]
        command += ["--catalog", self.catalog, "push", "--json", str(image.gear)]
        environ = {**os.environ, "DOCKER_CONFIG": str(self.folder / "docker")}
        environ.update({f"GEAR_{name.upper()}": str(value) for name, value in settings.items()})
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ
        )

    def push(self, image: ImageId) -> PushResult:
        """Push in this process, which must succeed."""
        store = DirectoryStore.create(self.store)
        with closing(open_catalog(self.catalog)) as catalog:
            return push(image.gear, self.fake, store, catalog, self.root, Recorder())

    def stored(self) -> int:
        """How many objects the store has."""
        return sum(1 for _ in self.store.glob("objects/*/*"))

    def check(self, *images: ImageId) -> None:
        """All of each image is there, right, and under its name; nothing is left half-done."""
        store = DirectoryStore(self.store)
        with closing(open_catalog(self.catalog)) as catalog:
            for image in images:
                contents = self.contents[image]
                digests = {path: Digest.of(content) for path, content in contents.items()}
                assert catalog.objects_of(image) == set(digests.values())
                for path, content in contents.items():
                    oid = object_id(str(image), path.encode())
                    assert catalog.resolve(oid) == digests[path]
                    with store.read(digests[path]) as chunks:
                        assert b"".join(chunks) == content
                assert str(image.gear) in self.fake.pushed
        assert list((self.store / "incoming").iterdir()) == []

    def is_recorded(self, image: ImageId) -> bool:
        """Whether the catalog names it."""
        with closing(open_catalog(self.catalog)) as catalog:
            return image in {record.image for record in catalog.list_images()}


def done(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The result of a push that must succeed."""
    stdout, stderr = process.communicate(timeout=100)
    assert process.returncode == 0, stderr
    result: dict[str, Any] = json.loads(stdout)
    return result


def failed(process: subprocess.Popen[str], code: int) -> str:
    """What a push said that must end with *code*: nothing on stdout, no traceback."""
    stdout, stderr = process.communicate(timeout=100)
    assert process.returncode == code, stderr
    assert stdout == ""
    assert "Traceback" not in stderr
    lines = [line for line in stderr.splitlines() if line.startswith("gear: ")]
    assert lines == stderr.splitlines()[-1:]
    return lines[0]


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Until it is true, or *process* has ended."""
    deadline_s = time.monotonic() + 100
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline_s
        time.sleep(0.002)


def files(salt: str, count: int) -> dict[str, bytes]:
    """*count* small files, every tenth compressible, with content of *salt* alone."""
    return {
        f"{salt}/{number}": f"{salt} {number} ".encode() * (2000 if number % 10 == 0 else 1)
        for number in range(count)
    }
