"""This kernel: what it can do is found, and each way of mounting shows the image as it is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gear_plugin.content import DirectoryStore
from gear_plugin.digest import Digest
from gear_plugin.jobs import BuildFolder
from gear_plugin.names import ImageId
from gear_plugin.rootfs import is_mount, unmount
from tests.engine.compare import Scan, differences, scan
from tests.faults.node import Node
from tests.vm.guest.images import archive, gear, odd_tree

IMAGE = ImageId.parse("app:1")
_RELEASE = tuple(
    int(part) for part in os.uname().release.split("-")[0].split("+")[0].split(".")[:2]
)
WAYS = ["fuse-tree"]
if _RELEASE >= (6, 5):
    WAYS.append("nested")
if _RELEASE >= (6, 16):
    WAYS.append("direct")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on ext4 with the image's tree, and the image, built and stored."""
    folder = Path("/srv/ways")
    tree = odd_tree(folder)
    saved = archive(folder, IMAGE)
    gear("--root", folder / "built", "build", "--from", saved, IMAGE)
    store = DirectoryStore.create(folder / "store")
    files = BuildFolder.of(folder / "built", IMAGE).files
    objects = [
        (Digest.from_shard_path(str(path.relative_to(files))), path) for path in files.glob("*/*")
    ]
    store.put_all(objects, lambda _: None)
    assert tree.is_dir()
    return folder


@pytest.fixture(scope="module")
def truth(place: Path) -> Scan:
    return scan(place / "tree")


def test_the_doctor_says_what_this_kernel_can_do(place: Path) -> None:
    """
    The best way that the kernel's version promises, and none of the kernel's parts missing.
    """
    told = gear(
        "--root", place / "built", "--store", place / "store", "doctor", "--json", check=False
    )
    found = {line["check"]: line for line in json.loads(told.stdout)}
    for check in ("kernel", "overlayfs", "data-only layers", "mount API", "lowerdir+"):
        print(f"{check}: {found[check]['status']} {found[check]['detail']}")
    for check in ("EROFS from a file", "EROFS from a loop device", "way of mounting"):
        print(f"{check}: {found[check]['status']} {found[check]['detail']}")
    assert found["way of mounting"]["detail"].split()[0].rstrip(":,") == WAYS[-1]
    for check in ("overlayfs", "EROFS from a loop device", "FUSE device", "FUSE library"):
        assert found[check]["status"] == "ok", found[check]
    assert (found["data-only layers"]["status"] == "ok") == (_RELEASE >= (6, 5))
    works = found["EROFS from a file"]["detail"].startswith("works")
    assert works == (_RELEASE >= (6, 12))
    assert (found["lowerdir+"]["status"] == "ok") == (_RELEASE >= (6, 7))


def _below(found: Scan) -> Scan:
    """Without the top: a container's is a directory of its own, as in overlay2."""
    seen = {path: look for path, look in found.seen.items() if path != b"."}
    return replace(found, seen=seen)


@pytest.mark.parametrize("way", WAYS)
def test_a_container_shows_the_image(place: Path, truth: Scan, way: str) -> None:
    """
    Names, kinds, modes, owners, times, xattrs, hard links and contents; and once more
    from the cache, in a second container, while the store is away.
    """
    node = Node(place / f"node-{way}", {}, mount_way=way, store=place / "store", fetch_timeout_s=60)
    try:
        node.start()
        assert dict(node.call("Status")["Status"])["Mount Way"].startswith(f"{way} ")
        node.pull((BuildFolder.of(place / "built", IMAGE).path / "build/index.tar").read_bytes())
        first = node.container("first")
        assert differences(_below(truth), _below(scan(first))) == []
        away = place / "away"
        (place / "store").rename(away)
        try:
            second = node.container("second")
            assert differences(_below(truth), _below(scan(second))) == []
            (second / "odd/new").write_text("written")
            assert not (first / "odd/new").exists()
        finally:
            away.rename(place / "store")
        for name in ("first", "second"):
            node.call("Put", ID=name)
    finally:
        node.close()


@pytest.fixture
def shown(place: Path) -> Iterator[Path]:
    """`gear fs` of the image."""
    folder = place / "shown"
    folder.mkdir()
    places = {"ROOT": place / "built", "RUN": "/run/gear-fs", "STORE": place / "store"}
    settings = {f"GEAR_{name}": value for name, value in places.items()}
    os.environ.update({name: str(value) for name, value in settings.items()})
    gear("fs", IMAGE.gear, folder)
    yield folder
    unmount(folder)
    for name in settings:
        del os.environ[name]


def test_gear_fs_shows_the_image(shown: Path, truth: Scan) -> None:
    """
    Without docker, the same tree.
    """
    assert is_mount(shown)
    assert differences(truth, scan(shown)) == []
