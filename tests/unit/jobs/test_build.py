from __future__ import annotations

import errno
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from gear_plugin.digest import Digest
from gear_plugin.errors import (
    ArchiveMalformed,
    BadInput,
    EngineUnavailable,
    GearError,
    ImageNotFound,
    StorageFull,
)
from gear_plugin.image import INDEX_NAME, MANIFEST_NAME, CheckedIndex, ObjectTable, check_index
from gear_plugin.jobs import BuildFolder, build
from gear_plugin.names import ImageId
from tests.unit.image.tars import info, tar
from tests.unit.jobs import saves
from tests.unit.jobs.fakes import FakeEngine, Recorder
from tests.unit.jobs.saves import CONFIG, file

IMAGE = ImageId.parse("127.0.0.1:5000/team/app:1")
LAYERS = [
    tar(info("etc/", type=tarfile.DIRTYPE, mode=0o755), file("etc/a", b"same", mode=0o4755)),
    tar(file("etc/b", b"same"), file("etc/c", b"other"), file("etc/empty", b"")),
]


def engine_with(layers: list[bytes], config: dict[str, Any] = CONFIG) -> FakeEngine:
    return FakeEngine({str(IMAGE): saves.saved_by_20(str(IMAGE), layers, config)})


def checked(layer: bytes) -> CheckedIndex:
    """The index in an index layer, after the check that every node makes."""
    files = saves.unpack(layer)
    assert sorted(files) == [INDEX_NAME, MANIFEST_NAME]
    return check_index(files[INDEX_NAME], files[MANIFEST_NAME])


def test_gear_image_has_one_sound_index_layer(tmp_path: Path) -> None:
    """
    What is loaded is what stands in the build folder, and passes a node's own check.
    """
    engine = engine_with(LAYERS)
    result = build(IMAGE, engine, tmp_path, Recorder())
    layer = engine.layer(IMAGE.gear)
    assert layer == BuildFolder.of(tmp_path, IMAGE).index_tar.read_bytes()
    found = checked(layer)
    assert found.manifest.image == IMAGE
    assert found.manifest.config["config"] == CONFIG["config"]
    assert str(found.manifest.image_digest) == engine.inspect(IMAGE)["Id"] == result.original_id
    assert found.manifest.platform == "linux/amd64"
    assert dict(ObjectTable(found.objects)) == {Digest.of(b"same"): 4, Digest.of(b"other"): 5}


def test_every_object_is_in_files_under_its_digest(tmp_path: Path) -> None:
    """
    Exactly the objects of the index, each once.
    """
    build(IMAGE, engine_with(LAYERS), tmp_path, Recorder())
    files = BuildFolder.of(tmp_path, IMAGE).files
    assert {str(path.relative_to(files)): path.read_bytes() for path in files.glob("*/*")} == {
        Digest.of(content).shard_path: content for content in (b"same", b"other")
    }


def test_configuration_is_exactly_the_originals(tmp_path: Path) -> None:
    """
    All of it but the layers and their history, null fields included.
    """
    engine = engine_with(LAYERS)
    build(IMAGE, engine, tmp_path, Recorder())
    original, gear = engine.inspect(IMAGE), engine.inspect(IMAGE.gear)
    assert gear["Config"] == original["Config"]
    assert gear["Created"] == CONFIG["created"]
    files = saves.unpack(engine.images[str(IMAGE.gear)])
    config = json.loads(files[json.loads(files["manifest.json"])[0]["Config"]])
    assert len(config.pop("history")) == len(config.pop("rootfs")["diff_ids"]) == 1
    assert config == CONFIG


def test_result_says_what_was_made(tmp_path: Path) -> None:
    """
    Sizes and counts that can be checked from outside.
    """
    engine = engine_with(LAYERS)
    result = build(IMAGE, engine, tmp_path, Recorder())
    layer = engine.layer(IMAGE.gear)
    assert result.gear_image == "127.0.0.1:5000/team/app-gear:1"
    assert result.gear_image_id == engine.inspect(IMAGE.gear)["Id"]
    assert result.layer == f"sha256:{hashlib.sha256(layer).hexdigest()}"
    assert result.index == checked(layer).manifest.index_digest.hex
    manifest = saves.unpack(layer)[MANIFEST_NAME]
    assert result.manifest == hashlib.sha256(manifest).hexdigest()
    assert result.original_bytes == sum(map(len, LAYERS))
    assert (result.layers, result.files, result.directories) == (2, 4, 2)
    assert (result.objects, result.object_bytes) == (2, 9)
    assert result.index_bytes == len(layer)
    assert 0 < result.seconds < 60
    with BuildFolder.of(tmp_path, IMAGE).in_use() as kept:
        assert kept == result


def test_building_twice_gives_the_same_image(tmp_path: Path) -> None:
    """
    Whenever and wherever, and however the engine saves: the same image id.
    """
    ids = set()
    for number, saved in enumerate(
        [
            saves.saved_by_20(str(IMAGE), LAYERS),
            saves.saved_by_20(str(IMAGE), LAYERS),
            saves.saved_by_25(str(IMAGE), LAYERS),
            saves.saved_by_25(str(IMAGE), LAYERS, compression="gzip"),
        ]
    ):
        engine = FakeEngine({str(IMAGE): saved})
        ids.add(build(IMAGE, engine, tmp_path / str(number // 2), Recorder()).gear_image_id)
    assert len(ids) == 1


def test_an_image_without_files_can_be_built(tmp_path: Path) -> None:
    """
    No layer, or one with directories alone.
    """
    for layers in ([], [tar(info("a/", type=tarfile.DIRTYPE))]):
        result = build(IMAGE, engine_with(layers), tmp_path, Recorder())
        assert (result.objects, result.object_bytes, result.files) == (0, 0, 0)


def test_dockerfile_adds_the_index(tmp_path: Path) -> None:
    """
    It stands beside the archive that it ADDs.
    """
    build(IMAGE, engine_with(LAYERS), tmp_path, Recorder())
    folder = BuildFolder.of(tmp_path, IMAGE)
    assert folder.dockerfile.read_text().startswith("FROM scratch\nADD index.tar /\n")
    assert folder.dockerfile.parent == folder.index_tar.parent


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    """
    A bar reaches its end: what is saved, and what is hashed.
    """
    progress = Recorder()
    engine = engine_with(LAYERS)
    size = engine.inspect(IMAGE)["Size"]
    build(IMAGE, engine, tmp_path, progress)
    assert [step for step in progress.steps if step[1]] == [
        (f"saving {IMAGE} from the engine", size, size),
        ("hashing 3 files", 13, 13),
    ]


@pytest.mark.parametrize("above", [[], [tar(file("srv/more", b"more"))]])
def test_a_gear_image_is_refused(tmp_path: Path, above: list[bytes]) -> None:
    """
    Also one that an ordinary layer stands on: its files are not in it.
    """
    engine = engine_with(LAYERS)
    build(IMAGE, engine, tmp_path, Recorder())
    layers = [engine.layer(IMAGE.gear), *above]
    other = ImageId.parse("other:1")
    engine.images[str(other)] = saves.saved_by_20(str(other), layers)
    with pytest.raises(BadInput, match="other:1 is a Gear image already"):
        build(other, engine, tmp_path, Recorder())
    assert not BuildFolder.of(tmp_path, other).path.exists()


class Broken(FakeEngine):
    """An engine that fails in one call."""

    def __init__(self, call: str, error: Exception) -> None:
        super().__init__(engine_with(LAYERS).images)
        self._call, self._error = call, error

    def export(self, image: ImageId, target: Path, advance: Any) -> None:
        super().export(image, target, advance)
        if self._call == "export":
            raise self._error

    def load(self, archive: Path) -> None:
        if self._call == "load":
            raise self._error
        super().load(archive)


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        (FakeEngine(), ImageNotFound),
        (Broken("export", EngineUnavailable("gone")), EngineUnavailable),
        (Broken("export", OSError(errno.ENOSPC, "No space left on device")), StorageFull),
        (Broken("load", EngineUnavailable("refused")), EngineUnavailable),
        (engine_with([LAYERS[0][:700]]), ArchiveMalformed),
    ],
)
def test_a_failure_leaves_nothing_half_made(
    tmp_path: Path, engine: FakeEngine, expected: type[GearError]
) -> None:
    """
    No folder, no spool, no image; what was built before stays.
    """
    with pytest.raises(expected):
        build(IMAGE, engine, tmp_path, Recorder())
    assert list(tmp_path.glob("build/[!.]*")) == list(tmp_path.glob("build/.tmp*")) == []
    assert str(IMAGE.gear) not in engine.images

    build(IMAGE, engine_with(LAYERS), tmp_path, Recorder())
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(expected):
        build(IMAGE, engine, tmp_path, Recorder())
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.root
def test_a_full_disk_leaves_nothing_half_made(tmp_path: Path) -> None:
    """
    A real one, at every size from "no room for the spool" to "no room for the index".
    """
    import os
    import subprocess

    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    content = os.urandom(600_000)
    engine = engine_with([tar(file("a", content), file("b", content[::-1]))])
    outcomes = []
    for kibibytes in (300, 1400, 2200, 4096):
        disk = tmp_path / str(kibibytes)
        disk.mkdir()
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", disk], check=True
        )
        try:
            build(IMAGE, engine, disk, Recorder())
            outcomes.append("built")
        except StorageFull as error:
            assert "no room left" in str(error)
            outcomes.append("full")
            assert [path.name for path in (disk / "build").iterdir()] == [f".lock-{IMAGE.folder}"]
        finally:
            subprocess.run(["umount", disk], check=True)
    assert outcomes == ["full", "full", "full", "built"]


def test_a_saved_image_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    """
    At any place: an engine that dies while saving is noticed.
    """
    whole = saves.saved_by_20(str(IMAGE), LAYERS)
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        end = max(member.offset_data + member.size for member in archive)
    inspected = engine_with(LAYERS)

    class Cut(FakeEngine):
        def inspect(self, image: ImageId) -> dict[str, Any]:
            return inspected.inspect(image)

    for length in range(0, end, 1111):
        with pytest.raises(ArchiveMalformed):
            build(IMAGE, Cut({str(IMAGE): whole[:length]}), tmp_path, Recorder())
