"""What the unpacker makes of odd but lawful layers, one case at a time."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from gear_plugin.layers import LayerStore

from .tars import reading, tar

pytestmark = pytest.mark.root

DIR: dict[str, Any] = {"type": b"5", "mode": 0o755}


def unpacked(store: LayerStore, root: Path, *entries: dict[str, Any], on: str = "") -> Path:
    """The folder that a layer of these entries becomes."""
    store.create("layer", on, writable=False)
    store.apply("layer", reading(tar(*entries)))
    return root / "containers/layer/upper"


@pytest.fixture
def upper(store: LayerStore) -> str:
    """A layer to stand on, so that whiteouts mean something."""
    store.create("base", "", writable=False)
    return "base"


def test_a_name_may_have_two_thousand_components(store: LayerStore, root: Path) -> None:
    """
    As long as a path can be (4,095 bytes), parents without entries included.
    """
    name = "d/" * 2046 + "f"
    layer = unpacked(store, root, {"name": name, "data": b"deep"})
    at = os.open(layer, os.O_RDONLY)
    try:
        # The layer's own path in front would be too long in one piece.
        for _ in range(2):
            inner = os.open("d/" * 1023, os.O_RDONLY, dir_fd=at)
            os.close(at)
            at = inner
        assert os.stat("f", dir_fd=at).st_size == 4
    finally:
        os.close(at)
    store.remove("layer")


def test_xattrs_that_the_filesystem_does_not_take_are_left_out(
    store: LayerStore, root: Path
) -> None:
    """
    Unknown namespaces, and `user.*` on a symlink: docker goes on without them.
    """
    headers = {"SCHILY.xattr.com.apple.provenance": "1", "SCHILY.xattr.user.a": "2"}
    layer = unpacked(
        store,
        root,
        {"name": "f", "pax_headers": headers},
        {"name": "l", "type": b"2", "linkname": "f", "pax_headers": headers},
    )
    assert os.listxattr(layer / "f") == ["user.a"]
    assert os.listxattr(layer / "l", follow_symlinks=False) == []


@pytest.mark.parametrize("order", [0, 1])
def test_a_directory_beside_its_own_whiteout_hides_what_is_below(
    store: LayerStore, root: Path, upper: str, order: int
) -> None:
    """
    Whichever comes first, the layer's own directory stays, opaque.
    """
    entries = [{"name": ".wh.d"}, {"name": "d", **DIR}][:: 1 if order == 0 else -1]
    layer = unpacked(store, root, *entries, {"name": "d/f", "data": b"new"}, on=upper)
    assert os.getxattr(layer / "d", "trusted.overlay.opaque") == b"y"
    assert os.listdir(layer / "d") == ["f"]


def test_a_whiteout_spares_a_file_of_its_own_layer(
    store: LayerStore, root: Path, upper: str
) -> None:
    """
    The file hides what is below it anyway.
    """
    layer = unpacked(store, root, {"name": "f", "data": b"new"}, {"name": ".wh.f"}, on=upper)
    assert (layer / "f").read_bytes() == b"new"


def test_a_whiteout_in_the_way_of_a_parent_becomes_an_opaque_directory(
    store: LayerStore, root: Path, upper: str
) -> None:
    """
    `.wh.d` and then `d/f`, with no entry for `d`.
    """
    layer = unpacked(store, root, {"name": ".wh.d"}, {"name": "d/f", "data": b"new"}, on=upper)
    assert (layer / "d/f").read_bytes() == b"new"
    assert os.getxattr(layer / "d", "trusted.overlay.opaque") == b"y"


def test_whiteouts_of_the_lowest_layer_are_nothing(store: LayerStore, root: Path) -> None:
    """
    In any of their forms: there is nothing below, and no folder is made for them.
    """
    layer = unpacked(
        store,
        root,
        {"name": "a/.wh.x"},
        {"name": "b/.wh..wh..opq"},
        {"name": "c", "type": b"3", "devmajor": 0, "devminor": 0},
        {"name": ".wh..wh.plnk", **DIR},
        {"name": ".wh..wh.plnk/1.2", "data": b"x"},
        {"name": "f"},
    )
    assert os.listdir(layer) == ["f"]


def test_hard_links_may_lead_to_files_of_aufs(store: LayerStore, root: Path) -> None:
    """
    Those in `.wh..wh.plnk`, and nowhere else; they are not in the layer themselves.
    """
    link: dict[str, Any] = {"type": b"1", "linkname": ".wh..wh.plnk/1.2"}
    layer = unpacked(
        store,
        root,
        {"name": ".", **DIR, "mtime": 1_000},
        {"name": ".wh..wh.plnk", **DIR},
        {"name": ".wh..wh.plnk/1.2", "data": b"shared"},
        {"name": ".wh..wh.plnk/3.4", "data": b"not used"},
        {"name": "a", **link},
        {"name": "d/b", **link},
    )
    assert sorted(os.listdir(layer)) == ["a", "d"]
    assert (layer / "a").read_bytes() == b"shared"
    assert (layer / "a").samefile(layer / "d/b")
    assert (layer / "a").stat().st_nlink == 2
    assert layer.stat().st_mtime == 1_000


def test_a_later_file_keeps_its_own_time(store: LayerStore, root: Path) -> None:
    """
    Directory times are set last, but not on what has taken a directory's place.
    """
    layer = unpacked(
        store,
        root,
        {"name": "d", **DIR, "mtime": 1_000},
        {"name": "e", **DIR, "mtime": 1_000},
        {"name": "d", "data": b"x", "mtime": 2_000},
        {"name": "e", "type": b"2", "linkname": "d", "mtime": 3_000},
    )
    assert (layer / "d").stat().st_mtime == 2_000
    assert (layer / "e").lstat().st_mtime == 3_000


def test_a_directory_in_a_loop_of_links_is_no_error(store: LayerStore, root: Path) -> None:
    """
    Its time cannot be set any more; the layer is as its entries say.
    """
    layer = unpacked(
        store,
        root,
        {"name": "d/e", **DIR, "mtime": 1_000},
        {"name": "d", "type": b"2", "linkname": "d"},
    )
    assert (layer / "d").readlink() == Path("d")


def test_an_owner_that_chown_does_not_take_is_root(store: LayerStore, root: Path) -> None:
    """
    As in the index that `gear build` makes of the same layer.
    """
    none = {"uid": 2**32 - 1, "gid": 2**32 - 1}
    layer = unpacked(store, root, {"name": "d", **DIR, "uid": 7}, {"name": "d", **DIR, **none})
    assert ((layer / "d").stat().st_uid, (layer / "d").stat().st_gid) == (0, 0)


def test_what_a_directory_replaces_is_removed_at_any_depth(store: LayerStore, root: Path) -> None:
    """
    A file over a tree of 1,500 levels.
    """
    layer = unpacked(store, root, {"name": "d/" * 1500, **DIR}, {"name": "d", "data": b"x"})
    assert stat.S_ISREG((layer / "d").lstat().st_mode)


def test_zeros_take_no_space(store: LayerStore, root: Path) -> None:
    """
    An image's sparse file of 64 MiB stays one; its size and its bytes are the same.
    """
    data = bytes(32 << 20) + b"middle" + bytes(32 << 20)
    path = unpacked(store, root, {"name": "f", "data": data}) / "f"
    assert path.read_bytes() == data
    assert path.stat().st_blocks * 512 < 4 << 20


def test_a_parent_that_was_replaced_is_looked_at_again(store: LayerStore, root: Path) -> None:
    """
    A directory may become a symlink between two of its files: what the path leads to then counts.
    """
    layer = unpacked(
        store,
        root,
        {"name": "d", **DIR},
        {"name": "e", **DIR},
        {"name": "d/one", "data": b"1"},
        {"name": "d", "type": b"2", "linkname": "e"},
        {"name": "d/two", "data": b"2"},
    )
    assert sorted(path.name for path in (layer / "e").iterdir()) == ["two"]
    assert os.readlink(layer / "d") == "e"
