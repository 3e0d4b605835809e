"""A node's disk that is full, out of inodes, or read-only: on a real, small ext4."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gear_plugin.rootfs import is_mount, unmount
from tests.faults.conftest import MakeNode, contents
from tests.faults.node import DriverError, Node
from tests.unit.layers.tars import tar
from tests.waiting import eventually

pytestmark = pytest.mark.root

MIB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty ext4 of 24 MiB with 400 inodes."""
    image, point = tmp_path / "disk.img", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(24 * MIB)
    point.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-N", "400", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, point], check=True)
    yield point
    if is_mount(point):
        unmount(point, lazy=True)


@pytest.fixture
def node(make_node: MakeNode, disk: Path) -> Node:
    """A node whose own folder is on the small disk; its store is not."""
    node = make_node(contents(6, 600_000))
    node.settings(root=disk)
    node.root = disk
    node.start()
    node.pull()
    return node


def fill(disk: Path, leave_bytes: int) -> Path:
    """Take all room but about *leave_bytes*."""
    ballast = disk / "ballast"
    free = os.statvfs(disk)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_bsize - leave_bytes)
    return ballast


def use_up_inodes(disk: Path) -> Path:
    """Make empty files until there can be no more."""
    folder = disk / "ballast"
    folder.mkdir()
    try:
        for number in range(1000):
            (folder / str(number)).touch()
    except OSError as error:
        assert error.errno == errno.ENOSPC
    return folder


def remove(ballast: Path) -> None:
    subprocess.run(["rm", "-rf", ballast], check=True)


def assert_whole(node: Node) -> None:
    """No torn object, and nothing on its way, in the node's cache."""
    assert os.listdir(node.root / "cache-incoming") == []
    for path in (node.root / "public").glob("*/*"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.parent.name + path.name


@pytest.mark.parametrize("lacks", ["bytes", "inodes"])
def test_a_full_disk_is_eio_and_passes(node: Node, disk: Path, lacks: str) -> None:
    """
    In the middle of a file: nothing torn is shown, what is cached reads, the
    log says what to do, and once there is room the same container goes on.
    """
    tree = node.container()
    assert (tree / "f000").read_bytes() == node.files["f000"]
    ballast = fill(disk, 300_000) if lacks == "bytes" else use_up_inodes(disk)
    with pytest.raises(OSError) as caught:
        (tree / "f001").read_bytes()
    assert caught.value.errno == errno.EIO
    assert_whole(node)
    assert (tree / "f000").read_bytes() == node.files["f000"]
    assert node.said(r"no room left in .*/public and nothing more to evict; set cache_limit")
    assert not node.said("Traceback")
    remove(ballast)
    for name, content in node.files.items():
        assert (tree / name).read_bytes() == content
    assert_whole(node)


def test_a_full_disk_evicts_what_no_image_uses(node: Node, disk: Path) -> None:
    """
    Before anything fails.
    """
    node.call("Create", ID="x", Parent="")  # keeps the folder, not the image
    tree = node.container()
    (tree / "f000").read_bytes()
    node.call("Put", ID="container")
    node.call("Remove", ID="container")
    node.call("Remove", ID="index")
    eventually(lambda: not list((disk / "private").iterdir()), "the image is forgotten")
    node.pull(name="again")
    node.call("CreateReadWrite", ID="next", Parent="again")
    tree = Path(node.call("Get", ID="next", MountLabel="")["Dir"])
    fill(disk, 300_000)
    assert (tree / "f001").read_bytes() == node.files["f001"]
    assert node.said("the cache's disk is full; evicted")


@pytest.mark.parametrize("lacks", ["bytes", "inodes"])
def test_a_full_disk_refuses_a_layer_and_leaves_nothing(node: Node, disk: Path, lacks: str) -> None:
    """
    An ordinary layer, and an index: a clear 503, the folders as they were,
    and the same pull works when there is room.  Removing works meanwhile.
    """
    layer = tar(*({"name": f"d/{n}", "data": os.urandom(20_000)} for n in range(100)))
    node.call("Create", ID="old", Parent="")
    node.call("Create", ID="a", Parent="")
    node.call("Create", ID="b", Parent="")
    ballast = fill(disk, 100_000) if lacks == "bytes" else use_up_inodes(disk)
    before = sorted(os.listdir(disk / "images"))
    for name, data in (("a", layer), ("b", None)) if lacks == "inodes" else (("a", layer),):
        with pytest.raises(DriverError, match=r"503.*(no room left|No space left)"):
            node.pull_into(name, data)
        assert os.listdir(disk / "containers" / name / "upper") == []
        assert not (disk / "containers" / name / "applying").exists()
    with pytest.raises(DriverError, match=r"503.*no room left in .*containers"):
        for number in range(100):
            node.call("Create", ID=f"more{number}", Parent="")
    assert sorted(os.listdir(disk / "images")) == before
    node.call("Remove", ID="old")
    assert not (disk / "containers/old").exists()
    remove(ballast)
    node.pull_into("a", layer)
    assert len(os.listdir(disk / "containers/a/upper/d")) == 100
    assert not node.said("Traceback")


def test_a_client_starts_on_a_full_disk(node: Node, disk: Path) -> None:
    """
    Or what it could evict would never be evicted, and what is cached never pinned.
    """
    tree = node.container()
    (tree / "f000").read_bytes()
    ballast = fill(disk, 0)
    node.kill("client")
    node.await_client()
    assert node.client().status()["cached"]["objects"] == 1
    assert (tree / "f000").read_bytes() == node.files["f000"]
    remove(ballast)
    assert (tree / "f001").read_bytes() == node.files["f001"]


def test_a_disk_that_turns_read_only_is_eio_and_passes(node: Node, disk: Path) -> None:
    """
    As ext4 does after an error: cached files read, others are EIO with one
    line that says why; a client can start and stop meanwhile.
    """
    tree = node.container()
    (tree / "f000").read_bytes()
    node.call("Put", ID="container")
    node.call("Remove", ID="container")
    tree = Path(node.call("Get", ID="index", MountLabel="")["Dir"])  # no upper: can turn read-only
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert (tree / "f000").read_bytes() == node.files["f000"]
    with pytest.raises(OSError) as caught:
        (tree / "f001").read_bytes()
    assert caught.value.errno == errno.EIO
    assert node.said("WARNING.*the cache in .* cannot be used: Read-only file system")
    node.kill("client", signal.SIGTERM)
    node.await_client()
    with pytest.raises(OSError):
        (tree / "f002").read_bytes()
    assert len(node.said("WARNING.*Read-only file system")) >= 3  # two files, one checkpoint
    assert not node.said("Traceback")
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    for name, content in node.files.items():
        assert (tree / name).read_bytes() == content
