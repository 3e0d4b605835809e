"""The promises of `changes` and `diff`, on what real overlay mounts wrote."""

from __future__ import annotations

import io
import os
import random
import shutil
import stat
import tarfile
from pathlib import Path

import pytest

from gear_plugin.layers import Change, ChangeKind, LayerStore
from gear_plugin.layers import changes as diffs
from gear_plugin.rootfs import Way

from .image_node import ImageNode
from .layer_damage import whole
from .tars import reading, tar

pytestmark = pytest.mark.root

NAMES = ("a", "b", "c", "d-e", "d")


def base_of(store: LayerStore, *entries: dict[str, object]) -> None:
    store.create("base", "", writable=False)
    store.apply("base", reading(tar(*entries)))
    store.create("top", "base", writable=True)


def shown(store: LayerStore, layer: str = "top", parent: str = "base") -> list[tuple[str, str]]:
    """The changes as `docker diff` prints them."""
    return [(change.kind.name[0], change.path.decode()) for change in store.changes(layer, parent)]


def members(store: LayerStore, layer: str, parent: str) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(b"".join(store.diff(layer, parent)))) as archive:
        return archive.getmembers()


def test_a_copied_file_that_is_the_same_is_no_change(store: LayerStore) -> None:
    """
    overlay2 compares the two trees, so opening a file for writing is none.
    """
    base_of(store, {"name": "f", "data": b"x", "mtime": 5})
    with (store.get("top") / "f").open("r+b"):
        pass
    assert (store.metadata("top")["UpperDir"] + "/f") and shown(store) == []
    (store.get("top") / "f").chmod(0o600)
    assert shown(store) == [("M", "/f")]


def test_what_a_replaced_directory_held_is_not_listed(store: LayerStore) -> None:
    """
    A directory that became a file is one change; a file that became a directory adds its content.
    """
    base_of(
        store,
        {"name": "dir", "type": b"5", "mode": 0o755},
        {"name": "dir/inner", "data": b"x"},
        {"name": "file", "data": b"y"},
    )
    top = store.get("top")
    shutil.rmtree(top / "dir")
    (top / "dir").write_text("now a file")
    (top / "file").unlink()
    (top / "file").mkdir()
    (top / "file/new").write_text("")
    assert shown(store) == [("M", "/dir"), ("M", "/file"), ("A", "/file/new")]


def test_a_directory_made_anew_loses_what_it_held(store: LayerStore) -> None:
    """
    overlayfs marks it opaque; what stays under the same name is compared.
    """
    base_of(
        store,
        {"name": "dir", "type": b"5", "mode": 0o755},
        {"name": "dir/gone", "data": b"x"},
        {"name": "dir/same", "data": b"y", "mtime": 7},
    )
    top = store.get("top")
    shutil.rmtree(top / "dir")
    (top / "dir").mkdir(mode=0o755)
    (top / "dir/same").write_bytes(b"y")
    (top / "dir/same").chmod(0o644)
    os.utime(top / "dir/same", (7, 7))
    assert shown(store) == [("M", "/dir"), ("D", "/dir/gone")]


def test_below_a_directory_made_anew_nothing_is_as_it_was(store: LayerStore) -> None:
    """
    overlayfs marks the topmost one alone.
    """
    base_of(
        store,
        {"name": "dir", "type": b"5", "mode": 0o755},
        {"name": "dir/deep", "type": b"5", "mode": 0o755},
        {"name": "dir/deep/low", "data": b"x"},
    )
    top = store.get("top")
    shutil.rmtree(top / "dir")
    (top / "dir/deep").mkdir(parents=True)
    (top / "dir").chmod(0o755)
    (top / "dir/deep").chmod(0o755)
    assert shown(store) == [("M", "/dir"), ("M", "/dir/deep"), ("D", "/dir/deep/low")]
    (marker,) = (one for one in members(store, "top", "base") if one.name == "dir/.wh..wh..opq")
    assert marker.mode == 0o755


def test_a_symlink_that_became_a_directory_is_not_followed(store: LayerStore) -> None:
    """
    What is behind it in the lower layer is somebody else's.
    """
    base_of(
        store,
        {"name": "real", "type": b"5", "mode": 0o755},
        {"name": "real/x", "data": b"x"},
        {"name": "link", "type": b"2", "linkname": "real"},
    )
    top = store.get("top")
    (top / "link").unlink()
    (top / "link").mkdir()
    (top / "link/x").write_text("new")
    assert shown(store) == [("M", "/link"), ("A", "/link/x")]


def test_a_new_directory_hides_nothing(store: LayerStore) -> None:
    """
    With `xino=on` overlayfs marks every one; docker's own drivers write no marker for these.
    """
    base_of(store, {"name": "old", "type": b"5", "mode": 0o755})
    top = store.get("top")
    (top / "old").rmdir()
    for name in ("old", "new"):
        (top / name).mkdir()
        os.chown(top / name, 5, 6)
    found = {one.name: one for one in members(store, "top", "base")}
    assert set(found) == {"old", "old/.wh..wh..opq", "new"}
    assert (found["old/.wh..wh..opq"].uid, found["old/.wh..wh..opq"].gid) == (5, 6)


def test_capabilities_and_devices_as_docker_writes_them(store: LayerStore) -> None:
    """
    Capabilities lose the user namespace they were set in; a link to a device names the device.
    """
    base_of(store)
    top = store.get("top")
    (top / "f").write_bytes(b"x")
    third = b"\1\0\0\3" + bytes(4) + b"\0\4\0\0" + bytes(8) + (1000).to_bytes(4, "little")
    os.setxattr(top / "f", "security.capability", third)
    os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (top / "null2").hardlink_to(top / "null")
    found = {one.name: one for one in members(store, "top", "base")}
    # tarfile shows bytes that are no text as lone surrogates
    shown_bytes = found["f"].pax_headers["SCHILY.xattr.security.capability"]
    assert len(shown_bytes) == 20 and shown_bytes[3] == "\2"
    link = found["null2"]
    assert link.islnk() and (link.devmajor, link.devminor) == (1, 3)


def test_very_deep_trees_are_walked(store: LayerStore) -> None:
    """
    A container makes them in a moment; no limit of Python's stack is met.
    """
    base_of(store)
    top = store.get("top")
    path = os.fsencode(top)
    for _ in range(1500):
        path += b"/d"
        os.mkdir(path)
    with open(path + b"/f", "w") as file:
        file.write("x")
    assert len(store.changes("top", "base")) == 1501
    assert len(members(store, "top", "base")) == 1501
    assert store.diff_size("top", "base") == 1
    store.remove("top")  # pytest's own removal recurses


def test_hard_links_carry_the_attributes_of_the_file(store: LayerStore) -> None:
    """
    A reader gives the shared file what the last header of its names says.
    """
    base_of(store, {"name": "d1", "type": b"5", "mode": 0o755})
    top = store.get("top")
    (top / "d2").mkdir()
    (top / "d1/one").write_bytes(b"12345")
    os.setxattr(top / "d1/one", "user.note", b"kept")
    (top / "d2/two").hardlink_to(top / "d1/one")
    found = {member.name: member for member in members(store, "top", "base")}
    assert found["d2/two"].islnk() and found["d2/two"].linkname == "d1/one"
    assert found["d2/two"].pax_headers == found["d1/one"].pax_headers
    assert store.diff_size("top", "base") == 5

    store.create("copy", "base", writable=False)
    store.apply("copy", reading(b"".join(store.diff("top", "base"))))
    copy = store.get("copy")
    assert os.getxattr(copy / "d2/two", "user.note") == b"kept"
    assert (copy / "d1/one").samefile(copy / "d2/two")


def test_the_stream_comes_in_few_pieces(store: LayerStore) -> None:
    """
    Every piece is one write of the HTTP server.
    """
    base_of(store)
    top = store.get("top")
    for number in range(600):
        (top / f"f{number}").write_bytes(b"x" * 100)
    pieces = list(store.diff("top", "base"))
    assert sum(map(len, pieces)) == 600 * 1024 + 1024
    assert len(pieces) <= 4


def test_what_vanishes_while_it_is_read_is_left_out(store: LayerStore) -> None:
    """
    `docker diff` and `docker commit --pause=false` look at containers that run.
    """
    base_of(store)
    top = store.get("top")
    for name in ("a", "b"):
        (top / name).write_bytes(bytes(2 << 20))
    (top / "c").write_text("x")
    stream = store.diff("top", "base")
    data = next(stream)
    (top / "b").unlink()
    data += b"".join(stream)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getnames() == ["a", "c"]


@pytest.mark.parametrize("seed", range(12))
def test_the_upper_directory_tells_what_a_walk_of_both_trees_finds(
    store: LayerStore, seed: int
) -> None:
    """
    The quick way and moby's way agree after any operations in a container.
    """
    chance = random.Random(seed)
    store.create("base", "", writable=False)
    _work(store.get("base"), chance, 60)
    store.create("top", "base", writable=True)
    top, below = store.get("top"), store.get("base")
    _work(top, chance, 40)
    assert store.changes("top", "base") == diffs.compare(below, top)

    store.create("copy", "base", writable=False)
    store.apply("copy", reading(b"".join(store.diff("top", "base"))))
    left = [one for one in diffs.compare(top, store.get("copy")) if not _is_socket(top, one)]
    assert left == []


def _is_socket(tree: Path, change: Change) -> bool:
    """A tar cannot hold sockets, and the directory of a missing one differs in nothing else."""
    path = tree / change.path.decode()[1:]
    return change.kind is not ChangeKind.ADD and (path.is_socket() or path.is_dir())


def _work(tree: Path, chance: random.Random, steps: int) -> None:
    """Do *steps* random things in *tree*; what makes no sense there is passed over."""

    def place() -> Path:
        return tree.joinpath(*(chance.choice(NAMES) for _ in range(chance.randint(1, 3))))

    def remove(path: Path) -> None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()

    def write(path: Path) -> None:
        if not path.is_fifo():  # it would wait for a reader
            path.write_bytes(b"x" * chance.randint(0, 9))

    def device(path: Path) -> None:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))

    actions = (
        write,
        lambda path: path.mkdir(),
        lambda path: path.mkdir(),
        remove,
        lambda path: path.rename(place()),
        lambda path: path.symlink_to("a"),
        lambda path: path.hardlink_to(place()),
        lambda path: path.chmod(chance.choice((0o600, 0o755, 0o4711))),
        lambda path: os.chown(path, chance.randint(0, 3), 7, follow_symlinks=False),
        os.mkfifo,
        device,
        lambda path: os.utime(path, (1, 1)),
    )
    for _ in range(steps):
        try:
            chance.choice(actions)(place())
        except OSError:
            continue


def test_the_time_of_a_block_device_or_socket_is_no_change(store: LayerStore) -> None:
    """
    moby takes both for directories here, as their type has the bit of S_IFDIR.
    """
    device = {"mode": 0o640, "devmajor": 1, "devminor": 3, "mtime": 5}
    base_of(
        store, {"name": "block", "type": b"4", **device}, {"name": "char", "type": b"3", **device}
    )
    top = store.get("top")
    for name in ("block", "char"):
        os.utime(top / name, (7, 7))
    assert shown(store) == [("M", "/char")]
    (top / "block").chmod(0o600)
    assert shown(store) == [("M", "/block"), ("M", "/char")]


@pytest.mark.parametrize("way", [Way.DIRECT, Way.NESTED])
def test_nothing_takes_the_index_out_of_a_gear_image(tmp_path: Path, way: Way) -> None:
    """
    `docker build --squash` compares the whole with the image, whose own mount shows `.gear`.
    """
    node = ImageNode(tmp_path, way)
    try:
        layers = node.layers
        layers.create("base", "", writable=False)
        layers.apply("base", reading(whole(node.erofs, node.manifest)))
        layers.create("middle", "base", writable=False)
        layers.apply("middle", reading(tar({"name": "new", "data": b"x"})))
        layers.create("top", "middle", writable=True)
        (layers.get("top") / "srv/note").unlink()
        changes = shown(layers, "top", "base")
        assert changes == [("A", "/new"), ("M", "/srv"), ("D", "/srv/note")]
        assert [member.name for member in members(layers, "top", "base")] == [
            *("new", "srv", "srv/.wh.note"),
        ]
        (layers.get("top") / ".gear").mkdir()
        (layers.get("top") / ".gear/mine").write_bytes(b"m")
        assert ("A", "/.gear/mine") in shown(layers, "top", "base")
    finally:
        node.close()
