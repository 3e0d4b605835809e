from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from gear_plugin.catalog import MemoryCatalog
from gear_plugin.content import MemoryStore
from gear_plugin.errors import AccessDenied, ImageNotFound, IndexDamaged, SourceUnavailable
from gear_plugin.jobs import BuildFolder, BuiltImages, FileSource, build, push
from gear_plugin.names import ImageId
from tests.unit.image.tars import tar
from tests.unit.jobs import saves
from tests.unit.jobs.fakes import Recorder
from tests.unit.jobs.registries import FakeRegistry, Reply, client, serving
from tests.unit.jobs.saves import CONFIG, file


class World:
    """A build without an engine, and the registry that its name says."""

    def __init__(self, folder: Path, server: FakeRegistry) -> None:
        self.root = folder
        self.server = server
        self.image = ImageId.parse(f"{server.address}/app:1")
        self.store, self.catalog = MemoryStore(), MemoryCatalog()
        self.images = BuiltImages(folder, client(folder))
        self.folder = BuildFolder.of(folder, self.image)

    def build(self, content: bytes = b"content") -> None:
        archive = self.root / "saved.tar"
        archive.write_bytes(saves.saved_by_20(str(self.image), [tar(file("a", content))]))
        build(self.image, None, self.root, Recorder(), source=FileSource(archive, self.image))

    def push(self) -> None:
        push(self.image.gear, self.images, self.store, self.catalog, self.root, Recorder())


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with serving(FakeRegistry()) as server:
        made = World(tmp_path, server)
        yield made
        made.images.close()


def test_it_shows_what_an_engine_would(world: World) -> None:
    """
    Id, configuration and layer of the build.
    """
    world.build()
    found = world.images.inspect(world.image.gear)
    with world.folder.in_use() as built:
        assert found["Id"] == built.gear_image_id
        assert found["RootFS"]["Layers"] == [built.layer]
    assert found["Config"] == CONFIG["config"]


def test_pushing_the_same_build_again_gives_the_same_manifest(world: World) -> None:
    """
    Byte for byte: whoever pulled it has it already.
    """
    world.build()
    world.push()
    first = dict(world.server.manifests)
    world.build()
    world.push()
    assert world.server.manifests == first


def test_what_was_never_built_is_not_found(world: World) -> None:
    """
    The message says what to run.
    """
    with pytest.raises(ImageNotFound, match="run `gear build"):
        world.push()


@pytest.mark.parametrize("name", ["config.json", "index.tar"])
def test_a_build_that_was_tampered_with_is_not_pushed(world: World, name: str) -> None:
    """
    Neither its configuration nor its index.
    """
    world.build()
    path = world.folder.path / "build" / name
    path.write_bytes(path.read_bytes().replace(b"amd64", b"AMD64") + b" ")
    with pytest.raises(IndexDamaged, match="is not what was built"):
        world.push()
    path.unlink()
    if name == "config.json":
        with pytest.raises(IndexDamaged, match="is not what was built"):
            world.push()
    assert world.server.manifests == {}


@pytest.mark.parametrize(
    ("fault", "times", "expected"),
    [(Reply(403), 1, AccessDenied), (Reply(503), 3, SourceUnavailable)],
)
def test_a_registry_that_refuses_names_no_image(
    world: World, fault: Reply, times: int, expected: type[Exception]
) -> None:
    """
    The manifest comes last; pushing again does the rest.
    """
    world.build()
    world.server.fault("PUT", "manifests", fault, times=times)
    with pytest.raises(expected):
        world.push()
    assert world.server.manifests == {}
    world.push()
    raw, _ = world.server.manifests["app-gear:1"]
    blobs = [part["digest"] for part in (json.loads(raw)["config"], *json.loads(raw)["layers"])]
    assert set(blobs) <= set(world.server.blobs)
