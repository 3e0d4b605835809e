"""An image's own mounts, with plain folders for the FUSE layer."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gear_plugin.digest import Digest
from gear_plugin.image import Inode, Kind, Tree, write_erofs
from gear_plugin.rootfs import LazyLayer, Plan, Stack, View, Views, Way, mount_stack
from gear_plugin.rootfs.syscalls import mounts, unmount

pytestmark = pytest.mark.root

IMAGE = "ab" * 32
CONTENT = b"content"


class Node:
    """Views over a run folder and a cache, and containers that stand on them."""

    def __init__(self, base: Path, way: Way) -> None:
        self.base = base
        tree = Tree()
        digest = Digest.of(CONTENT)
        tree.root.children[b"file"] = Inode(
            Kind.FILE, 0o644, 0, 0, 0, size=len(CONTENT), digest=digest
        )
        (base / "index.erofs").write_bytes(write_erofs(tree))
        (base / "cache/public" / digest.shard_path).parent.mkdir(parents=True)
        (base / "cache/public" / digest.shard_path).write_bytes(CONTENT)
        (base / "cache/private" / IMAGE).mkdir(parents=True)
        for name in (f"objects/{IMAGE}", "error"):
            (base / "fuse" / name).mkdir(parents=True)
        (base / "run").mkdir()
        state = {"number": 1, "pid": os.getpid(), "mountpoint": str(base / "fuse")}
        (base / "run/fuse.json").write_text(json.dumps(state))
        self.views = Views(
            base / "run",
            base / "cache",
            Plan(way, loop_index=False, available=(way,)),
            LazyLayer(base / "run"),
            index_file=lambda _: base / "index.erofs",
            admit=lambda _: None,
            wait_s=5,
        )

    def container(self, name: str) -> Path:
        """Start a container; its tree."""
        folder = self.base / name
        for part in ("upper", "work", "merged"):
            (folder / part).mkdir(parents=True)

        def mount(view: View | Path) -> None:
            mount_stack(folder / "merged", Stack((), view, folder / "upper", folder / "work"))

        self.views.use(IMAGE, mount)
        return folder / "merged"

    def mounted(self, part: str) -> int:
        """How many mounts there are below a part of the run folder."""
        return sum(self.base / "run" / part in point.parents for point, _ in mounts())


@pytest.fixture(params=[Way.DIRECT, Way.NESTED])
def node(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Node]:
    yield Node(tmp_path, request.param)
    for point in [point for point, _ in mounts() if tmp_path in point.parents][::-1]:
        unmount(point, lazy=True)


def test_containers_share_the_images_mounts(node: Node) -> None:
    """
    One index, and nested one view, however many containers.
    """
    trees = [node.container(name) for name in ("a", "b")]
    assert [(tree / "file").read_bytes() for tree in trees] == [CONTENT, CONTENT]
    assert node.mounted("index") == 1
    assert node.mounted("view") <= 1


def test_a_view_goes_with_the_last_that_stands_on_it(node: Node) -> None:
    """
    It would hold evicted objects' disk space; while it is used it stays.
    """
    tree = node.container("a")
    views = node.mounted("view")
    node.views.release(IMAGE, lambda: True)
    assert node.mounted("view") == views
    node.views.release(IMAGE, lambda: False)
    assert node.mounted("view") == 0
    assert (tree / "file").read_bytes() == CONTENT, "a running container keeps it alive"
    assert (node.container("b") / "file").read_bytes() == CONTENT


def test_a_view_is_not_taken_away_while_it_is_being_stood_on(node: Node) -> None:
    """
    A release in the middle of a mount waits, or the container would be empty.
    """
    stop = threading.Event()

    def release() -> None:
        while not stop.is_set():
            node.views.release(IMAGE, lambda: False)

    thread = threading.Thread(target=release)
    thread.start()
    try:
        for number in range(50):
            assert (node.container(f"c{number}") / "file").read_bytes() == CONTENT
    finally:
        stop.set()
        thread.join()


def test_forgetting_unmounts_everything(node: Node) -> None:
    """
    The image leaves the node.
    """
    node.container("a")
    node.views.forget(IMAGE)
    assert node.mounted("index") == node.mounted("view") == 0
