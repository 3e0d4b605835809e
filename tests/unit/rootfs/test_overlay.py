"""Gear images on real mounts: EROFS index, data-only layers, both ways."""

from __future__ import annotations

import os
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gear_plugin.digest import Digest
from gear_plugin.errors import MountFailed
from gear_plugin.image import Inode, Kind, Tree, write_erofs
from gear_plugin.rootfs import (
    Plan,
    Stack,
    View,
    Way,
    clear_scratch,
    is_mount,
    is_upper_in_use,
    mount_index,
    mount_stack,
    probe,
    syscalls,
)
from gear_plugin.rootfs.overlay import mount_view
from gear_plugin.rootfs.syscalls import mounts, unmount

pytestmark = pytest.mark.root

CONTENT = b"#!/bin/sh\necho it runs\n"


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    """A folder; whatever is mounted below it goes at the end."""
    yield tmp_path
    for point in [point for point, _ in mounts() if tmp_path in point.parents][::-1]:
        unmount(point, lazy=True)


def image(base: Path) -> View:
    """An image with one program, its hard link and one symlink; its object is in `public`."""
    tree = Tree()
    program = Inode(
        Kind.FILE,
        0o4755,
        1000,
        7,
        1_500_000_000_123_456_789,
        size=len(CONTENT),
        xattrs={b"user.note": b"kept"},
        digest=Digest.of(CONTENT),
    )
    tree.root.children[b"program"] = program
    tree.root.children[b"again"] = program
    tree.root.children[b"link"] = Inode(Kind.SYMLINK, 0o777, 0, 0, 0, target=b"program")
    (base / "index.erofs").write_bytes(write_erofs(tree))
    (base / "index").mkdir()
    mount_index(base / "index.erofs", base / "index", loop=False)
    for name in ("public", "error"):
        (base / name).mkdir()
    stored = base / "public" / Digest.of(CONTENT).shard_path
    stored.parent.mkdir()
    stored.write_bytes(CONTENT)
    return View(base / "index", (base / "public", base / "error"))


def container(base: Path, view: View | Path) -> Path:
    """A container's mount on *view*."""
    for name in ("upper", "work", "merged"):
        (base / name).mkdir()
    mount_stack(base / "merged", Stack((), view, base / "upper", base / "work"))
    return base / "merged"


@pytest.fixture(params=["direct", "nested", "direct by string", "nested by string"])
def merged(base: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The container's tree, each way, with an option a layer and as before Linux 6.7."""
    if "string" in request.param:
        monkeypatch.setattr(syscalls, "has_lowerdir_option", lambda: False)
    view: View | Path = image(base)
    if request.param.startswith("nested"):
        assert isinstance(view, View)
        (base / "view").mkdir()
        mount_view(base / "view", view)
        view = base / "view"
    return container(base, view)


def test_content_and_metadata_are_the_images(merged: Path) -> None:
    """
    The index gives every attribute, the data layer the bytes.
    """
    status = (merged / "program").stat()
    assert (merged / "program").read_bytes() == CONTENT
    assert stat.S_IMODE(status.st_mode) == 0o4755
    assert (status.st_uid, status.st_gid, status.st_nlink) == (1000, 7, 2)
    assert status.st_mtime_ns == 1_500_000_000_123_456_789
    assert os.getxattr(merged / "program", "user.note") == b"kept"
    assert status.st_ino == (merged / "again").stat().st_ino
    assert (merged / "link").readlink() == Path("program")


def test_programs_run(merged: Path) -> None:
    """
    exec reads through the same layers, whatever the data file's own mode.
    """
    assert subprocess.check_output([merged / "program"]) == b"it runs\n"


def test_files_and_directories_are_on_one_device(merged: Path) -> None:
    """
    `tar --one-file-system` must not pass over the image's files.
    """
    assert (merged / "program").stat().st_dev == merged.stat().st_dev


def test_chmod_copies_content_up(base: Path, merged: Path) -> None:
    """
    A commit reads the upper directory; a data-less file there would be saved as zeros.
    """
    (merged / "program").chmod(0o755)
    assert (base / "upper/program").read_bytes() == CONTENT
    assert "trusted.overlay.metacopy" not in os.listxattr(base / "upper/program")


def test_overlay_attributes_are_not_shown(merged: Path) -> None:
    """
    What binds metadata to content is no business of the container.
    """
    assert os.listxattr(merged / "program") == ["user.note"]


def test_a_missing_object_is_an_error_and_then_reads(base: Path, merged: Path) -> None:
    """
    No negative answer is kept: once the object is there, the file opens.
    """
    stored = base / "public" / Digest.of(CONTENT).shard_path
    stored.rename(base / "away")
    with pytest.raises(OSError):
        (merged / "program").read_bytes()
    (base / "away").rename(stored)
    assert (merged / "program").read_bytes() == CONTENT


def test_a_stack_of_130_layers_mounts_by_string(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    docker allows 125 layers, and the string of mount(2) ends at a page.
    """
    monkeypatch.setattr(syscalls, "has_lowerdir_option", lambda: False)
    layers = []
    for number in range(130):
        layer = base / f"{number:0100d},:" / "upper"
        layer.mkdir(parents=True)
        (layer / f"file{number}").touch()
        layers.append(layer)
    for name in ("upper", "work", "merged"):
        (base / name).mkdir()
    mount_stack(base / "merged", Stack(tuple(layers), None, base / "upper", base / "work"))
    assert len(list((base / "merged").iterdir())) == 130


def test_probe_finds_all_ways_here_and_leaves_nothing(base: Path) -> None:
    """
    This project's machines have Linux 6.16 or newer; elsewhere one of them is enough.
    """
    plan = probe(base / "probe")
    assert plan.way in plan.available
    assert Way.FUSE_TREE in plan.available
    assert list((base / "probe").iterdir()) == []
    assert not any(base in point.parents for point, _ in mounts())


@pytest.mark.parametrize("way", list(Way))
def test_a_way_can_be_forced(base: Path, way: Way) -> None:
    """
    Tests and careful operators choose.
    """
    plan = probe(base / "probe", way.value)
    assert isinstance(plan, Plan)
    assert plan.way is way


def test_an_index_mounts_through_a_loop_device_too(base: Path) -> None:
    """
    For kernels that cannot read EROFS from a file; the device frees itself.
    """
    image(base)
    (base / "looped").mkdir()
    mount_index(base / "index.erofs", base / "looped", loop=True)
    assert (base / "looped/program").stat().st_size == len(CONTENT)
    unmount(base / "looped")


def test_a_refused_mount_says_why(base: Path) -> None:
    """
    The kernel's own words reach the user.
    """
    (base / "merged").mkdir()
    with pytest.raises(MountFailed, match="overlay"):
        mount_stack(base / "merged", Stack((base / "nowhere", base / "nothing")))
    assert not is_mount(base / "merged")


@pytest.fixture(params=[True, False], ids=["option", "string"])
def lowerdir_option(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With, and as before Linux 6.7 without, an option of its own for each layer."""
    if not request.param:
        monkeypatch.setattr(syscalls, "has_lowerdir_option", lambda: False)


@pytest.mark.usefixtures("lowerdir_option")
def test_an_upper_directory_is_in_use_for_as_long_as_its_overlay_lives(base: Path) -> None:
    """
    Also when the overlay is mounted nowhere any more; asking changes nothing in it.
    """
    lower, upper, work, target, scratch = (base / n for n in ("l", "u", "w", "m", "s"))
    for path in (lower, upper, work, target, scratch):
        path.mkdir()
    mtime_ns = upper.stat().st_mtime_ns
    assert not is_upper_in_use(upper, scratch)
    assert os.listxattr(upper) == []
    mount_stack(target, Stack((lower,), None, upper, work))
    own = os.listxattr(upper)
    assert is_upper_in_use(upper, scratch)
    handle = os.open(target, os.O_RDONLY)
    unmount(target, lazy=True)
    assert is_upper_in_use(upper, scratch)
    os.close(handle)
    deadline = time.monotonic() + 10
    while is_upper_in_use(upper, scratch):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert (upper.stat().st_mtime_ns, os.listxattr(upper)) == (mtime_ns, own)
    assert not any(base in point.parents for point, _ in mounts())


def test_an_upper_directory_that_cannot_be_asked_about_is_an_error(base: Path) -> None:
    """
    Not knowing is not the same as free.
    """
    (base / "scratch").mkdir()
    with pytest.raises(MountFailed):
        is_upper_in_use(base / "missing", base / "scratch")


def test_what_a_killed_probe_left_is_cleared(base: Path) -> None:
    """
    Its mounts lie below the folder that the host sees.
    """
    left = base / "probe/probe-left"
    for name in ("data", "upper", "work", "merged", "view"):
        (left / name).mkdir(parents=True)
    mount_stack(left / "merged", Stack((left / "data",), None, left / "upper", left / "work"))
    clear_scratch(base / "probe")
    assert not any(base in point.parents for point, _ in mounts())
    assert os.listdir(base) == []
    clear_scratch(base / "probe")


def test_a_kernel_that_takes_any_option_has_not_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Linux before 6.5 notes every option, and refuses the unknown ones when it mounts.
    """
    asks = syscalls.has_lowerdir_option.__wrapped__
    for taken, expected in (({b"lowerdir+"}, True), (set(), False), (None, False)):
        monkeypatch.setattr(
            syscalls, "_takes_layer", lambda option, taken=taken: taken is None or option in taken
        )
        assert asks() is expected
