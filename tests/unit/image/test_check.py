"""An index as a whole: its parts must fit one another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gear_plugin.digest import Digest
from gear_plugin.errors import IndexDamaged
from gear_plugin.image import Inode, Kind, ObjectTable, Totals, Tree, check_index
from tests.unit.image.indexes import LARGE, LARGE_BYTES, SMALL, index
from tests.unit.image.trees import tree_of


def test_a_whole_index_gives_its_manifest_and_object_table() -> None:
    """
    What a node keeps of an index comes out of the one check.
    """
    erofs, manifest = index()
    checked = check_index(erofs, manifest.encode())
    assert checked.manifest == manifest
    table = ObjectTable(checked.objects)
    assert dict(table) == {LARGE: LARGE_BYTES, SMALL: 5}
    assert table.total_bytes == manifest.totals.object_bytes


def test_an_empty_image_is_an_index_too() -> None:
    """
    No object, no chunk: nothing to fetch.
    """
    erofs, manifest = index(Tree(), chunks={}, profile=())
    assert check_index(erofs, manifest.encode()).objects == b""


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"index_digest": Digest.of(b"other")}, "not the one"),
        ({"totals": Totals(0, 0, 0, 0, 0)}, "as much as"),
        ({"chunks": {}}, "has no chunk digests"),
        ({"chunks": {LARGE: (bytes(32),) * 17}}, "fit no object"),
        ({"chunks": {LARGE: (bytes(32),) * 18, SMALL: ()}}, "fit no object"),
        ({"chunks": {LARGE: (bytes(32),) * 18, Digest.of(b"?"): ()}}, "fit no object"),
        ({"profile": (Digest.of(b"?"),)}, "start profile"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, Any], reason: str) -> None:
    """
    The manifest says nothing that index.erofs does not bear out.
    """
    erofs, manifest = index(**changes)
    with pytest.raises(IndexDamaged, match=reason):
        check_index(erofs, manifest.encode())


def test_one_object_of_two_sizes_is_refused() -> None:
    """
    A digest stands for one content, so for one size.
    """
    files = [Inode(Kind.FILE, 0, 0, 0, 0, size=size, digest=SMALL) for size in (5, 6)]
    erofs, manifest = index(tree_of({b"a": files[0], b"b": files[1]}), chunks={}, profile=())
    with pytest.raises(IndexDamaged, match="different size"):
        check_index(erofs, manifest.encode())


def test_a_damaged_image_is_refused_although_its_hash_fits() -> None:
    """
    Whoever made the manifest may have made a bad image with it.
    """
    erofs, manifest = index()
    broken = erofs[:-1]
    manifest = replace(manifest, index_digest=Digest.of(broken))
    with pytest.raises(IndexDamaged, match="no whole EROFS image"):
        check_index(broken, manifest.encode())
