"""
The driver cut off in the middle, or its mounts taken away; what the next one makes of it.

docs/crash-windows.md is the list that these tests prove.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gear_plugin.digest import Digest
from gear_plugin.errors import Conflict, LayerInUse
from gear_plugin.image import INDEX_NAME
from gear_plugin.layers import (
    LayerStore,
    NodeImages,
    images_in_use,
    mounted_images,
    own_layers,
)
from gear_plugin.layers import repair as repairing
from gear_plugin.layers.keepers import ImageKeepers
from gear_plugin.layers.record import LayerFolder
from gear_plugin.rootfs import View, is_mount, unmount

from .conftest import NoViews, layer_store, make_store
from .layer_damage import EROFS, whole
from .tars import reading, tar

pytestmark = pytest.mark.root

IMAGE = Digest.of(EROFS).hex


class Killed(BaseException):
    """Stands for a SIGKILL: nothing after it runs."""


class Views:
    """Stands in for rootfs.Views: mounts nothing, remembers what was let go of."""

    def __init__(self) -> None:
        self.released: list[str] = []

    def use(self, image: str, mount: Callable[[View | Path], None], /) -> None:
        pass

    def release(self, image: str, is_used: Callable[[], bool], /) -> None:
        if not is_used():
            self.released.append(image)

    def forget(self, image: str, /) -> None:
        pass


@pytest.fixture
def top(store: LayerStore) -> str:
    """A container's layer `top` on `base`, which has the file `f`."""
    store.create("base", "", writable=False)
    store.apply("base", reading(tar({"name": "f", "data": b"below"})))
    store.create("top", "base", writable=True)
    return "top"


def image_store(root: Path, forgotten: list[str] | None = None) -> LayerStore:
    """A store that knows Gear images, as a new process would make it."""
    told = [] if forgotten is None else forgotten
    return layer_store(root, NodeImages(root), Views(), told.append)


def pull(store: LayerStore, name: str = "image") -> None:
    store.create(name, "", writable=False)
    store.apply(name, reading(whole()))


def installed(root: Path) -> list[str]:
    return sorted(name for name in os.listdir(root / "images") if "=" not in name)


def layers(root: Path) -> list[str]:
    return sorted(name for name in os.listdir(root / "containers") if name != ".empty")


@contextmanager
def container(tree: Path) -> Iterator[None]:
    """
    Something that goes on using what is mounted now, wherever it is unmounted: an
    open file keeps an overlay alive as a container's mount namespace does.
    """
    with (tree / "written").open("wb") as file:
        file.write(b"so far")
        yield


# --- mounts that were taken away -----------------------------------------------


def test_a_layer_that_a_container_has_kept_is_not_mounted_a_second_time(
    store: LayerStore, top: str, root: Path
) -> None:
    """
    `docker plugin disable -f` unmounts everything; the container runs on, and
    two overlays on one upper directory would destroy each other's files.
    """
    tree = store.get(top)
    with container(tree):
        unmount(tree, lazy=True)
        after = layer_store(root, NodeImages(root), NoViews(), release_s=0.1)
        before = sorted(os.listdir(root / "containers"))
        with pytest.raises(LayerInUse, match="running since before the plugin was disabled"):
            after.get(top)
        after.put(top)
        with pytest.raises(LayerInUse):
            after.get(top)
        assert not is_mount(tree)
        assert sorted(os.listdir(root / "containers")) == before
        # What reads the upper directory alone needs no second mount.
        assert [change.path for change in after.changes(top, "base")] == [b"/written"]
    assert (after.get(top) / "written").exists()
    after.put(top)
    assert not is_mount(tree)


def test_a_container_that_is_about_to_end_is_waited_for(
    store: LayerStore, top: str, root: Path
) -> None:
    """
    `docker restart` mounts a moment after the last process has gone.
    """
    tree = store.get(top)
    with container(tree):
        unmount(tree, lazy=True)
        after = make_store(root)
        got: list[Path] = []
        getter = threading.Thread(target=lambda: got.append(after.get(top)))
        getter.start()
        time.sleep(0.3)
        assert got == []
    getter.join(10)
    assert got == [tree]
    assert is_mount(tree)


def test_a_mount_that_nobody_kept_is_made_again(store: LayerStore, top: str, root: Path) -> None:
    """
    A stopped engine's Cleanup, or disable -f without containers.
    """
    tree = store.get(top)
    unmount(tree, lazy=True)
    assert (make_store(root).get(top) / "f").read_bytes() == b"below"


def test_a_container_that_ended_while_the_driver_was_away_holds_nothing(
    store: LayerStore, top: str, root: Path
) -> None:
    """
    Its Put never came; the next start asks the kernel, and its image is not
    completed for nobody.
    """
    tree = store.get(top)
    held = root / "containers/top/held"
    with container(tree):
        unmount(tree, lazy=True)
        make_store(root)
        assert held.exists()
    deadline = time.monotonic() + 10
    while held.exists():
        assert time.monotonic() < deadline
        make_store(root)


def test_an_image_stays_in_use_when_its_mounts_are_taken_away(root: Path) -> None:
    """
    A running container goes on reading it: it is healed, and not evicted.
    """
    store = image_store(root)
    pull(store)
    store.create("c", "image", writable=True)
    store.get("c")
    assert mounted_images(root) == set()  # as if it had been taken away: Views mounts nothing
    assert images_in_use(root) == {IMAGE}
    store.remove("c")
    assert images_in_use(root) == set()


def test_a_note_of_another_boot_says_nothing(store: LayerStore, top: str, root: Path) -> None:
    """
    After a power failure nothing is mounted, and nobody runs.
    """
    held = root / "containers/top/held"
    held.write_text("0d1ff5a0-0000-4000-8000-000000000000          7\n")
    assert images_in_use(root) == set()
    after = make_store(root)
    assert not held.exists()
    after.get(top)
    after.put(top)
    assert not is_mount(root / "containers/top/merged")


# --- counts --------------------------------------------------------------------


def test_a_new_process_knows_how_often_a_mount_is_held(
    store: LayerStore, top: str, root: Path
) -> None:
    """
    A `docker cp` under way when the driver is killed: its Put must not take
    the mount from the container that runs.
    """
    tree = store.get(top)
    store.get(top)
    after = make_store(root)
    after.put(top)
    assert is_mount(tree)
    after.put(top)
    assert not is_mount(tree)
    assert not (root / "containers/top/held").exists()


@pytest.mark.parametrize("left", [b"", b"torn"], ids=["empty", "torn"])
def test_a_mount_whose_count_is_lost_has_one_user(
    store: LayerStore, top: str, root: Path, left: bytes
) -> None:
    """
    As moby's own counter has it.
    """
    tree = store.get(top)
    (root / "containers/top/held").write_bytes(left)
    after = make_store(root)
    after.get(top)
    after.put(top)
    assert is_mount(tree)
    after.put(top)
    assert not is_mount(tree)


def test_a_new_daemon_has_one_reference_to_each_mount(
    store: LayerStore, top: str, root: Path
) -> None:
    """
    What the last one held besides (a cp, an export) went with it.
    """
    tree = store.get(top)
    store.get(top)
    store.begin()
    # live-restore: Get and Put at its start, then Put when the container ends.
    store.get(top)
    store.put(top)
    assert is_mount(tree)
    store.put(top)
    assert not is_mount(tree)


def test_what_the_driver_itself_held_for_a_dead_daemon_is_not_put_twice(
    store: LayerStore, top: str, root: Path
) -> None:
    """
    A diff is broken off late: the container's reference is not touched.
    """
    tree = store.get(top)
    diff = store.diff(top, "")
    next(diff)
    store.begin()
    diff.close()  # type: ignore[attr-defined]
    assert is_mount(tree)
    store.put(top)
    assert not is_mount(tree)


def test_a_full_disk_keeps_nothing_from_being_mounted(
    store: LayerStore, top: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The count is then in memory alone.
    """
    open_ = os.open

    def full(path: str | Path, *words: int, **more: int) -> int:
        if str(path).endswith("/held"):
            raise OSError(28, "No space left on device")
        return open_(path, *words, **more)

    monkeypatch.setattr(os, "open", full)
    tree = store.get(top)
    assert is_mount(tree)
    store.put(top)
    assert not is_mount(tree)


# --- operations cut off ----------------------------------------------------------


def test_a_layer_killed_on_its_way_out_takes_its_image_along(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Also when the repair itself is killed at the same place.
    """
    store = image_store(root)
    pull(store)

    def kill(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(ImageKeepers, "drop", kill)
    with pytest.raises(Killed):
        store.remove("image")
    with pytest.raises(Killed):
        image_store(root)
    monkeypatch.undo()
    assert installed(root) == [IMAGE]
    forgotten: list[str] = []
    image_store(root, forgotten)
    assert (layers(root), installed(root), forgotten) == ([], [], [IMAGE])


def test_a_repair_killed_while_it_removes_goes_on_at_the_next_start(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The image goes before the record that names it.
    """
    pull(image_store(root))
    folder = LayerFolder(root / "containers/image")
    folder.upper.rename(folder.applying)

    def kill(_: Path) -> None:
        raise Killed

    monkeypatch.setattr(repairing, "remove_tree", kill)
    with pytest.raises(Killed):
        image_store(root)
    monkeypatch.undo()
    assert installed(root) == []
    image_store(root)
    assert layers(root) == []


def test_what_an_apply_replaced_goes_at_the_next_start(root: Path) -> None:
    """
    Killed after the new content got its name: the layer is whole, the old one
    and its image are left.
    """
    store = image_store(root)
    pull(store)
    store.create("plain", "", writable=False)
    layer, plain = (LayerFolder(root / "containers" / name) for name in ("image", "plain"))
    layer.upper.rename(layer.replaced)
    layer.upper.mkdir()
    record = plain.read()
    layer.write(type(record)("image", (), writable=False))
    forgotten: list[str] = []
    after = image_store(root, forgotten)
    assert not layer.replaced.exists()
    assert (layers(root), installed(root), forgotten) == (["image", "plain"], [], [IMAGE])
    assert after.exists("image")


def test_a_half_made_layer_goes_though_its_helper_still_unpacks(
    store: LayerStore, root: Path
) -> None:
    """
    The process that unpacks outlives a killed driver for a moment.
    """
    store.create("half", "", writable=False)
    applying = root / "containers/half/applying"
    applying.mkdir()
    inside = os.open(applying, os.O_RDONLY | os.O_DIRECTORY)
    stop = time.monotonic() + 0.5

    def write() -> None:
        number = 0
        while time.monotonic() < stop:
            number += 1
            try:
                os.close(os.open(f"f{number}", os.O_WRONLY | os.O_CREAT, dir_fd=inside))
            except FileNotFoundError:  # the folder itself has gone
                return

    writer = threading.Thread(target=write)
    writer.start()
    make_store(root)
    writer.join()
    os.close(inside)
    assert layers(root) == []


def test_the_client_is_told_of_an_image_that_is_gone(root: Path) -> None:
    """
    Killed between removing an image and having the client forget it: nothing
    else would unpin its objects before the client's next start.
    """
    pull(image_store(root))
    for name in (IMAGE, "ab" * 32, "someones-own"):
        (root / "private" / name).mkdir(parents=True)
    forgotten: list[str] = []
    image_store(root, forgotten)
    assert forgotten == ["ab" * 32]


def test_views_that_nothing_stands_on_go_at_the_next_start(root: Path) -> None:
    """
    Killed between unmounting a container and letting go of the image's own mount.
    """
    pull(image_store(root))
    views = Views()
    layer_store(root, NodeImages(root), views)
    assert views.released == [IMAGE]


@pytest.mark.parametrize("step", ["mkdir", "write", "rename"])
def test_a_create_cut_off_leaves_no_layer(
    store: LayerStore, root: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """
    A folder has its name only once it is whole.
    """

    def kill(*_: object, **__: object) -> None:
        raise Killed

    monkeypatch.setattr(LayerFolder if step == "write" else Path, step, kill)
    with pytest.raises(Killed):
        store.create("new", "", writable=True)
    monkeypatch.undo()
    assert not store.exists("new")
    after = make_store(root)
    assert layers(root) == []
    after.create("new", "", writable=True)


def test_an_image_without_its_layers_content_goes(root: Path) -> None:
    """
    Killed between the check and the note: told by the file that both share.
    """
    store = image_store(root)
    store.create("image", "", writable=False)
    applying = root / "containers/image/applying"
    store.apply("image", reading(whole()))
    (root / "containers/image/upper").rename(applying)
    record = LayerFolder(applying.parent).read()
    LayerFolder(applying.parent).write(type(record)("image", (), writable=False))
    assert (applying / INDEX_NAME).exists()
    image_store(root)
    assert (layers(root), installed(root)) == ([], [])


# --- one process -----------------------------------------------------------------


def test_a_second_driver_on_one_folder_waits_for_the_first_to_end(root: Path) -> None:
    """
    A killed driver is gone in a moment; one that stays is named.
    """
    code = (
        "import sys, time; from pathlib import Path; from gear_plugin.layers import own_layers\n"
        "own_layers(Path(sys.argv[1]), wait_s=0); print('mine', flush=True); time.sleep(99)"
    )
    first = subprocess.Popen([sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE)
    try:
        assert first.stdout is not None and first.stdout.readline() == b"mine\n"
        with pytest.raises(Conflict, match="another gear graphdriver"):
            own_layers(root, wait_s=0.1)
        threading.Timer(0.2, first.kill).start()
        os.close(own_layers(root, wait_s=10))
    finally:
        first.kill()
        first.communicate()
