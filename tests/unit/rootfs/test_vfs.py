"""What the lazy tree means, without a mount."""

from __future__ import annotations

import os
import stat

import pytest

from gear_plugin.digest import Digest
from gear_plugin.errors import SourceUnavailable
from gear_plugin.rootfs import ImageTrees, LazyTree, Lookup

IMAGE = "ab" * 32
OBJECT, FOREIGN = Digest.of(b"one"), Digest.of(b"two")


class Fetches:
    """Remembers what was asked for; fails while `broken`."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Digest]] = []
        self.broken = False

    def __call__(self, image: str, digest: Digest) -> None:
        self.asked.append((image, digest))
        if self.broken:
            raise SourceUnavailable("the store is down")


@pytest.fixture
def fetches() -> Fetches:
    return Fetches()


@pytest.fixture
def tree(fetches: Fetches) -> LazyTree:
    trees = ImageTrees(lambda image: None, lambda image, digest: os.open("/dev/null", os.O_RDONLY))
    return LazyTree(lambda image: {OBJECT} if image == IMAGE else None, fetches, trees)


def walk(tree: LazyTree, path: str) -> object:
    """Look every component of *path* up, as the kernel does."""
    inode = 1
    found: object = None
    for name in path.split("/"):
        found = tree.lookup(inode, name.encode())
        if not isinstance(found, Lookup.Inode):
            return found
        inode = found.inode
    return found


def test_looking_an_object_up_fetches_it_and_finds_nothing(
    tree: LazyTree, fetches: Fetches
) -> None:
    """
    overlayfs must go on to the private folder, where the object now is.
    """
    found = walk(tree, f"objects/{IMAGE}/{OBJECT.shard_path}")
    assert isinstance(found, Lookup.Absent)
    assert fetches.asked == [(IMAGE, OBJECT)]


def test_a_failed_fetch_is_absent_too(tree: LazyTree, fetches: Fetches) -> None:
    """
    The error layer, which comes last, decides what the opener sees.
    """
    fetches.broken = True
    assert isinstance(walk(tree, f"objects/{IMAGE}/{OBJECT.shard_path}"), Lookup.Absent)


def test_every_name_below_error_fails(tree: LazyTree) -> None:
    """
    A missing object is an input/output error, never a missing file.
    """
    assert isinstance(walk(tree, f"error/{OBJECT.shard_path}"), Lookup.Failed)


def test_an_image_reaches_only_what_its_index_names(tree: LazyTree, fetches: Fetches) -> None:
    """
    A crafted redirect cannot bring another image's content in.
    """
    assert isinstance(walk(tree, f"objects/{IMAGE}/{FOREIGN.shard_path}"), Lookup.Absent)
    assert fetches.asked == []


@pytest.mark.parametrize(
    "path",
    [
        "nothing",
        f"objects/{'cd' * 32}",
        f"trees/{'cd' * 32}",
        "trees/..",
        "objects/..",
        f"objects/{IMAGE}/xyz",
        f"objects/{IMAGE}/ABC",
        f"objects/{IMAGE}/abcd",
        f"objects/{IMAGE}/abc/short",
    ],
)
def test_other_names_do_not_exist(tree: LazyTree, fetches: Fetches, path: str) -> None:
    """
    Nothing but what the tree's text says can be found.
    """
    assert isinstance(walk(tree, path), Lookup.Absent)
    assert fetches.asked == []


def test_directories_keep_their_inodes(tree: LazyTree) -> None:
    """
    The kernel may hold an inode for as long as the mount lives.
    """
    first = walk(tree, f"objects/{IMAGE}/abc")
    assert first == walk(tree, f"objects/{IMAGE}/abc")
    assert first != walk(tree, f"objects/{IMAGE}/abd")
    assert isinstance(first, Lookup.Inode)
    assert stat.S_ISDIR(tree.status(first.inode).mode)
