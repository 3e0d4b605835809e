"""The lazy layer for real: llfuse triggers below an overlay, and their death."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from gear_plugin.digest import Digest
from gear_plugin.image import Inode, Kind, Tree, write_erofs
from gear_plugin.rootfs import Stack, View, Way, mount_index, mount_stack
from gear_plugin.rootfs.overlay import mount_view
from gear_plugin.rootfs.syscalls import mounts, unmount

from . import fuse_daemon
from .fuse_daemon import IMAGE

pytestmark = pytest.mark.root

CONTENTS = {b"one": b"content one", b"two": b"content two", b"three": b"content three"}


class Node:
    """One image on a node: index, data layers, FUSE daemon, and a container's mount."""

    def __init__(self, base: Path, way: Way) -> None:
        self.base = base
        for folder in ("index", "fuse", "public", "private", "supply", "upper", "work", "merged"):
            (base / folder).mkdir()
        tree = Tree()
        for name, content in CONTENTS.items():
            tree.root.children[name] = Inode(
                Kind.FILE, 0o644, 0, 0, 0, size=len(content), digest=Digest.of(content)
            )
        (base / "index.erofs").write_bytes(write_erofs(tree))
        mount_index(base / "index.erofs", base / "index", loop=False)
        self.daemon = self._start()
        data = ("public", f"fuse/objects/{IMAGE}", "private", "fuse/error")
        view: View | Path = View(base / "index", tuple(base / name for name in data))
        if way is Way.FUSE_TREE:
            view = base / "fuse" / "trees" / IMAGE
        if way is Way.NESTED:
            (base / "view").mkdir()
            mount_view(base / "view", View(base / "index", tuple(base / name for name in data)))
            view = base / "view"
        mount_stack(base / "merged", Stack((), view, base / "upper", base / "work"))

    def _start(self) -> subprocess.Popen[str]:
        paths = [str(self.base / name) for name in ("fuse", "private", "supply", "index.erofs")]
        process = subprocess.Popen(
            [sys.executable, fuse_daemon.__file__, *paths],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    def put(self, folder: str, name: bytes) -> None:
        """Put the object of the file *name* into one of the node's folders."""
        target = self.base / folder / Digest.of(CONTENTS[name]).shard_path
        target.parent.mkdir(exist_ok=True, parents=True)
        target.write_bytes(CONTENTS[name])

    def read(self, name: bytes) -> bytes:
        """What the container reads."""
        return (self.base / "merged" / name.decode()).read_bytes()

    def kill(self) -> None:
        """kill -9."""
        self.daemon.kill()
        self.daemon.wait()


@pytest.fixture(params=list(Way))
def node(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Node]:
    with running(tmp_path, request.param) as made:
        yield made


@contextmanager
def running(tmp_path: Path, way: Way) -> Iterator[Node]:
    """A node, and nothing left of it afterwards."""
    made = Node(tmp_path, way)
    try:
        yield made
    finally:
        made.kill()
        assert made.daemon.stdout is not None
        made.daemon.stdout.close()
        for point in [point for point, _ in mounts() if tmp_path in point.parents][::-1]:
            unmount(point, lazy=True)


def test_an_open_fetches_and_reads(node: Node) -> None:
    """
    The trigger brings the object; overlayfs finds it in the private layer.
    """
    node.put("supply", b"one")
    assert node.read(b"one") == CONTENTS[b"one"]
    assert (node.base / "private" / Digest.of(CONTENTS[b"one"]).shard_path).exists()


def test_listing_and_stat_fetch_nothing(node: Node) -> None:
    """
    Metadata is the index's alone.
    """
    merged = node.base / "merged"
    assert {path.name: path.stat().st_size for path in merged.iterdir()} == {
        name.decode(): len(content) for name, content in CONTENTS.items()
    }
    assert list((node.base / "private").iterdir()) == []


def test_a_missing_object_is_eio_and_reads_once_it_is_there(node: Node) -> None:
    """
    Never ENOENT: programs would believe it.
    """
    with pytest.raises(OSError) as caught:
        node.read(b"two")
    assert caught.value.errno == errno.EIO
    node.put("supply", b"two")
    assert node.read(b"two") == CONTENTS[b"two"]


def test_many_openers_of_many_files(node: Node) -> None:
    """
    Eight workers, twenty-four openers.
    """
    for name in CONTENTS:
        node.put("supply", name)
    with ThreadPoolExecutor(24) as pool:
        read = list(pool.map(node.read, list(CONTENTS) * 8))
    assert read == list(CONTENTS.values()) * 8


@pytest.mark.parametrize("way", [Way.DIRECT, Way.NESTED])
def test_what_is_cached_outlives_the_daemon_and_the_cache_heals_the_rest(
    tmp_path: Path, way: Way
) -> None:
    """
    After kill -9: cached files read, a missing one fails, and opens once it is in `public/`.
    """
    with running(tmp_path, way) as node:
        node.put("supply", b"one")
        node.read(b"one")
        node.kill()
        assert node.read(b"one") == CONTENTS[b"one"]
        with pytest.raises(OSError) as caught:
            node.read(b"two")
        assert caught.value.errno == errno.ENOTCONN
        node.put("public", b"two")
        assert node.read(b"two") == CONTENTS[b"two"]


def test_a_fuse_tree_ends_with_its_daemon_in_an_error(tmp_path: Path) -> None:
    """
    Here FUSE serves everything: what comes after kill -9 is ENOTCONN, never a hang.
    """
    with running(tmp_path, Way.FUSE_TREE) as node:
        node.put("supply", b"one")
        node.read(b"one")
        node.kill()
        with pytest.raises(OSError) as caught:
            node.read(b"two")
        assert caught.value.errno == errno.ENOTCONN
