"""The promises of VolumeStore, on real mounts in each way."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gear_plugin.errors import (
    BadConfig,
    BadName,
    GearError,
    ImageNotFound,
    MountFailed,
    VolumeExists,
    VolumeInUse,
    VolumeNotFound,
)
from gear_plugin.layers import (
    Showing,
    VolumeImages,
    images_in_use,
    keepers,
    volume_images,
)
from gear_plugin.layers.volume_record import VolumeRecord
from gear_plugin.names import ImageId
from gear_plugin.rootfs import Way, is_mount, unmount

from .image_node import FILES, NAME, ROOT, WWW, ImageNode
from .test_crashes import container

pytestmark = pytest.mark.root

RO, RW = Showing(NAME), Showing(NAME, writable=True)


@pytest.fixture(params=list(Way))
def each_way(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ImageNode]:
    yield from _node(tmp_path, request.param)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[ImageNode]:
    yield from _node(tmp_path, Way.DIRECT)


def _node(base: Path, way: Way) -> Iterator[ImageNode]:
    made = ImageNode(base, way)
    try:
        yield made
    finally:
        made.close()


def folders(node: ImageNode) -> list[str]:
    """What there is in `volumes/`."""
    return sorted(os.listdir(node.root / "volumes"))


# --- images as volumes -------------------------------------------------------------


def test_a_volume_shows_the_image_read_only(each_way: ImageNode) -> None:
    """
    Every file, and nothing can be written, whatever the container is allowed.
    """
    each_way.volumes.create("v", RO)
    tree = each_way.volumes.mount("v", "a")
    assert {path: (tree / os.fsdecode(path)).read_bytes() for path in FILES} == FILES
    with pytest.raises(OSError, match="Read-only"):
        (tree / "new").write_bytes(b"x")
    each_way.volumes.unmount("v", "a")
    assert not is_mount(tree)


def test_what_is_written_to_a_writable_volume_is_its_own_and_stays(each_way: ImageNode) -> None:
    """
    Two volumes of one image do not see each other; the next mount shows it again.
    """
    for name in ("v", "w"):
        each_way.volumes.create(name, RW)
    tree = each_way.volumes.mount("v", "a")
    (tree / "etc/passwd").write_bytes(b"changed")
    (tree / "srv/note").unlink()
    other = each_way.volumes.mount("w", "b")
    assert (other / "etc/passwd").read_bytes() == FILES[b"etc/passwd"]
    each_way.volumes.unmount("v", "a")
    tree = each_way.volumes.mount("v", "c")
    assert (tree / "etc/passwd").read_bytes() == b"changed"
    assert not (tree / "srv/note").exists()


@pytest.mark.parametrize("path", [b"/srv/www", b"/srv/../srv/./www/", b"/absolute", b"/etc/up"])
def test_a_folder_of_the_image_is_shown_alone(each_way: ImageNode, path: bytes) -> None:
    """
    Links lead to it within the image; owner and mode are the folder's; one mount remains.
    """
    before = each_way.points()
    each_way.volumes.create("v", Showing(NAME, path=path))
    tree = each_way.volumes.mount("v", "a")
    assert os.listdir(tree) == ["index.html"]
    assert (tree / "index.html").read_bytes() == FILES[b"srv/www/index.html"]
    status = tree.stat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (
        *(WWW.mode, WWW.uid),
        WWW.gid,
    )
    assert each_way.points() == [*before, "volumes/v/merged"]
    with pytest.raises(OSError, match="Read-only"):
        (tree / "new").touch()
    each_way.volumes.unmount("v", "a")
    assert each_way.points() == before


def test_a_folder_can_be_written(each_way: ImageNode) -> None:
    """
    The upper is the whole image's, so that it lies where the image has it.
    """
    each_way.volumes.create("v", Showing(NAME, writable=True, path=b"/srv/www"))
    (each_way.volumes.mount("v", "a") / "new").write_bytes(b"x")
    each_way.volumes.unmount("v", "a")
    assert (each_way.volumes.mount("v", "b") / "new").read_bytes() == b"x"
    assert (each_way.root / "volumes/v/upper/srv/www/new").exists()


@pytest.mark.parametrize("showing", [RO, RW])
def test_the_root_looks_as_the_images(node: ImageNode, showing: Showing) -> None:
    """
    overlayfs shows the topmost directory's metadata, which is the volume's own.
    """
    node.volumes.create("v", showing)
    status = node.volumes.mount("v", "a").stat()
    assert status.st_mode & 0o7777 == ROOT.mode
    assert (status.st_uid, status.st_gid) == (ROOT.uid, ROOT.gid)
    assert status.st_mtime_ns == ROOT.mtime_ns


@pytest.mark.parametrize(
    "path", [b"/none", b"/etc/passwd", b"/etc/passwd/x", b"/loop", b"/out", b"/srv/www/none"]
)
def test_a_path_that_is_no_folder_of_the_image_is_refused(node: ImageNode, path: bytes) -> None:
    """
    One line with the image and the path; no volume, and the image goes again.
    """
    with pytest.raises(BadConfig, match=f"{NAME} has no folder {path.decode()!r}"):
        node.volumes.create("v", Showing(NAME, path=path))
    assert folders(node) == []
    assert node.installed() == []
    assert node.forgotten == [node.image]


def test_an_image_that_is_not_to_be_had_leaves_nothing(node: ImageNode) -> None:
    """
    The next try is a new one.
    """
    node.supply = False
    with pytest.raises(ImageNotFound):
        node.volumes.create("v", RO)
    assert folders(node) == []
    node.supply = True
    node.volumes.create("v", RO)
    assert folders(node) == ["v"]


# --- users -------------------------------------------------------------------------


def test_the_mount_goes_with_its_last_user(node: ImageNode) -> None:
    """
    Each user counts once, however often docker asks; who is not known does not count.
    """
    node.volumes.create("v", RW)
    tree = node.volumes.mount("v", "a")
    assert node.volumes.mount("v", "a") == tree
    assert node.volumes.mount("v", "b") == tree
    node.volumes.unmount("v", "stranger")
    node.volumes.unmount("v", "a")
    node.volumes.unmount("v", "a")
    assert is_mount(tree)
    node.volumes.unmount("v", "b")
    assert not is_mount(tree)
    node.volumes.unmount("v", "b")


def test_a_new_process_finds_mounts_and_users(node: ImageNode) -> None:
    """
    The volume stays mounted for the user who is left.
    """
    node.volumes.create("v", RW)
    tree = node.volumes.mount("v", "a")
    node.volumes.mount("v", "b")
    node.open()
    assert is_mount(tree)
    node.volumes.unmount("v", "a")
    assert is_mount(tree)
    with pytest.raises(VolumeInUse):
        node.volumes.remove("v")
    node.volumes.unmount("v", "b")
    assert not is_mount(tree)


def test_a_volume_that_a_container_has_kept_is_not_mounted_a_second_time(
    node: ImageNode,
) -> None:
    """
    `docker plugin disable -f` unmounts everything, and the container runs on.
    """
    node.volumes.create("v", RW)
    tree = node.volumes.mount("v", "a")
    node.volumes.mount("v", "b")
    with container(tree):
        unmount(tree, lazy=True)
        assert node.mounted() == set()
        assert images_in_use(node.root) == {node.image}
        node.open()
        node.volumes.unmount("v", "b")
        for operation in (lambda: node.volumes.mount("v", "c"), lambda: node.volumes.remove("v")):
            with pytest.raises(VolumeInUse, match="volume v is in use by a container that has"):
                operation()
        assert not is_mount(tree)
        assert folders(node) == ["v"]
    node.volumes.unmount("v", "a")
    assert images_in_use(node.root) == set()
    assert (node.volumes.mount("v", "c") / "written").exists()


@pytest.mark.parametrize("showing", [RO, RW])
def test_users_of_a_mount_that_is_gone_do_not_hold_it(node: ImageNode, showing: Showing) -> None:
    """
    docker may have lost the container that would have unmounted it.
    """
    node.volumes.create("v", showing)
    unmount(node.volumes.mount("v", "lost"), lazy=True)
    node.open()
    # Whether somebody still reads a read-only one cannot be known.
    assert images_in_use(node.root) == (set() if showing is RW else {node.image})
    tree = node.volumes.mount("v", "a")
    node.volumes.unmount("v", "a")
    assert not is_mount(tree)
    assert images_in_use(node.root) == set()
    node.volumes.remove("v")


def test_users_do_not_outlive_a_boot(node: ImageNode) -> None:
    """
    Whatever was mounted is not any more.
    """
    node.volumes.create("v", RO)
    unmount(node.volumes.mount("v", "lost"), lazy=True)
    assert images_in_use(node.root) == {node.image}
    (noted,) = (node.root / "volumes/v/users").iterdir()
    noted.rename(noted.with_name("another-boot.lost"))
    assert images_in_use(node.root) == set()


def test_users_of_an_ordinary_volume_do_not_outlive_the_process(node: ImageNode) -> None:
    """
    A dockerd that was killed never unmounts them, and starts the plugin anew.
    """
    node.volumes.create("v", None)
    node.volumes.mount("v", "lost")
    node.open()
    node.volumes.remove("v")
    assert folders(node) == []


@pytest.mark.parametrize("showing", [None, RO, RW])
def test_a_mounted_volume_is_not_removed(node: ImageNode, showing: Showing | None) -> None:
    """
    One line that names it; afterwards it goes, with all that it held.
    """
    node.volumes.create("v", showing)
    node.volumes.mount("v", "a")
    with pytest.raises(VolumeInUse, match="volume v is mounted"):
        node.volumes.remove("v")
    node.volumes.unmount("v", "a")
    node.volumes.remove("v")
    assert folders(node) == []
    with pytest.raises(VolumeNotFound, match="no volume v"):
        node.volumes.remove("v")


def test_many_containers_come_and_go_at_once(node: ImageNode) -> None:
    """
    Whoever has it mounted can read it; at the end nothing is mounted.
    """
    node.volumes.create("v", Showing(NAME, writable=True, path=b"/srv"))
    failures: list[str] = []

    def use(user: str) -> None:
        for _ in range(10):
            tree = node.volumes.mount("v", user)
            if (tree / "note").read_bytes() != FILES[b"srv/note"]:
                failures.append(user)
            node.volumes.unmount("v", user)

    threads = [threading.Thread(target=use, args=(str(n),)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert not is_mount(node.root / "volumes/v/merged")


def test_a_mount_that_fails_leaves_the_volume_unmounted(node: ImageNode) -> None:
    """
    And usable, when what was wrong has passed.
    """
    node.volumes.create("v", Showing(NAME, path=b"/srv"))
    away = (node.root / "volumes/v/merged").rename(node.base / "merged")
    with pytest.raises(MountFailed):
        node.volumes.mount("v", "a")
    assert [point for point in node.points() if point.startswith("volumes")] == []
    away.rename(node.root / "volumes/v/merged")
    node.volumes.mount("v", "b")
    node.volumes.unmount("v", "b")
    node.volumes.remove("v")


# --- who holds an image --------------------------------------------------------------


def test_an_image_stays_as_long_as_a_volume_shows_it(node: ImageNode) -> None:
    """
    And is in use while that is mounted.
    """
    for name in ("v", "w"):
        node.volumes.create(name, RO)
    assert node.mounted() == set()
    node.volumes.mount("v", "a")
    assert node.mounted() == {node.image}
    node.volumes.unmount("v", "a")
    assert node.mounted() == set()
    node.volumes.remove("v")
    assert node.installed() == [node.image]
    node.volumes.remove("w")
    assert node.installed() == []
    assert node.forgotten == [node.image]
    assert node.points() == []


def test_layers_and_volumes_hold_an_image_for_each_other(node: ImageNode) -> None:
    """
    Removing the last layer leaves the volume's image, and the other way round.
    """
    from .layer_damage import whole
    from .tars import reading

    node.volumes.create("v", RO)
    node.layers.create("layer", "", writable=False)
    node.layers.apply("layer", reading(whole(node.erofs, node.manifest)))
    node.layers.remove("layer")
    assert node.installed() == [node.image]
    node.layers.create("layer", "", writable=False)
    node.layers.apply("layer", reading(whole(node.erofs, node.manifest)))
    node.volumes.remove("v")
    assert node.installed() == [node.image]
    node.layers.remove("layer")
    assert node.installed() == []


def test_creating_and_removing_at_once_never_loses_an_image(node: ImageNode) -> None:
    """
    Each volume that there is can be mounted, whoever let go of the image meanwhile.
    """
    failures: list[GearError] = []

    def work(name: str) -> None:
        for _ in range(10):
            try:
                node.volumes.create(name, RO)
                node.volumes.mount(name, "a")
                node.volumes.unmount(name, "a")
                node.volumes.remove(name)
            except GearError as error:
                failures.append(error)

    threads = [threading.Thread(target=work, args=(f"v{n}",)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert node.installed() == []


def test_a_volume_that_gets_its_name_while_keepers_are_read_keeps_its_image(
    node: ImageNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Its folder is listed under the name that it has no more when it is read.
    """
    is_made, may_move = threading.Event(), threading.Event()
    prepare = VolumeImages.prepare

    def prepared(*args: Any) -> VolumeRecord:
        record = prepare(*args)
        is_made.set()
        assert may_move.wait(10)
        return record

    def listed(folder: Path) -> list[Path]:
        entries = sorted(folder.iterdir()) if folder.exists() else []
        if folder.name == "volumes":
            may_move.set()
            time.sleep(0.3)  # it would move now
        return entries

    monkeypatch.setattr(VolumeImages, "prepare", prepared)
    monkeypatch.setattr(keepers, "_entries", listed)
    creation = threading.Thread(target=node.volumes.create, args=("v", RO))
    creation.start()
    assert is_made.wait(10)
    node.keepers.drop(node.image)
    creation.join()
    assert node.installed() == [node.image]
    assert (node.volumes.mount("v", "a") / "srv/note").exists()
    node.volumes.unmount("v", "a")


# --- crashes -------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["noted", "complete", "going", "disowned"])
def test_what_a_crash_left_is_gone_after_the_next_start(node: ImageNode, step: str) -> None:
    """
    A volume half made or half removed, and its image with it.
    """
    node.volumes.create("v", RW)
    (node.volumes.mount("v", "a") / "new").write_bytes(b"x")
    node.volumes.unmount("v", "a")
    half = (node.root / "volumes/v").rename(node.root / "volumes/.tmp-x")
    if step == "noted":
        for name in ("merged", "whole", "upper"):
            os.rename(half / name, node.base / name)
    if step == "disowned":
        (half / "volume.json").rename(half / "gone.json")
    node.open()
    deadline = threading.Event()
    for _ in range(100):
        if folders(node) == [] and node.installed() == []:
            break
        deadline.wait(0.05)
    assert folders(node) == []
    assert node.installed() == []


def test_a_mount_aside_that_a_crash_left_is_taken_away(
    node: ImageNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Killed between mounting the image and showing its part.
    """

    def killed(*_: object, **__: object) -> None:
        raise SystemExit

    node.volumes.create("v", Showing(NAME, writable=True, path=b"/srv"))
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(volume_images, "bind_folder", killed)
        patched.setattr(volume_images, "unmount", killed)
        node.volumes.mount("v", "a")
    assert "volumes/v/whole" in node.points()
    node.open()
    tree = node.volumes.mount("v", "b")
    assert (tree / "note").read_bytes() == FILES[b"srv/note"]
    assert [p for p in node.points() if p.startswith("volumes")] == ["volumes/v/merged"]


def test_a_damaged_record_is_a_volume_that_is_not_there(node: ImageNode) -> None:
    """
    The others can be used.
    """
    node.volumes.create("v", None)
    node.volumes.create("w", None)
    (node.root / "volumes/v/volume.json").unlink()
    (node.root / "volumes/v/volume.json").write_text("{")
    with pytest.raises(VolumeNotFound, match=r"damaged record .*volume\.json"):
        node.volumes.get("v")
    assert [volume.record.name for volume in node.volumes.all()] == ["w"]
    with pytest.raises(VolumeNotFound, match=r"damaged record .*volume\.json"):
        node.volumes.create("v", None)


# --- ordinary volumes, names, listing ---------------------------------------------------


def test_an_ordinary_volume_is_a_folder(node: ImageNode) -> None:
    """
    Empty, so that docker copies the image's content in; it outlives its users.
    """
    node.volumes.create("v", None)
    tree = node.volumes.mount("v", "a")
    assert os.listdir(tree) == []
    assert tree.stat().st_mode & 0o7777 == 0o755
    (tree / "file").write_bytes(b"x")
    node.volumes.unmount("v", "a")
    assert (node.volumes.mount("v", "b") / "file").read_bytes() == b"x"
    assert node.volumes.get("v").mountpoint == tree


def test_creating_again_is_no_error_if_it_is_the_same(node: ImageNode) -> None:
    """
    docker gives up after two minutes and asks again; another image is refused.
    """
    node.volumes.create("v", RW)
    node.volumes.create("v", RW)
    assert node.asked == 1
    for other in (RO, None, Showing(NAME, writable=True, path=b"/srv")):
        with pytest.raises(VolumeExists, match="volume v exists already"):
            node.volumes.create("v", other)


def test_volumes_are_listed_with_what_they_show(node: ImageNode) -> None:
    """
    An image's volume has a path while it is mounted.
    """
    node.volumes.create("b", Showing(NAME, path=b"/absolute"))
    node.volumes.create("a", None)
    assert [volume.record.name for volume in node.volumes.all()] == ["a", "b"]
    volume = node.volumes.get("b")
    assert volume.mountpoint is None
    shown = volume.record.shown
    assert shown is not None
    assert (shown.image, shown.index) == (str(NAME), node.image)
    assert (shown.path, shown.folder, shown.writable) == ("/absolute", "/srv/www", False)
    assert shown.files == len(FILES)
    assert shown.size_bytes == sum(map(len, FILES.values()))
    assert node.volumes.get("b").record == volume.record
    assert node.volumes.mount("b", "a") == node.volumes.get("b").mountpoint


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", ".tmp-x", "-x", "a\n", "ä", "x" * 201, "_"]
)
def test_names_that_docker_would_not_give_are_refused(node: ImageNode, name: str) -> None:
    """
    By every operation, before anything is looked at.
    """
    for operation in (
        lambda: node.volumes.create(name, None),
        lambda: node.volumes.remove(name),
        lambda: node.volumes.mount(name, "a"),
        lambda: node.volumes.unmount(name, "a"),
        lambda: node.volumes.get(name),
    ):
        with pytest.raises(BadName, match="not a volume name"):
            operation()
    assert folders(node) == []


def test_a_volume_that_is_not_there_is_said_so(node: ImageNode) -> None:
    """
    By its name.
    """
    for operation in (
        lambda: node.volumes.mount("v", "a"),
        lambda: node.volumes.unmount("v", "a"),
        lambda: node.volumes.get("v"),
    ):
        with pytest.raises(VolumeNotFound, match="no volume v"):
            operation()


def test_a_thousand_volumes_are_removed_of_any_depth(node: ImageNode) -> None:
    """
    Deep trees do not stop a removal.
    """
    node.volumes.create("v", None)
    here = os.open(node.volumes.mount("v", "a"), os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    node.volumes.unmount("v", "a")
    node.volumes.remove("v")
    assert folders(node) == []


def test_the_image_is_named_as_it_was_asked_for(node: ImageNode) -> None:
    """
    Another name is another image.
    """
    with pytest.raises(ImageNotFound):
        node.volumes.create("v", Showing(ImageId.parse("other-gear:1")))
