"""Walking, looking up and counting."""

from __future__ import annotations

from gear_plugin.digest import Digest
from gear_plugin.image import Directory, Inode, Kind, Totals, Tree
from tests.unit.image.trees import file, tree_of


def test_walk_is_sorted_with_parents_first() -> None:
    """
    The root comes first, a directory before its entries, siblings by their bytes.
    """
    tree = tree_of({b"b/z": file(), b"b/a": file(), b"a-": file(), b"\xff": file()})
    assert [path for path, _ in tree.walk()] == [b"", b"a-", b"b", b"b/a", b"b/z", b"\xff"]


def test_lookup_finds_what_is_there_and_follows_nothing() -> None:
    """
    A path through a symlink or a file leads nowhere.
    """
    link = Inode(Kind.SYMLINK, 0o777, 0, 0, 0, target=b"d")
    tree = tree_of({b"d/x": file(), b"l": link})
    assert tree.lookup(b"") is tree.root
    assert tree.lookup(b"l") is link
    assert isinstance(tree.lookup(b"d"), Directory)
    assert [tree.lookup(path) for path in (b"l/x", b"d/x/y", b"d/y")] == [None, None, None]


def test_totals_count_inodes_and_distinct_contents() -> None:
    """
    A hard link is one file, equal contents are one object, empty files are none.
    """
    linked = file(b"linked")
    tree = tree_of(
        {
            b"a": linked,
            b"d/b": linked,
            b"c": file(b"same!"),
            b"e": file(b"same!"),
            b"f": file(b""),
            b"p": Inode(Kind.FIFO, 0, 0, 0, 0),
        }
    )
    assert tree.totals() == Totals(files=4, directories=2, others=1, objects=2, object_bytes=11)
    assert tree.objects() == {Digest.of(b"linked"): 6, Digest.of(b"same!"): 5}
    assert len(list(tree.inodes())) == 7


def test_depth_costs_no_stack() -> None:
    """
    A tree nested deeper than Python's recursion limit is walked like any other.
    """
    tree = Tree()
    directory = tree.root
    for _ in range(2000):
        directory.children[b"d"] = directory = Directory()
    assert tree.totals().directories == 2001
