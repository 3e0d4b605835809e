from __future__ import annotations

import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from gear_plugin.catalog import ImageRecord, MemoryCatalog
from gear_plugin.content import MemoryStore
from gear_plugin.digest import Digest, object_id
from gear_plugin.errors import (
    BadName,
    Conflict,
    ContentCorrupt,
    ContentNotFound,
    GearError,
    ImageNotFound,
    IndexDamaged,
    SourceUnavailable,
    StorageFull,
)
from gear_plugin.jobs import BuildFolder, BuildResult, Progress, build, push
from gear_plugin.names import ImageId
from tests.unit.image.tars import info, tar
from tests.unit.jobs import saves
from tests.unit.jobs.fakes import FakeEngine, Recorder
from tests.unit.jobs.saves import file

IMAGE = ImageId.parse("127.0.0.1:5000/app:1")
OTHER = ImageId.parse("other:2")
LAYER = tar(
    file("bin/a", b"same"),
    file("bin/b", b"same"),
    info("bin/hard", type=tarfile.LNKTYPE, linkname="bin/c"),
)
LAYERS = [tar(file("bin/c", b"only here"), file("empty", b"")), LAYER]


class World:
    """Everything a push touches."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.engine = FakeEngine()
        self.store = MemoryStore()
        self.catalog = MemoryCatalog()
        self.progress = Recorder()

    def build(self, image: ImageId = IMAGE, layers: list[bytes] = LAYERS) -> BuildResult:
        self.engine.images[str(image)] = saves.saved_by_20(str(image), layers)
        return build(image, self.engine, self.root, self.progress)

    def push(self, image: ImageId = IMAGE) -> tuple[int, int, int, int]:
        """Objects, new ones, their bytes, the bytes of the others."""
        done = push(image.gear, self.engine, self.store, self.catalog, self.root, self.progress)
        assert done.gear_image == str(image.gear)
        return done.objects, done.new_objects, done.new_bytes, done.saved_bytes

    def object(self, content: bytes) -> Path:
        """Its file in the build folder."""
        return BuildFolder.of(self.root, IMAGE).files / Digest.of(content).shard_path


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_objects_record_and_index_arrive(world: World) -> None:
    """
    Store, catalog and registry have all that a node needs.
    """
    built = world.build()
    assert world.push() == (2, 2, 13, 0)
    assert set(world.store.list()) == {Digest.of(b"same"), Digest.of(b"only here")}
    assert world.engine.pushed == ["127.0.0.1:5000/app-gear:1"]
    assert world.catalog.list_images() == [
        ImageRecord(
            image=IMAGE,
            gear_image=IMAGE.gear,
            index=Digest.from_hex(built.index),
            original=Digest.parse(built.original_id),
            manifest=Digest.from_hex(built.manifest),
            objects=2,
            size_bytes=13,
            created_s=BuildFolder.of(world.root, IMAGE).built_s(),
        )
    ]


def test_every_path_with_content_has_an_oid(world: World) -> None:
    """
    Hard links included; OIDs are made from the original's name.
    """
    world.build()
    world.push()
    for path, content in (
        (b"bin/a", b"same"),
        (b"bin/b", b"same"),
        (b"bin/c", b"only here"),
        (b"bin/hard", b"only here"),
    ):
        assert world.catalog.resolve(object_id("127.0.0.1:5000/app:1", path)) == Digest.of(content)
    with pytest.raises(ContentNotFound):
        world.catalog.resolve(object_id(str(IMAGE), b"empty"))


def test_pushing_again_sends_nothing(world: World) -> None:
    """
    Safe to repeat, whatever had arrived already.
    """
    world.build()
    world.push()
    assert world.push() == (2, 0, 0, 13)
    assert len(world.catalog.list_images()) == 1


def test_a_second_image_sends_only_what_is_new(world: World) -> None:
    """
    Objects are shared by all images of the store.
    """
    world.build()
    world.push()
    world.build(OTHER, [tar(file("x", b"same"), file("y", b"new"))])
    assert world.push(OTHER) == (2, 1, 3, 4)


def test_progress_counts_every_byte(world: World) -> None:
    """
    A bar reaches its end.
    """
    world.build()
    world.progress.steps.clear()
    world.push()
    assert [step for step in world.progress.steps if step[1]] == [("storing 2 objects", 13, 13)]


class Full(MemoryStore):
    """A store that has no room for one content."""

    def put(self, digest: Digest, path: Path) -> bool:
        if digest == Digest.of(b"only here"):
            raise StorageFull("no room")
        return super().put(digest, path)


def test_nothing_names_objects_that_could_not_be_stored(world: World) -> None:
    """
    No record and no pushed index unless every object is there.
    """
    world.build()
    world.store = Full()
    with pytest.raises(StorageFull):
        world.push()
    assert world.catalog.list_images() == []
    assert world.engine.pushed == []


def test_a_registry_that_is_down_is_tried_again_later(world: World) -> None:
    """
    What arrived before stays and is found by the next push.
    """
    world.build()
    world.engine.registry_is_down = True
    with pytest.raises(SourceUnavailable):
        world.push()
    world.engine.registry_is_down = False
    assert world.push() == (2, 0, 0, 13)
    assert world.engine.pushed == [str(IMAGE.gear)]


def test_an_engine_with_another_build_is_refused(world: World) -> None:
    """
    Objects and index always belong together.
    """
    world.build()
    here = world.engine.images[str(IMAGE.gear)]
    elsewhere = World(world.root / "elsewhere")
    elsewhere.build(layers=LAYERS[:1])
    world.engine.images[str(IMAGE.gear)] = elsewhere.engine.images[str(IMAGE.gear)]
    with pytest.raises(Conflict, match=r"run `gear build 127.0.0.1:5000/app:1` again"):
        world.push()
    assert list(world.store.list()) == []
    world.engine.images[str(IMAGE.gear)] = here
    world.push()


def damage_index(world: World) -> None:
    path = BuildFolder.of(world.root, IMAGE).index_tar
    data = bytearray(path.read_bytes())
    data[3000] ^= 1
    path.write_bytes(data)


def damage_object(world: World) -> None:
    path = world.object(b"same")
    path.chmod(0o644)
    path.write_bytes(b"SAME")


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lambda world: world.engine.images.pop(str(IMAGE.gear)), ImageNotFound),
        (lambda world: world.object(b"same").unlink(), ContentNotFound),
        (damage_object, ContentCorrupt),
        (damage_index, IndexDamaged),
    ],
    ids=["not-in-engine", "object-missing", "object-damaged", "index-damaged"],
)
def test_a_build_that_is_no_longer_whole_is_not_pushed(
    world: World, break_it: object, expected: type[GearError]
) -> None:
    """
    Found before anything names it, in the catalog or in the registry.
    """
    world.build()
    assert callable(break_it)
    break_it(world)
    with pytest.raises(expected):
        world.push()
    assert world.catalog.list_images() == []
    assert world.engine.pushed == []


def test_a_name_that_is_no_gear_image_is_refused(world: World) -> None:
    """
    The message says what such a name looks like.
    """
    world.build()
    with pytest.raises(BadName, match="-gear"):
        push(IMAGE, world.engine, world.store, world.catalog, world.root, world.progress)


def test_an_image_that_was_not_built_here_is_refused(world: World) -> None:
    """
    The message says what to run first.
    """
    with pytest.raises(ImageNotFound, match="gear build other:2"):
        world.push(OTHER)


def test_no_build_replaces_the_folder_during_a_push(world: World) -> None:
    """
    Half of one build and half of another can never be pushed.
    """
    world.build()
    seen: list[str] = []

    class Meanwhile(MemoryStore):
        def put(self, digest: Digest, path: Path) -> bool:
            try:
                world.build(layers=LAYERS[:1])
            except Conflict:
                seen.append("refused")
            return super().put(digest, path)

    world.store = Meanwhile()
    world.push()
    assert seen == ["refused", "refused"]


class Died(BaseException):
    """The process is no more."""


class Countdown:
    """Dies at the nth step that anything takes."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Died


class MortalStore(MemoryStore):
    """May die before and after each object."""

    def __init__(self, objects: MemoryStore, countdown: Countdown) -> None:
        super().__init__()
        self._objects = objects._objects
        self._countdown = countdown

    def put(self, digest: Digest, path: Path) -> bool:
        self._countdown.step()
        is_new = super().put(digest, path)
        self._countdown.step()
        return is_new


class MortalCatalog(MemoryCatalog):
    """May die before and after the record is made."""

    def __init__(self, catalog: MemoryCatalog, countdown: Countdown) -> None:
        super().__init__()
        self._images = catalog._images
        self._countdown = countdown

    def put_image(self, record: ImageRecord, objects: Mapping[str, Digest]) -> None:
        self._countdown.step()
        super().put_image(record, objects)
        self._countdown.step()


class MortalEngine(FakeEngine):
    """May die before and after the registry has the index."""

    countdown = Countdown(10**9)

    def push(self, image: ImageId, progress: Progress) -> None:
        self.countdown.step()
        super().push(image, progress)
        self.countdown.step()


def test_a_crash_at_any_point_leaves_nothing_that_cannot_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The registry's index has its record, the record its objects; the next push does the rest.
    """
    monkeypatch.setattr("gear_plugin.jobs.upload._THREADS", 1)
    monkeypatch.setattr("gear_plugin.jobs.upload._BATCH_OBJECTS", 1)
    crashes, has_died = 0, True
    while has_died:
        world = World(tmp_path / str(crashes))
        world.engine = MortalEngine()
        world.build()
        store, catalog = world.store, world.catalog
        countdown = world.engine.countdown = Countdown(crashes)
        world.store = MortalStore(store, countdown)
        world.catalog = MortalCatalog(catalog, countdown)
        try:
            world.push()
            has_died = False
        except Died:
            crashes += 1
        if world.engine.pushed:
            assert catalog.list_images()
        if catalog.list_images():
            assert catalog.objects_of(IMAGE) == set(store.list())
        countdown.left = 10**9
        there = len(list(store.list()))
        assert world.push()[:2] == (2, 2 - there)
        assert catalog.objects_of(IMAGE) == set(store.list())
    assert crashes == 8
