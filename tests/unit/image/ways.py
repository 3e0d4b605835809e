"""The ways through the EROFS reader, which must all say the same."""

from __future__ import annotations

from unittest import mock

from gear_plugin.errors import IndexDamaged
from gear_plugin.image import Tree, erofs_plain, read_erofs
from gear_plugin.image.erofs_reader import scan
from tests.unit.image.trees import snapshot


def read(image: bytes) -> Tree:
    """
    The tree of *image*, or IndexDamaged.

    An AssertionError when the general way, without the short cut for plain
    files, or the scan says anything else.
    """
    tree, refusal = _tried(image)
    with mock.patch.object(erofs_plain, "read", lambda data, at: None):
        general, _ = _tried(image)
    try:
        found = scan(image)
    except IndexDamaged:
        found = None
    if tree is None:
        assert (general, found) == (None, None)
        assert refusal is not None
        raise refusal
    assert general is not None
    assert snapshot(tree) == snapshot(general)
    sizes = {(inode.digest.raw, inode.size) for inode in tree.inodes() if inode.digest}
    if found is None:
        assert len(dict(sizes)) < len(sizes), "refused for another reason than two sizes"
    else:
        assert found.totals == tree.totals()
        assert found.sizes == dict(sizes)
    return tree


def _tried(image: bytes) -> tuple[Tree | None, IndexDamaged | None]:
    try:
        return read_erofs(image), None
    except IndexDamaged as error:
        return None, error
