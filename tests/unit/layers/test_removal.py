"""Removing trees that a recursive removal cannot."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from gear_plugin.confined.removal import remove_tree
from gear_plugin.layers import LayerStore

from .conftest import make_store
from .tars import reading, tar


def nest(folder: Path, depth: int) -> None:
    """Make folders inside one another, as `mkdir x; cd x` does; each with a file beside."""
    handle = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=handle)
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=handle))
        inner = os.open("d", os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = inner
    os.close(handle)


def test_everything_goes(tmp_path: Path) -> None:
    """
    Files, symlinks (not their targets), and directories with names of any kind.
    """
    outside = tmp_path / "outside"
    outside.mkdir()
    top = tmp_path / "top"
    (top / "a/b/c").mkdir(parents=True)
    (top / ".gone-0").mkdir()
    (top / "a/link").symlink_to(outside)
    (top / "a/b/.gone-0").write_bytes(b"")
    os.mkfifo(top / "a/fifo")
    os.mkdir(os.fsencode(top) + b"/\xff\xfe")
    remove_tree(top)
    assert os.listdir(tmp_path) == ["outside"]
    with pytest.raises(FileNotFoundError):
        remove_tree(top)


def test_depth_costs_neither_stack_nor_descriptors(tmp_path: Path) -> None:
    """
    1,500 levels (Python recurses 1,000), with 20 descriptors to spare.
    """
    (tmp_path / "top").mkdir()
    nest(tmp_path / "top", 1500)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, hard))
    try:
        remove_tree(tmp_path / "top")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert os.listdir(tmp_path) == []


@pytest.mark.root
def test_a_container_cannot_make_itself_unremovable(store: LayerStore, root: Path) -> None:
    """
    Whatever it nests in its own layer, docker can remove it.
    """
    store.create("base", "", writable=False)
    store.create("container", "base", writable=True)
    nest(store.get("container"), 1500)
    store.put("container")
    store.remove("container")
    assert os.listdir(root / "containers") == ["base"]


@pytest.mark.root
def test_a_half_made_layer_of_any_depth_goes_at_the_start(store: LayerStore, root: Path) -> None:
    """
    A tar can nest deeper than any name by going through its own symlinks; if
    the node could not clean up, it could not start.
    """
    store.create("evil", "", writable=False)
    deep = "/".join(["d"] * 600)
    store.apply(
        "evil",
        reading(
            tar(
                {"name": deep, "type": b"5", "mode": 0o755},
                {"name": "l", "type": b"2", "linkname": deep},
                {"name": "l/" + deep, "type": b"5", "mode": 0o755},
                {"name": "m", "type": b"2", "linkname": "l/" + deep},
                {"name": "m/" + deep, "type": b"5", "mode": 0o755},
            )
        ),
    )
    os.rename(root / "containers/evil/upper", root / "containers/evil/applying")
    assert not make_store(root).exists("evil")
    assert os.listdir(root / "containers") == []
