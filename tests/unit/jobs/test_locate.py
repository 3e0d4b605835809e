"""Finding an index by its image's name: on a node, in a build, an engine, a registry."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gear_plugin.errors import (
    BadName,
    EngineUnavailable,
    GearError,
    ImageNotFound,
    IndexDamaged,
    SourceUnavailable,
    Unsupported,
)
from gear_plugin.image import FOLDER, INDEX_NAME, MANIFEST_NAME, ObjectTable, read_erofs
from gear_plugin.jobs import BuildFolder, BuildResult, build
from gear_plugin.jobs.index_sources import (
    BuildSource,
    EngineSource,
    NodeSource,
    RegistrySource,
    take_index,
)
from gear_plugin.jobs.locate import IndexSource, Located, locate_index
from gear_plugin.layers import NodeImages
from gear_plugin.names import ImageId
from tests.unit.image.tars import info, tar
from tests.unit.jobs import saves
from tests.unit.jobs.fakes import FakeEngine, Recorder
from tests.unit.jobs.saves import file

IMAGE = ImageId.parse("team/app:1")
LAYER = tar(file("a", b"one"), file("b", b"two" * 1000))


class FakeRegistry:
    """Layers by the image's name."""

    def __init__(self, **layers: bytes) -> None:
        self.layers = layers

    def fetch_index_layer(self, image: ImageId, target: Path) -> None:
        if "down" in self.layers:
            raise SourceUnavailable("the registry does not answer")
        if str(image) not in self.layers:
            raise ImageNotFound(f"the registry has no {image}")
        target.write_bytes(self.layers[str(image)])


class World:
    """One Gear image, and every place where it may be."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine = FakeEngine({str(IMAGE): saves.saved_by_20(str(IMAGE), [LAYER])})
        self.built: BuildResult = build(IMAGE, self.engine, folder / "builder", Recorder())
        self.layer = self.engine.layer(IMAGE.gear)
        self.registry = FakeRegistry(**{str(IMAGE.gear): self.layer})
        self._tries = 0

    def install(self) -> Path:
        """Put it on the node, as the graphdriver does; its folder there."""
        unpacked = self.folder / "layer"
        unpacked.mkdir()
        take_index(io.BytesIO(self.layer), unpacked)
        (self.folder / "node").mkdir()
        index = NodeImages(self.folder / "node").install(unpacked)
        assert index == self.built.index
        return self.folder / "node" / "images" / index

    @contextlib.contextmanager
    def connect(self) -> Iterator[FakeEngine]:
        yield self.engine

    def source(self, kind: str) -> IndexSource:
        match kind:
            case "node":
                return NodeSource(self.folder / "node")
            case "build":
                return BuildSource(self.folder / "builder")
            case "engine":
                return EngineSource(self.connect)
        return RegistrySource(self.registry)

    def locate(self, *kinds: str, image: ImageId = IMAGE.gear) -> Located:
        self._tries += 1
        scratch = self.folder / f"scratch-{self._tries}"
        scratch.mkdir()
        return locate_index(image, [self.source(kind) for kind in kinds], scratch)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


KINDS = ["node", "build", "engine", "registry"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_place_gives_the_same_index(world: World, kind: str) -> None:
    """
    Index, object table and manifest, and where they were found.
    """
    world.install()
    found = world.locate(kind)
    assert found.manifest.index_digest.hex == world.built.index
    assert found.manifest.image == IMAGE
    tree = read_erofs(found.erofs.read_bytes())
    assert set(tree.root.children) == {b"a", b"b"}
    assert dict(ObjectTable(found.objects.read_bytes())) == tree.objects()
    assert found.found_in == world.source(kind).name
    assert found.manifest_file.read_bytes() == found.manifest.encode()


def test_the_first_place_that_has_it_is_used(world: World) -> None:
    """
    Here it is not on the node; the engine is not even asked.
    """
    world.engine.images.clear()
    assert world.locate("node", "build", "engine").found_in.startswith("build in ")


def test_a_node_keeps_its_files_where_they_are(world: World) -> None:
    """
    Nothing is copied, and nothing on the node is touched.
    """
    folder = world.install()
    (world.folder / "node" / "images" / ".tmp-being-installed").mkdir()
    found = world.locate("node")
    assert found.erofs.parent == found.objects.parent == folder
    assert (world.folder / "node" / "images" / ".tmp-being-installed").exists()


def damage_node(world: World) -> None:
    path = world.install() / "index.erofs"
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def damage_build(world: World) -> None:
    path = BuildFolder.of(world.folder / "builder", IMAGE).index_tar
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def damaged_layer(world: World) -> bytes:
    """The index layer with a wrong byte in its index."""
    at = world.layer.index(b"\xe2\xe1\xf5\xe0")  # the magic number of EROFS
    return world.layer[: at + 4] + b"????" + world.layer[at + 8 :]


def damage_registry(world: World) -> None:
    world.registry.layers[str(IMAGE.gear)] = damaged_layer(world)


def damage_engine(world: World) -> None:
    name = str(IMAGE.gear)
    world.engine.images[name] = saves.saved_by_20(name, [damaged_layer(world)])


DAMAGES = {
    "node": damage_node,
    "build": damage_build,
    "engine": damage_engine,
    "registry": damage_registry,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_index_is_passed_over_or_said_to_be(world: World, kind: str) -> None:
    """
    Another place may have a sound one; when none has, it is not "not found".
    """
    DAMAGES[kind](world)
    sound = "build" if kind != "build" else "engine"
    assert world.locate(kind, sound).found_in == world.source(sound).name
    with pytest.raises(IndexDamaged):
        world.locate(kind)
    if kind != "registry":
        world.registry.layers["down"] = b""
        with pytest.raises(IndexDamaged):
            world.locate(kind, "registry")


def test_what_is_nowhere_says_where_it_was_looked_for(world: World) -> None:
    """
    Each place in the message; nothing was made anywhere, not even a lock.
    """
    other = ImageId.parse("other:2")
    before = sorted((world.folder / "builder").rglob("*"))
    with pytest.raises(ImageNotFound, match=r"other-gear:2: not on the node .*; not built in .*; "):
        world.locate(*KINDS, image=other.gear)
    assert sorted((world.folder / "builder").rglob("*")) == before
    assert not (world.folder / "node").exists()


def test_a_place_that_cannot_be_asked_may_have_it(world: World) -> None:
    """
    So the answer is "try again", and the reason is in it.
    """
    world.registry.layers["down"] = b""
    with pytest.raises(SourceUnavailable, match=r"other-gear:2 was not found: .* does not answer"):
        world.locate("build", "registry", image=ImageId.parse("other-gear:2"))

    assert "no engine" in str(without_engine(world, SourceUnavailable, TimeoutError()))


def test_no_engine_at_all_is_not_one_that_is_down(world: World) -> None:
    """
    A machine without Docker has no images in it.
    """
    assert "no engine" in str(without_engine(world, ImageNotFound, FileNotFoundError()))


def without_engine(world: World, kind: type[GearError], cause: OSError) -> GearError:
    """What is raised when the engine cannot be connected to because of *cause*."""

    def refuse() -> contextlib.AbstractContextManager[FakeEngine]:
        raise EngineUnavailable("no engine") from cause

    scratch = world.folder / "scratch"
    scratch.mkdir()
    with pytest.raises(kind) as caught:
        locate_index(IMAGE.gear, [EngineSource(refuse)], scratch)
    return caught.value


def test_an_original_name_is_no_gear_name(world: World) -> None:
    """
    Whoever forgot the suffix is told.
    """
    with pytest.raises(BadName, match="-gear"):
        world.locate(*KINDS, image=IMAGE)


ORDINARY: dict[str, list[bytes]] = {
    "an ordinary image": [LAYER],
    "an image that stands on one": [LAYER, LAYER],
    "a folder alone": [tar(info(FOLDER, type=b"5"))],
    "an index without manifest": [tar(info(FOLDER, type=b"5"), file(INDEX_NAME, b"x"))],
    "a link for an index": [tar(info(INDEX_NAME, type=b"2", linkname=MANIFEST_NAME))],
    "an index twice": [tar(file(INDEX_NAME, b"x"), file(INDEX_NAME, b"y"))],
}


@pytest.mark.parametrize("what", ORDINARY)
def test_an_image_with_a_gear_name_need_not_be_one(world: World, what: str) -> None:
    """
    Said of the engine's and of the registry's; another place may still have the right one.
    """
    name = str(IMAGE.gear)
    world.engine.images[name] = saves.saved_by_20(name, ORDINARY[what])
    with pytest.raises(Unsupported, match=r"no(t a)? Gear image"):
        world.locate("engine")
    assert world.locate("engine", "build").found_in.startswith("build in ")
    if len(ORDINARY[what]) == 1:
        world.registry.layers[name] = ORDINARY[what][0]
        with pytest.raises(Unsupported, match="not a Gear image"):
            world.locate("registry")


def test_an_index_may_come_compressed_from_an_engine(world: World) -> None:
    """
    As later engines save it.
    """
    name = str(IMAGE.gear)
    world.engine.images[name] = saves.saved_by_25(name, [world.layer], compression="gzip")
    assert world.locate("engine").manifest.index_digest.hex == world.built.index


def remove_link(world: World, folder: Path) -> None:
    (folder.parent / IMAGE.folder).unlink()


def remove_folder(world: World, folder: Path) -> None:
    shutil.rmtree(folder)


def strange_link(world: World, folder: Path) -> None:
    link = folder.parent / IMAGE.folder
    link.unlink()
    link.symlink_to("../../../etc")


@pytest.mark.parametrize("remove", [remove_link, remove_folder, strange_link])
def test_an_image_that_left_the_node_is_not_there(
    world: World, remove: Callable[[World, Path], None]
) -> None:
    """
    Whatever is left of it.
    """
    remove(world, world.install())
    with pytest.raises(ImageNotFound, match="not on the node"):
        world.locate("node")


@pytest.mark.root
@pytest.mark.parametrize("kind", ["node", "build"])
def test_what_only_root_can_read_is_not_called_missing(
    world: World, kind: str, as_nobody: Callable[[Callable[[], GearError | None]], str]
) -> None:
    """
    A user without rights is told to become root.
    """
    folder = world.install()
    folder.chmod(0o700)
    BuildFolder.of(world.folder / "builder", IMAGE).path.chmod(0o700)

    def attempt() -> GearError | None:
        try:
            world.source(kind).find(IMAGE.gear, Path("/nonexistent"))
        except GearError as error:
            return error
        return None

    assert as_nobody(attempt) == "SourceUnavailable"


@pytest.fixture
def as_nobody(tmp_path: Path) -> Callable[[Callable[[], GearError | None]], str]:
    """Runs a function as an unprivileged user, in a child; the name of what it returned."""
    if os.geteuid():
        pytest.skip("needs root to become somebody else")
    for folder in [tmp_path, *tmp_path.parents]:
        if folder.stat().st_mode & 0o005 != 0o005 and "pytest" in str(folder):
            folder.chmod(0o755)

    def run(function: Callable[[], GearError | None]) -> str:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.setgroups([])
            os.setresuid(65534, 65534, 65534)
            os.write(writer, type(function()).__name__.encode())
            os._exit(0)
        os.close(writer)
        os.waitpid(child, 0)
        with os.fdopen(reader) as answer:
            return answer.read()

    return run
