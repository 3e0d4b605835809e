"""
The cases of moby's daemon/graphdriver/graphtest (v20.10.24), asked over the socket.

What each asserts is written anew from what a storage driver has to do; the
quota case is left out, as Gear refuses `--storage-opt` (docs/decisions/0005).
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.conftest import Layers
from tests.conformance.driver import Driver

pytestmark = pytest.mark.root

MODIFIED, ADDED, DELETED = 0, 1, 2
DEEPEST = 125
"""docker's limit of layers in an image."""


def fill(tree: Path, count: int, seed: int) -> dict[str, bytes]:
    """Write *count* files of 64 random bytes each, ten directories of them."""
    chance = random.Random(seed)
    written = {f"d{n % 10}/file-{n}": chance.randbytes(64) for n in range(count)}
    for name, data in written.items():
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_bytes(data)
    return written


def files(tree: Path) -> dict[str, bytes]:
    """Every file of *tree* with its content."""
    found = (path for path in tree.rglob("*") if path.is_file())
    return {str(path.relative_to(tree)): path.read_bytes() for path in found}


def check_base(tree: Path) -> None:
    """What `make_base` made."""
    assert sorted(os.listdir(tree)) == ["a file", "a subdir"]
    subdir, file = (tree / "a subdir").stat(), (tree / "a file").stat()
    assert (stat.S_IMODE(subdir.st_mode), subdir.st_uid, subdir.st_gid) == (0o1705, 1, 2)
    assert (stat.S_IMODE(file.st_mode), file.st_uid, file.st_gid) == (0o4222, 0, 0)
    assert (tree / "a file").read_bytes() == b"Some data"


def make_base(driver: Driver, layers: Layers) -> str:
    """A layer with a sticky directory of another owner and a setuid file."""
    base = layers(writable=True)
    with driver.mounted(base) as tree:
        (tree / "a subdir").mkdir()
        os.chown(tree / "a subdir", 1, 2)
        (tree / "a subdir").chmod(0o1705)
        (tree / "a file").write_bytes(b"Some data")
        (tree / "a file").chmod(0o4222)
    return base


@pytest.mark.parametrize("layer", ["empty", "Base", "Snap", "z" * 25, "0123456789abcdef" * 4])
def test_create_empty(driver: Driver, layer: str) -> None:
    driver.create(layer)
    try:
        assert driver.exists(layer)
        with driver.mounted(layer) as tree:
            status = tree.stat()
            assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o755, 0, 0)
            assert os.listdir(tree) == []
    finally:
        driver.remove(layer)
    assert not driver.exists(layer)


def test_create_base_and_snapshot(driver: Driver, layers: Layers) -> None:
    base = make_base(driver, layers)
    with driver.mounted(base) as tree:
        check_base(tree)
    snapshot = layers(base)
    with driver.mounted(snapshot) as tree:
        check_base(tree)


@pytest.mark.parametrize("count", [3, DEEPEST])
def test_deep_layer_read(driver: Driver, layers: Layers, count: int) -> None:
    """
    Each layer is written through Get and becomes the next one's parent.
    """
    written = {}
    layer = ""
    for number in range(count):
        layer = layers(layer)
        with driver.mounted(layer) as tree:
            (tree / f"layer-{number}").write_bytes(b"%d" % number)
            (tree / "top").write_bytes(b"%d" % number)
        written[f"layer-{number}"] = b"%d" % number
    top = layers(layer, writable=True)
    with driver.mounted(top) as tree:
        assert files(tree) == written | {"top": b"%d" % (count - 1)}


@pytest.mark.parametrize("count", [10, 100, 1000])
def test_diff_apply(driver: Driver, layers: Layers, count: int) -> None:
    """
    A layer's tar, applied to another child of the same parent, makes the same tree.
    """
    base = layers()
    with driver.mounted(base) as tree:
        fill(tree, count, 3)
        (tree / "var/lib").mkdir(parents=True)
        (tree / "var/lib/state").write_bytes(b"state")
        (tree / "deleted").write_bytes(b"soon")
    upper = layers(base)
    with driver.mounted(upper) as tree:
        fill(tree, count, 6)
        (tree / "deleted").unlink()
        (tree / "var/lib/state").unlink()
        (tree / "var/lib").rmdir()
        expected = files(tree)
        assert not (tree / "var/lib").exists()
    size = driver.diff_size(upper)
    assert size == count * 64

    copy = layers(base)
    assert driver.apply(copy, base, driver.stream(upper, base)) == size
    with driver.mounted(copy) as tree:
        assert files(tree) == expected
        assert not (tree / "var/lib").exists() and not (tree / "deleted").exists()
    assert driver.diff(copy, base) == driver.diff(upper, base)


def test_changes(driver: Driver, layers: Layers) -> None:
    """
    Exactly what was done, and the directories it was done in.
    """
    base = layers()
    with driver.mounted(base) as tree:
        fill(tree, 20, 3)
        (tree / "same").mkdir()
    upper = layers(base)
    assert driver.changes(upper, base) == {}
    with driver.mounted(upper) as tree:
        (tree / "d0/file-0").write_bytes(b"other")
        (tree / "d1/file-1").unlink()
        (tree / "d2/new").write_bytes(b"new")
        (tree / "d3/file-3").chmod(0o600)
        (tree / "newdir").mkdir()
        (tree / "newdir/f").write_bytes(b"")
    assert driver.changes(upper, base) == {
        "/d0": MODIFIED,
        "/d0/file-0": MODIFIED,
        "/d1": MODIFIED,
        "/d1/file-1": DELETED,
        "/d2": MODIFIED,
        "/d2/new": ADDED,
        "/d3": MODIFIED,
        "/d3/file-3": MODIFIED,
        "/newdir": ADDED,
        "/newdir/f": ADDED,
    }
    everything = driver.changes(base)
    assert set(everything.values()) == {ADDED}
    assert {"/d0", "/d0/file-0", "/same"} <= set(everything)


def test_one_mount_for_all_users(driver: Driver, layers: Layers) -> None:
    """
    The path is the same each time; the last Put unmounts, further ones do nothing.
    """
    base = layers()
    with driver.mounted(base) as tree:
        (tree / "f").write_bytes(b"x")
    top = layers(base, writable=True)
    paths = {driver.get(top) for _ in range(5)}
    assert len(paths) == 1
    path = paths.pop()
    for _ in range(4):
        driver.put(top)
        assert (path / "f").exists()
    driver.put(top)
    assert not (path / "f").exists()
    driver.put(top)
    driver.put("never-made")
    with driver.mounted(top) as again:
        assert again == path


def test_children_of_one_parent_do_not_see_each_other(driver: Driver, layers: Layers) -> None:
    base = make_base(driver, layers)
    one, other = layers(base, writable=True), layers(base, writable=True)
    with driver.mounted(one) as first, driver.mounted(other) as second:
        (first / "one").write_bytes(b"1")
        (first / "a file").unlink()
        check_base(second)
    with driver.mounted(base) as tree:
        check_base(tree)


def test_remove_of_what_is_mounted(driver: Driver, layers: Layers, folder: Path) -> None:
    """
    docker removes layers that it still holds; an unknown one is no error.
    """
    layer = layers(make_base(driver, layers), writable=True)
    path = driver.get(layer)
    driver.remove(layer)
    assert not path.exists() and not (folder / layer).exists()
    driver.remove(layer)
    driver.remove("never-made")


def test_diff_against_any_ancestor(driver: Driver, layers: Layers) -> None:
    """
    Parent may be any ancestor, or absent: then it is the whole tree.
    """
    chain = [""]
    for number in range(3):
        chain.append(layers(chain[-1]))
        with driver.mounted(chain[-1]) as tree:
            (tree / f"f{number}").write_bytes(b"x" * (number + 1))
            if number:
                (tree / f"f{number - 1}").unlink()
    top = chain[-1]
    assert driver.changes(top, chain[2]) == {"/f1": DELETED, "/f2": ADDED}
    assert driver.changes(top, chain[1]) == {"/f0": DELETED, "/f2": ADDED}
    assert driver.changes(top) == {"/f2": ADDED}
    assert driver.diff_size(top, chain[1]) == driver.diff_size(top) == 3
    for parent in chain[:-1]:
        copy = layers(parent)
        driver.apply(copy, parent, driver.stream(top, parent))
        with driver.mounted(copy) as tree:
            assert files(tree) == {"f2": b"xxx"}


def test_metadata_and_status_are_strings(driver: Driver, layers: Layers) -> None:
    """
    Any other type makes docker drop the whole section without a word.
    """
    layer = layers(make_base(driver, layers), writable=True)
    for parts in (driver.call("GetMetadata", ID=layer)["Metadata"].items(),):
        assert parts and all(isinstance(word, str) for pair in parts for word in pair)
    status = driver.call("Status")["Status"]
    assert status and all(len(pair) == 2 for pair in status)
    assert all(isinstance(word, str) for pair in status for word in pair)
    assert driver.call("Capabilities") == {"Capabilities": {"ReproducesExactDiffs": False}}


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def test_a_commit_streams_a_diff_into_an_apply(driver: Driver, layers: Layers) -> None:
    """
    docker holds the Diff open while it creates and fills the new layer from it.
    """
    base = layers()
    with driver.mounted(base) as tree:
        (tree / "f").write_bytes(b"")
    top = layers(base, writable=True)
    with driver.mounted(top) as tree:
        (tree / "large").write_bytes(random.Random(1).randbytes(20 << 20))
        committed = layers(base)
        assert driver.apply(committed, base, driver.stream(top, base)) == 20 << 20
    assert driver.diff(committed, base) == driver.diff(top, base)
