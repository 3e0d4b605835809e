"""A store that lies, and one that does not answer."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zstandard

from gear_plugin.rootfs import is_mount, unmount
from tests.faults import hanging_fs
from tests.faults.conftest import MakeNode, contents
from tests.faults.node import Node
from tests.waiting import eventually

pytestmark = pytest.mark.root

MIB = 1 << 20


def bomb(size_bytes: int) -> bytes:
    """A zstd frame of zeros, 4 bytes for each 128 KiB (RFC 8878, RLE blocks)."""
    block = 128 * 1024
    head = (block << 3 | 1 << 1).to_bytes(3, "little")
    blocks = size_bytes // block - 1
    last = (block << 3 | 1 << 1 | 1).to_bytes(3, "little")
    frame = b"\x28\xb5\x2f\xfd" + b"\0\x38" + (head + b"\0") * blocks + last + b"\0"
    assert len(zstandard.ZstdDecompressor().stream_reader(frame).read(1000)) == 1000
    return frame


def fails(path: Path) -> int:
    """The errno with which reading fails; 0: it did not."""
    try:
        path.read_bytes()
    except OSError as error:
        return error.errno or -1
    return 0


class Peak:
    """The most bytes that were ever below a folder while a block ran."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.bytes = folder, 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            total = 0
            for path in self._folder.iterdir():
                try:
                    total += path.stat().st_size
                except FileNotFoundError:
                    continue
            self.bytes = max(self.bytes, total)


@pytest.fixture
def node(make_node: MakeNode) -> Node:
    node = make_node(contents(8))
    node.start()
    node.pull()
    return node


def test_wrong_bytes_are_eio_and_named_in_the_log(node: Node) -> None:
    """
    Changed, cut off, not a zstd frame, a frame cut off, content of another
    object, too long: never shown, said which object and where; once the store
    is right, the same container reads it.
    """
    tree = node.container()
    whole = {name: node.stored(name).read_bytes() for name in node.files}
    packed = zstandard.ZstdCompressor().compress(node.files["f003"])
    node.replace("f000", node.files["f000"][:-1] + b"!")
    node.replace("f001", node.files["f001"][:1000])
    node.replace("f002", b"no frame at all", suffix=".zst")
    node.replace("f003", packed[:-700], suffix=".zst")
    node.replace("f004", node.files["f005"])
    node.replace("f005", b"")
    node.replace("f006", node.files["f006"] + b"more")
    bad = sorted(node.files)[:7]
    assert {name: fails(tree / name) for name in bad} == dict.fromkeys(bad, errno.EIO)
    assert (tree / "f007").read_bytes() == node.files["f007"]
    for name in bad:
        digest = node.stored(name).relative_to(node.store / "objects")
        hexadecimal = str(digest).replace("/", "").removesuffix(".zst")
        assert node.said(f"WARNING.*wrong bytes from store {node.store}.*{hexadecimal}"), name
    assert os.listdir(node.root / "cache-incoming") == []
    assert len(list((node.root / "public").glob("*/*"))) == 1
    for name in bad:
        node.replace(name, node.files[name] if whole[name] else b"")
        assert (tree / name).read_bytes() == node.files[name]


def test_a_small_file_that_unpacks_to_100_gb_is_stopped(node: Node) -> None:
    """
    At the size that the index says, not when the disk is full.
    """
    tree = node.container()
    node.replace("f000", bomb(100 << 30), suffix=".zst")
    with Peak(node.root / "cache-incoming") as peak:
        assert fails(tree / "f000") == errno.EIO
    assert peak.bytes <= len(node.files["f000"])
    assert node.said("wrong bytes.*goes on after its 20000 bytes")
    assert (tree / "f001").read_bytes() == node.files["f001"]


@pytest.fixture
def share(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A share that hangs while a file exists: its mount point, and that file."""
    backing, point, hang = tmp_path / "store", tmp_path / "share", tmp_path / "hang"
    backing.mkdir()
    point.mkdir()
    process = subprocess.Popen(
        [sys.executable, hanging_fs.__file__, str(backing), str(point), str(hang)],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    yield point, hang
    process.kill()
    process.wait()
    process.stdout.close()
    if is_mount(point):
        unmount(point, lazy=True)


def test_a_store_that_hangs_hangs_nobody(make_node: MakeNode, share: tuple[Path, Path]) -> None:
    """
    Like NFS whose server went away: each open ends in EIO within its limits,
    whatever is here goes on, a container can be made and unmade, and when the
    store answers again, so does everything.
    """
    point, hang = share
    node = make_node(contents(60), fetch_stall_s=1, fetch_timeout_s=3)
    node.settings(store=point)
    node.start()
    node.pull()
    tree = node.container()
    here = sorted(node.files)[:10]
    missing = sorted(node.files)[10:50]
    for name in here:
        (tree / name).read_bytes()
    hang.touch()
    began = time.monotonic()
    with ThreadPoolExecutor(len(missing)) as pool:
        results = pool.map(fails, [tree / name for name in missing])
        for name in here:
            assert (tree / name).read_bytes() == node.files[name]
        assert len(os.listdir(tree)) == 60
        node.call("CreateReadWrite", ID="second", Parent="index")
        second = Path(node.call("Get", ID="second", MountLabel="")["Dir"])
        assert (second / here[0]).read_bytes() == node.files[here[0]]
        node.call("Put", ID="second")
        node.call("Remove", ID="second")
        assert set(results) == {errno.EIO}
    # Forty opens at once, 1 s of stall each at most some after another.
    assert time.monotonic() - began < 60
    assert node.said("WARNING.*delivered nothing of sha256:.* for 1 s")
    hang.unlink()
    eventually(lambda: not any(fails(tree / name) for name in missing), "everything reads")
    for name, content in node.files.items():
        assert (tree / name).read_bytes() == content


def test_a_client_whose_reads_hang_can_be_stopped(
    make_node: MakeNode, share: tuple[Path, Path]
) -> None:
    """
    The node ends within docker's 10 s although threads of it wait for the store.
    """
    point, hang = share
    node = make_node(contents(4), fetch_stall_s=1, fetch_timeout_s=3)
    node.settings(store=point)
    node.start()
    node.pull()
    tree = node.container()
    hang.touch()
    assert fails(tree / "f000") == errno.EIO
    node.stop()
    assert fails(tree / "f001") in (errno.EIO, errno.ENOTCONN)
