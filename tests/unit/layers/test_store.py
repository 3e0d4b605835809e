"""The promises of LayerStore for ordinary layers, on real overlay mounts."""

from __future__ import annotations

import os
import stat
import tarfile
import threading
import time
from pathlib import Path

import pytest

from gear_plugin.confined.removal import remove_tree
from gear_plugin.errors import (
    ArchiveMalformed,
    BadName,
    LayerExists,
    LayerNotFound,
    Unsupported,
)
from gear_plugin.layers import Change, ChangeKind, LayerStore
from gear_plugin.layers.repair import half_made
from gear_plugin.rootfs import is_mount

from .conftest import make_store
from .tars import names, reading, tar

pytestmark = pytest.mark.root

BASE = (
    {"name": "etc", "type": b"5", "mode": 0o755},
    {"name": "etc/passwd", "data": b"root\n"},
    {"name": "etc/hosts", "data": b"localhost\n"},
    {"name": "old", "type": b"5", "mode": 0o755},
    {"name": "old/file", "data": b"old"},
)


@pytest.fixture
def base(store: LayerStore) -> str:
    """A layer without parent, with a few files."""
    store.create("base", "", writable=False)
    store.apply("base", reading(tar(*(dict(entry) for entry in BASE))))
    return "base"


@pytest.fixture
def top(store: LayerStore, base: str) -> str:
    """A writable layer on `base`."""
    store.create("top", base, writable=True)
    return "top"


def tar_of(store: LayerStore, layer: str, parent: str) -> bytes:
    return b"".join(store.diff(layer, parent))


def test_size_counts_the_bytes_of_regular_files(store: LayerStore) -> None:
    """
    docker records it as the layer's size; directories do not count.
    """
    store.create("base", "", writable=False)
    data = tar(*(dict(entry) for entry in BASE))
    assert store.apply("base", reading(data)) == len(b"root\nlocalhost\nold")


def test_a_layer_without_parent_is_its_own_tree(store: LayerStore, base: str) -> None:
    """
    No mount is needed, and what is written there is the layer.
    """
    tree = store.get(base)
    assert not is_mount(tree)
    assert (tree / "etc/passwd").read_bytes() == b"root\n"


def test_get_mounts_once_and_the_last_put_unmounts(store: LayerStore, top: str) -> None:
    """
    Every Get gives the same path; the mount goes with its last user.
    """
    first, second = store.get(top), store.get(top)
    assert first == second
    assert is_mount(first)
    store.put(top)
    assert is_mount(first)
    store.put(top)
    assert not is_mount(first)
    store.put(top)


def test_a_mount_that_a_new_process_finds_counts_as_one_user(
    store: LayerStore, top: str, root: Path
) -> None:
    """
    dockerd's Get and Put after a restart must not unmount a running container.
    """
    tree = store.get(top)
    after_restart = make_store(root)
    assert after_restart.get(top) == tree
    after_restart.put(top)
    assert is_mount(tree)
    after_restart.put(top)
    assert not is_mount(tree)


def test_writes_stay_in_the_upper_layer(store: LayerStore, base: str, top: str) -> None:
    """
    Two layers on one parent do not see each other.
    """
    (store.get(top) / "etc/passwd").write_bytes(b"changed")
    store.create("other", base, writable=True)
    assert (store.get("other") / "etc/passwd").read_bytes() == b"root\n"
    store.put("other")


def test_chmod_copies_the_whole_file_up(store: LayerStore, top: str, root: Path) -> None:
    """
    A commit reads the upper directory, so a file there is never data-less.
    """
    (store.get(top) / "etc/passwd").chmod(0o600)
    assert (root / "containers/top/upper/etc/passwd").read_bytes() == b"root\n"


def test_files_and_directories_are_on_one_device(store: LayerStore, top: str) -> None:
    """
    `tar --one-file-system` and `du -x` compare st_dev.
    """
    tree = store.get(top)
    assert (tree / "etc/passwd").stat().st_dev == tree.stat().st_dev


def test_diff_shows_additions_deletions_and_replaced_directories(
    store: LayerStore, base: str, top: str
) -> None:
    """
    The tar of a container's changes is what the OCI layer format says.
    """
    tree = store.get(top)
    (tree / "new").write_bytes(b"n")
    (tree / "etc/hosts").unlink()
    (tree / "old/file").unlink()
    (tree / "old").rmdir()
    (tree / "old").mkdir()
    (tree / "old/other").write_bytes(b"o")
    found = names(tar_of(store, top, base))
    assert found == ["etc", "etc/.wh.hosts", "new", "old", "old/.wh..wh..opq", "old/other"]


def test_diff_is_deterministic_and_applies_to_the_same_tree(
    store: LayerStore, base: str, top: str
) -> None:
    """
    What commit saves is what the container held.
    """
    tree = store.get(top)
    (tree / "etc/hosts").unlink()
    (tree / "etc/link").symlink_to("passwd")
    os.link(tree / "etc/passwd", tree / "etc/hard")
    data = tar_of(store, top, base)
    assert data == tar_of(store, top, base)
    store.create("copy", base, writable=False)
    store.apply("copy", reading(data))
    store.create("look", "copy", writable=True)
    look = store.get("look")
    assert sorted(path.name for path in (look / "etc").iterdir()) == ["hard", "link", "passwd"]
    assert (look / "etc/hard").stat().st_ino == (look / "etc/passwd").stat().st_ino
    assert store.changes("look", base) == [
        Change(b"/etc", ChangeKind.MODIFY),
        Change(b"/etc/hard", ChangeKind.ADD),
        Change(b"/etc/hosts", ChangeKind.DELETE),
        Change(b"/etc/link", ChangeKind.ADD),
    ]


def test_changes_name_the_directory_too(store: LayerStore, base: str, top: str) -> None:
    """
    A directory in which something changed counts as modified, as with overlay2.
    """
    tree = store.get(top)
    (tree / "etc/passwd").write_bytes(b"x")
    (tree / "etc/hosts").unlink()
    (tree / "new").mkdir()
    assert store.changes(top, base) == [
        Change(b"/etc", ChangeKind.MODIFY),
        Change(b"/etc/hosts", ChangeKind.DELETE),
        Change(b"/etc/passwd", ChangeKind.MODIFY),
        Change(b"/new", ChangeKind.ADD),
    ]
    assert store.diff_size(top, base) == 1


def test_whiteouts_hide_what_is_below(store: LayerStore, base: str) -> None:
    """
    `.wh.X` and opaque directories in a pulled layer.
    """
    store.create("upper", base, writable=False)
    layer = tar(
        {"name": "etc/.wh.hosts"},
        {"name": "old", "type": b"5", "mode": 0o700},
        {"name": "old/.wh..wh..opq"},
        {"name": "old/mine", "data": b"m"},
    )
    store.apply("upper", reading(layer))
    store.create("look", "upper", writable=True)
    look = store.get("look")
    assert not (look / "etc/hosts").exists()
    assert [path.name for path in (look / "old").iterdir()] == ["mine"]
    assert stat.S_IMODE((look / "old").stat().st_mode) == 0o700


def test_overlay_attributes_of_a_tar_are_not_taken(store: LayerStore, root: Path) -> None:
    """
    A redirect in a layer could point at another image's objects.
    """
    store.create("evil", "", writable=False)
    headers = {"SCHILY.xattr.trusted.overlay.redirect": "/abc/def", "SCHILY.xattr.user.ok": "1"}
    store.apply("evil", reading(tar({"name": "f", "data": b"x", "pax_headers": headers})))
    assert os.listxattr(root / "containers/evil/upper/f") == ["user.ok"]


@pytest.mark.parametrize("target", ["/etc", "../../../../etc", "etc/../../../etc"])
def test_no_symlink_leads_out_of_the_layer(store: LayerStore, root: Path, target: str) -> None:
    """
    A member below a symlink lands inside the layer or fails; the host is not touched.
    """
    store.create("evil", "", writable=False)
    layer = tar(
        {"name": "etc", "type": b"5", "mode": 0o755},
        {"name": "way", "type": b"2", "linkname": target},
        {"name": "way/gear-escape", "data": b"x"},
    )
    store.apply("evil", reading(layer))
    assert not Path("/etc/gear-escape").exists()
    assert (root / "containers/evil/upper/etc/gear-escape").exists()


@pytest.mark.parametrize(
    "broken",
    [b"", b"\0" * 100, tar({"name": "f", "data": b"x" * 5000})[:2000], b"no tar" * 200],
    ids=["empty", "short", "cut off", "garbage"],
)
def test_a_broken_stream_fails_and_leaves_the_layer_as_it_was(
    store: LayerStore, base: str, root: Path, broken: bytes
) -> None:
    """
    docker repeats calls with empty or cut-off bodies; they are never a success.
    """
    with pytest.raises(ArchiveMalformed):
        store.apply(base, reading(broken))
    assert (store.get(base) / "etc/passwd").exists()
    assert not (root / "containers/base/applying").exists()


def test_the_stream_is_read_to_its_end_even_after_a_failure(store: LayerStore) -> None:
    """
    dockerd hashes what is read and would take an early answer for the end.
    """
    store.create("evil", "", writable=False)
    data = tar({"name": "../x", "data": b"x"}) + bytes(3 << 20)
    left = [data]

    def read(size: int) -> bytes:
        piece, left[0] = left[0][:size], left[0][size:]
        return piece

    with pytest.raises((ArchiveMalformed, Unsupported)):
        store.apply("evil", read)
    assert left == [b""]


def test_who_has_the_layer_mounted_sees_what_is_applied(store: LayerStore, top: str) -> None:
    """
    And what is written there afterwards is in the layer; it stays held as often.
    """
    tree = store.get(top)
    store.get(top)
    (tree / "before").touch()
    store.apply(top, reading(tar({"name": "new", "data": b"new"})))
    assert sorted(os.listdir(tree)) == ["etc", "new", "old"]
    (tree / "after").touch()
    assert names(tar_of(store, top, "base")) == ["after", "new"]
    store.put(top)
    assert is_mount(tree)
    store.put(top)
    assert not is_mount(tree)


def test_times_before_1970_become_1970(store: LayerStore, root: Path) -> None:
    """
    As docker's own drivers do it, so that a file is the same on both; links keep theirs.
    """
    store.create("old", "", writable=False)
    old = {"pax_headers": {"mtime": "-100.5"}}
    link = {"name": "l", "type": tarfile.SYMTYPE, "linkname": "f"}
    store.apply("old", reading(tar({"name": "f", **old}, {**link, **old})))
    upper = root / "containers/old/upper"
    assert (upper / "f").stat().st_mtime_ns == 0
    assert (upper / "l").lstat().st_mtime_ns == -100_500_000_000


def test_create_refuses_what_exists_and_what_stands_on_nothing(
    store: LayerStore, base: str
) -> None:
    """
    docker shows these messages to the user.
    """
    with pytest.raises(LayerExists):
        store.create(base, "", writable=False)
    with pytest.raises(LayerNotFound):
        store.create("new", "missing", writable=False)
    with pytest.raises(BadName):
        store.create("../new", "", writable=False)


def test_a_refused_create_leaves_the_parent_writable(
    store: LayerStore, base: str, top: str
) -> None:
    """
    As nothing came to stand on it.
    """
    with pytest.raises(LayerExists):
        store.create(base, top, writable=False)
    (store.get(top) / "new").touch()


def test_remove_takes_a_mounted_layer_and_an_unknown_one(
    store: LayerStore, top: str, root: Path
) -> None:
    """
    BuildKit removes layers without Put; docker removes what is gone already.
    """
    tree = store.get(top)
    store.remove(top)
    assert not is_mount(tree)
    assert not (root / "containers/top").exists()
    store.remove(top)
    assert not store.exists(top)
    with pytest.raises(LayerNotFound):
        store.get(top)


@pytest.mark.parametrize("made_anew", [False, True])
def test_a_get_that_waited_for_a_removal_finds_nothing_of_it(
    store: LayerStore, base: str, top: str, made_anew: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Neither its count nor its mount; a layer made anew under that name is mounted.
    """
    store.get(top)
    waiting = threading.Event()
    found: list[object] = []

    def get() -> None:
        waiting.set()
        try:
            found.append(is_mount(store.get(top)))
        except LayerNotFound:
            found.append(None)

    def half_made_late(folder: Path) -> Path:
        thread.start()
        assert waiting.wait(10)
        time.sleep(0.2)
        return half_made(folder)

    def remove(path: Path) -> None:
        remove_tree(path)
        if made_anew:
            store.create(top, base, writable=True)

    thread = threading.Thread(target=get)
    monkeypatch.setattr("gear_plugin.layers.store.half_made", half_made_late)
    monkeypatch.setattr("gear_plugin.layers.store.remove_tree", remove)
    store.remove(top)
    thread.join(10)
    assert found == [True if made_anew else None]


def test_a_layer_with_children_is_mounted_read_only(store: LayerStore, top: str) -> None:
    """
    What stands on a layer must not change under it.
    """
    store.create("child", top, writable=True)
    tree = store.get(top)
    with pytest.raises(OSError, match="Read-only"):
        (tree / "x").write_bytes(b"")


def test_half_made_layers_go_at_the_next_start(store: LayerStore, root: Path) -> None:
    """
    A crash in Create or ApplyDiff leaves nothing that docker does not know of.
    """
    store.create("half", "", writable=False)
    (root / "containers/half/applying").mkdir()
    (root / "containers/.tmp-xyz/upper").mkdir(parents=True)
    after_restart = make_store(root)
    assert not after_restart.exists("half")
    assert not (root / "containers/.tmp-xyz").exists()


def test_cleanup_unmounts_everything(store: LayerStore, top: str) -> None:
    """
    The daemon's last call.
    """
    tree = store.get(top)
    store.cleanup()
    assert not is_mount(tree)
