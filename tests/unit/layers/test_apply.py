"""Applying an index layer: nothing half-made, wherever it breaks off."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gear_plugin.digest import Digest
from gear_plugin.errors import IndexDamaged, LayerNotFound, StorageFull
from gear_plugin.layers import LayerStore, NodeImages
from gear_plugin.layers.record import LayerFolder
from gear_plugin.rootfs import View

from .conftest import layer_store
from .layer_damage import EROFS, refused, whole
from .tars import reading, tar

pytestmark = pytest.mark.root

IMAGE = Digest.of(EROFS).hex


class Views:
    """Stands in for rootfs.Views: remembers what was to be mounted, and mounts nothing."""

    def __init__(self) -> None:
        self.used: list[str] = []

    def use(self, image: str, mount: Callable[[View | Path], None], /) -> None:
        self.used.append(image)

    def release(self, image: str, is_used: Callable[[], bool], /) -> None:
        pass

    def forget(self, image: str, /) -> None:
        pass


@pytest.fixture
def views() -> Views:
    return Views()


@pytest.fixture
def forgotten() -> list[str]:
    return []


@pytest.fixture
def store(root: Path, views: Views, forgotten: list[str]) -> LayerStore:
    return layer_store(root, NodeImages(root), views, forgotten.append)


def layers(root: Path) -> list[str]:
    return sorted(os.listdir(root / "containers"))


def images(root: Path) -> list[str]:
    return sorted(name for name in os.listdir(root / "images") if "=" not in name)


def test_only_a_checked_index_is_ever_mounted(store: LayerStore, views: Views, root: Path) -> None:
    """
    A refused one leaves an empty layer, which needs no mount at all.
    """
    bad, _, _ = refused()["index-cycle"]
    store.create("bad", "", writable=False)
    store.create("good", "", writable=False)
    with pytest.raises(IndexDamaged):
        store.apply("bad", reading(bad))
    store.get("bad")
    assert views.used == []
    store.apply("good", reading(whole()))
    assert views.used == []
    assert images(root) == [IMAGE]
    store.get("good")
    assert views.used == [IMAGE]


def test_a_failure_after_the_check_leaves_no_image(
    store: LayerStore, root: Path, forgotten: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The disk filled up just before the layer got its content; later it works.
    """
    store.create("layer", "", writable=False)
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name == "applying":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(StorageFull):
        store.apply("layer", reading(whole()))
    monkeypatch.undo()
    assert images(root) == []
    assert forgotten == [IMAGE]
    assert sorted(os.listdir(root / "containers/layer")) == [
        *("layer.json", "merged", "upper", "work")
    ]
    assert "GearIndex" not in store.metadata("layer")
    store.apply("layer", reading(whole()))
    assert store.metadata("layer")["GearIndex"] == IMAGE


@pytest.mark.parametrize("step", ["checked", "noted", "set aside"])
def test_a_crash_leaves_neither_layer_nor_image(
    store: LayerStore, root: Path, views: Views, step: str
) -> None:
    """
    Killed at each step of an apply: the next start takes back what is half made.
    """
    store.create("layer", "", writable=False)
    folder = LayerFolder(root / "containers/layer")
    store.apply("layer", reading(whole()))
    # Back to what the disk held at that step.
    folder.upper.rename(folder.applying)
    if step != "set aside":
        folder.upper.mkdir()
    if step == "checked":
        record = folder.read()
        folder.write(type(record)(record.id, record.parents, record.writable))
    layer_store(root, NodeImages(root), views)
    assert layers(root) == []
    assert images(root) == []


def test_an_image_that_another_layer_carries_survives(
    store: LayerStore, root: Path, views: Views
) -> None:
    """
    A crash of one pull takes nothing from an image that is in use.
    """
    for name in ("one", "two"):
        store.create(name, "", writable=False)
        store.apply(name, reading(whole()))
    half = root / "containers/one"
    (half / "upper").rename(half / "applying")
    again = layer_store(root, NodeImages(root), views)
    assert layers(root) == ["two"]
    assert images(root) == [IMAGE]
    again.remove("two")
    assert os.listdir(root / "images") == []


def test_applying_again_replaces_the_image(
    store: LayerStore, root: Path, forgotten: list[str]
) -> None:
    """
    docker may repeat a call; the record tells of what was applied last.
    """
    store.create("layer", "", writable=False)
    store.apply("layer", reading(whole()))
    store.apply("layer", reading(whole()))
    assert (images(root), forgotten) == ([IMAGE], [])
    store.apply("layer", reading(tar({"name": "f", "data": b"x"})))
    assert "GearIndex" not in store.metadata("layer")
    assert (os.listdir(root / "images"), forgotten) == ([], [IMAGE])
    assert os.listdir(root / "containers/layer/upper") == ["f"]


def test_a_broken_image_folder_is_made_anew(store: LayerStore, root: Path) -> None:
    """
    As a crash of the machine may leave it: the next layer with it repairs it.
    """
    store.create("one", "", writable=False)
    store.apply("one", reading(whole()))
    (root / "images" / IMAGE / "objects").unlink()
    shutil.rmtree(root / "containers/one")
    fresh = layer_store(root, NodeImages(root), Views())
    fresh.create("two", "", writable=False)
    fresh.apply("two", reading(whole()))
    assert NodeImages(root).objects(IMAGE) is not None


def test_the_stream_is_read_to_its_end_when_the_disk_is_full(
    store: LayerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    dockerd must not take an early answer for the end.
    """
    store.create("layer", "", writable=False)
    stream = reading(whole())

    def full(self: Path, *_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(StorageFull, match="no room left in"):
        store.apply("layer", stream)
    assert stream(1) == b""


def test_an_index_is_on_disk_before_its_layer_is(
    store: LayerStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    After a power failure nothing checks an index again, so its bytes are
    fsynced before they get their name.
    """
    synced: list[str] = []
    fsync = os.fsync

    def note(handle: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{handle}").readlink().relative_to(root)))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note)
    store.create("layer", "", writable=False)
    assert synced == []
    store.apply("layer", reading(whole()))
    monkeypatch.undo()
    names = [Path(path).name for path in synced]
    image = names.index("images")
    assert {"index.erofs", "manifest", "objects"} <= set(names[:image])
    assert names[image + 1 :] == ["layer.json.new", ".gear", "upper", "layer"]


def test_a_damaged_record_is_a_layer_that_is_not_there(store: LayerStore, root: Path) -> None:
    """
    A power failure may cut off the record of a layer; the others go on.
    """
    store.create("torn", "", writable=False)
    store.create("whole", "", writable=False)
    for left in (b"", b"\0" * 100, b"{}", b"[]"):
        (root / "containers/torn/layer.json").write_bytes(left)
        with pytest.raises(LayerNotFound, match="damaged record"):
            store.get("torn")
        assert not store.exists("torn")
    store.apply("whole", reading(whole()))
    store.remove("whole")
    assert images(root) == []
    store.remove("torn")
    assert layers(root) == []


def test_what_an_install_left_goes_unless_it_is_at_work(root: Path) -> None:
    """
    Told by a lock, not by a clock: the folder of a living process stays.
    """
    images_here = NodeImages(root)
    left = root / "images/.tmp-left"
    left.mkdir()
    (left / "objects").write_bytes(b"half")
    (root / "images/.tmp-link").symlink_to("nowhere")
    with images_here.scratch() as folder:
        NodeImages(root).remove_half_made()
        assert list((root / "images").iterdir()) == [folder]
    assert os.listdir(root / "images") == []
