"""`gear restore`: the way back, over an engine in memory and real files."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings

from gear_plugin.content import DirectoryStore, FileSource, ObjectSource
from gear_plugin.digest import Digest
from gear_plugin.errors import (
    BadConfig,
    BadInput,
    BadName,
    Conflict,
    ContentCorrupt,
    ContentNotFound,
    EngineUnavailable,
    GearError,
    SourceUnavailable,
    StorageFull,
    Unsupported,
)
from gear_plugin.image import Inode, Kind, Manifest, TarReader, Tree, flatten, write_erofs
from gear_plugin.jobs import build
from gear_plugin.jobs.folder import BuildFolder
from gear_plugin.jobs.index_sources import BuildSource
from gear_plugin.jobs.locate import Located, locate_index
from gear_plugin.jobs.restore import IntoEngine, IntoFile, RestoreResult, restore
from gear_plugin.names import ImageId
from tests.unit.image.tars import info, tar
from tests.unit.image.test_tree_tar import as_docker_keeps_it, content_of, unpack
from tests.unit.image.trees import file as tree_file
from tests.unit.image.trees import snapshot, tree_of, trees
from tests.unit.jobs import saves
from tests.unit.jobs.fakes import FakeEngine, Recorder
from tests.unit.jobs.saves import file

IMAGE = ImageId.parse("registry.example:5000/team/app:1")
NEW = ImageId.parse("back:2")
LAYERS = [
    tar(file("a", b"one"), file("gone", b"x"), info("d/", type=b"5", mode=0o1777, mtime=1.5)),
    tar(file("d/b", b"two" * 1000), file(".wh.gone", b""), info("l", type=b"2", linkname="a")),
]
STALL_S = 20.0


class World:
    """A Gear image that was built here, and where it goes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.engine = FakeEngine({str(IMAGE): saves.saved_by_20(str(IMAGE), LAYERS)})
        self.built = build(IMAGE, self.engine, root, Recorder())
        self.folder = BuildFolder.of(root, IMAGE)
        scratch = root / "scratch"
        scratch.mkdir()
        self.located = locate_index(IMAGE.gear, [BuildSource(root)], scratch)
        self.progress = Recorder()

    def restore(
        self,
        name: ImageId = NEW,
        sources: Sequence[ObjectSource] | None = None,
        output: Path | None = None,
        *,
        replace: bool = False,
        stall_s: float = STALL_S,
    ) -> RestoreResult:
        if sources is None:
            sources = [FileSource("the build", self.folder.files)]
        target = IntoFile(output) if output else IntoEngine(self.engine, self.root, replace)
        return restore(self.located, name, sources, target, self.progress, stall_s=stall_s)

    def everything(self) -> set[Path]:
        return {path for path in self.root.rglob("*") if "build" not in path.parts}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def merged(layers: Sequence[bytes]) -> Tree:
    """What the engine would show, digests included."""
    found = flatten([TarReader(io.BytesIO(layer), seekable=True) for layer in layers])
    for content in found.contents:
        data = layers[content.layer][content.offset : content.offset + content.size]
        content.inode.digest = Digest.of(data)
    return found.tree


def config_of(engine: FakeEngine, name: ImageId) -> dict[str, Any]:
    """The image's whole configuration object."""
    files = saves.unpack(engine.images[str(name)])
    (entry,) = json.loads(files["manifest.json"])
    config: dict[str, Any] = json.loads(files[entry["Config"]])
    return config


def test_tree_and_configuration_come_back(world: World) -> None:
    """
    One layer with the same tree, and every part of the configuration but layers and history.
    """
    done = world.restore()
    assert snapshot(unpack(world.engine.layer(NEW))) == snapshot(merged(LAYERS))
    ours, theirs = config_of(world.engine, NEW), config_of(world.engine, IMAGE)
    assert ours["rootfs"] == {"type": "layers", "diff_ids": [done.layer]}
    for config in (ours, theirs):
        del config["rootfs"], config["history"]
    assert ours == theirs
    assert (done.image, done.output, done.files, done.objects) == (str(NEW), None, 2, 2)
    assert done.original_id == world.built.original_id
    assert done.image_id == world.engine.inspect(NEW)["Id"]


def test_restoring_again_gives_the_same_image(world: World) -> None:
    """
    Byte for byte.
    """
    first = world.restore()
    second = world.restore(replace=True)
    assert (second.image_id, second.layer) == (first.image_id, first.layer)


def test_building_from_it_gives_the_same_index(world: World) -> None:
    """
    Nothing was lost that Gear knows of: its index is the same, bit for bit.
    """
    world.restore()
    assert build(NEW, world.engine, world.root, Recorder()).index == world.built.index


def test_an_archive_is_what_the_engine_would_load(world: World, tmp_path: Path) -> None:
    """
    For its owner alone, and an older one is replaced.
    """
    output = tmp_path / "out.tar"
    output.write_text("older")
    done = world.restore(output=output)
    assert done.output == str(output)
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    world.engine.load(output)
    assert world.engine.inspect(NEW)["Id"] == done.image_id


@settings(max_examples=25, deadline=None)
@given(trees.map(as_docker_keeps_it))
def test_any_tree_comes_back(tree: Tree) -> None:
    """
    From an index and objects alone, without the original.
    """
    with TemporaryDirectory() as folder:
        located = index_of(tree, Path(folder))
        files = Path(folder) / "files"
        for inode in tree.inodes():
            if inode.digest is not None:
                path = files / inode.digest.shard_path
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content_of(inode))
        engine = FakeEngine()
        target = IntoEngine(engine, Path(folder))
        restore(located, NEW, [FileSource("f", files)], target, Recorder(), stall_s=STALL_S)
        assert snapshot(unpack(engine.layer(NEW))) == snapshot(tree)


def index_of(tree: Tree, folder: Path) -> Located:
    """An index that was found somewhere."""
    erofs = write_erofs(tree)
    manifest = Manifest(
        IMAGE, Digest.of(b"image"), "linux/amd64", saves.CONFIG, tree.totals(), Digest.of(erofs)
    )
    (folder / "index.erofs").write_bytes(erofs)
    return Located(
        gear_image=IMAGE.gear,
        erofs=folder / "index.erofs",
        objects=folder / "objects",
        manifest_file=folder / "manifest",
        manifest=manifest,
        found_in="somewhere",
    )


def test_objects_come_from_wherever_they_are(world: World, tmp_path: Path) -> None:
    """
    Here one is in the node's cache, wrong in the build, and the other in the store alone.
    """
    one, two = Digest.of(b"one"), Digest.of(b"two" * 1000)
    store = DirectoryStore.create(tmp_path / "store")
    store.put(two, world.folder.files / two.shard_path)
    cache = tmp_path / "public" / one.shard_path
    cache.parent.mkdir(parents=True)
    cache.write_bytes(b"one")
    for digest in (one, two):
        path = world.folder.files / digest.shard_path
        path.chmod(0o600)
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    sources: list[ObjectSource] = [
        FileSource("cache", tmp_path / "public"),
        FileSource("build", world.folder.files),
        store,
    ]
    world.restore(sources=sources)
    assert snapshot(unpack(world.engine.layer(NEW))) == snapshot(merged(LAYERS))


def no_object(world: World) -> None:
    (world.folder.files / Digest.of(b"one").shard_path).unlink()


def wrong_bytes(world: World) -> None:
    path = world.folder.files / Digest.of(b"one").shard_path
    path.chmod(0o600)
    path.write_bytes(b"two")


@pytest.mark.parametrize("to_file", [False, True])
@pytest.mark.parametrize(
    ("damage", "kind"), [(no_object, ContentNotFound), (wrong_bytes, ContentCorrupt)]
)
def test_without_an_object_nothing_is_made(
    world: World,
    tmp_path: Path,
    damage: Callable[[World], None],
    kind: type[GearError],
    to_file: bool,
) -> None:
    """
    The object is named; engine, output and scratch folder are as they were.
    """
    damage(world)
    before, images = world.everything(), set(world.engine.images)
    with pytest.raises(kind, match=str(Digest.of(b"one"))):
        world.restore(output=tmp_path / "out.tar" if to_file else None)
    assert (world.everything(), set(world.engine.images)) == (before, images)


def test_a_hanging_store_is_given_up(world: World, tmp_path: Path) -> None:
    """
    An object that is a fifo never opens, as a file on a dead NFS server.
    """
    store = DirectoryStore.create(tmp_path / "store")
    path = tmp_path / "store" / "objects" / Digest.of(b"one").shard_path
    path.parent.mkdir()
    os.mkfifo(path)
    with pytest.raises(SourceUnavailable, match=r"store .* delivered nothing of .* for 0\.3 s"):
        world.restore(sources=[store], stall_s=0.3)
    os.close(os.open(path, os.O_RDWR))  # lets the reader go


def test_a_store_that_is_not_mounted_is_said_to_be(world: World, tmp_path: Path) -> None:
    """
    Not "no such object".
    """
    (tmp_path / "mnt").mkdir()
    with pytest.raises(SourceUnavailable, match="is it mounted"):
        world.restore(sources=[DirectoryStore(tmp_path / "mnt")])


def test_a_name_that_is_taken_is_refused(world: World) -> None:
    """
    It may be the original's; with *replace* the name moves.
    """
    before = world.engine.images[str(IMAGE)]
    with pytest.raises(Conflict, match=r"--name, or .* --replace"):
        world.restore(IMAGE)
    assert world.engine.images[str(IMAGE)] == before
    world.restore(IMAGE, replace=True)
    assert world.engine.images[str(IMAGE)] != before


def test_an_ordinary_image_gets_no_gear_name(world: World) -> None:
    """
    It would take the place of the Gear image.
    """
    with pytest.raises(BadName, match="another"):
        world.restore(IMAGE.gear)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem with room for a few blocks."""
    if os.geteuid():
        pytest.skip("needs root to mount a tmpfs")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "gear-test", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


class DeadEngine(FakeEngine):
    """Answers no question."""

    def inspect(self, image: ImageId) -> dict[str, Any]:
        raise EngineUnavailable("no engine")


def test_a_dead_engine_is_noticed_before_anything_is_read(world: World) -> None:
    """
    Not after a gigabyte was written.
    """
    world.engine = DeadEngine()
    with pytest.raises(EngineUnavailable):
        world.restore()
    assert world.progress.steps == []


@pytest.mark.root
@pytest.mark.parametrize("to_file", [False, True])
def test_no_room_leaves_nothing(world: World, small_disk: Path, to_file: bool) -> None:
    """
    On a filesystem that is really full, whether into the engine or a file.
    """
    world.root = small_disk
    before = set(world.engine.images)
    with pytest.raises(StorageFull, match=f"no room left in {small_disk}"):
        world.restore(output=small_disk / "out.tar" if to_file else None)
    assert list(small_disk.iterdir()) == []
    assert set(world.engine.images) == before


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("nosuch/out.tar", r"cannot write .*out.tar \(No such file or directory\)"),
        (".", "it is not a file"),
        ("file/out.tar", "Not a directory"),
    ],
)
def test_an_output_that_cannot_be_written_is_bad_input(
    world: World, tmp_path: Path, output: str, message: str
) -> None:
    """
    One line that names it.
    """
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match=message):
        world.restore(output=tmp_path / output)


def test_a_root_that_cannot_be_written_is_bad_config(world: World, tmp_path: Path) -> None:
    """
    With what to set.
    """
    (tmp_path / "file").touch()
    world.root = tmp_path / "file" / "root"
    with pytest.raises(BadConfig, match="--root"):
        world.restore()


def test_a_tree_that_no_layer_can_hold_is_refused_first(tmp_path: Path) -> None:
    """
    Before the engine is asked, or anything is written.
    """
    tree = tree_of({b".wh.x": Inode(Kind.FILE, 0o644, 0, 0, 0)})
    target = IntoEngine(DeadEngine(), tmp_path)
    with pytest.raises(Unsupported):
        restore(index_of(tree, tmp_path), NEW, [], target, Recorder(), stall_s=STALL_S)


def test_memory_stays_flat(tmp_path: Path) -> None:
    """
    64 MiB of content in two files cost a few chunks.
    """
    block = os.urandom(1 << 20)
    contents = [block * 32, (block[1:] + b"x") * 32]
    (tmp_path / "files").mkdir()
    for content in contents:
        path = tmp_path / "files" / Digest.of(content).shard_path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    tree = tree_of({b"%d" % n: tree_file(content) for n, content in enumerate(contents)})
    located = index_of(tree, tmp_path)
    del contents, content, block
    tracemalloc.start()
    try:
        restore(
            located,
            NEW,
            [FileSource("f", tmp_path / "files")],
            IntoFile(tmp_path / "out.tar"),
            Recorder(),
            stall_s=STALL_S,
        )
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()
