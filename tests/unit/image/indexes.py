"""A whole small index: tree, index.erofs and manifest that belong together."""

from __future__ import annotations

from typing import Any

from gear_plugin.digest import Digest
from gear_plugin.image import CHUNK_BYTES, Inode, Kind, Manifest, Tree, chunk_count, write_erofs
from gear_plugin.names import ImageId
from tests.unit.image.trees import file, tree_of

LARGE = Digest.of(b"a large one")
LARGE_BYTES = 17 * CHUNK_BYTES + 1
SMALL = Digest.of(b"small")


def indexed_tree() -> Tree:
    """One large object, one small one under two names, and an empty file."""
    large = Inode(Kind.FILE, 0o644, 0, 0, 0, size=LARGE_BYTES, digest=LARGE)
    return tree_of({b"l": large, b"s": file(b"small"), b"d/s": file(b"small"), b"e": file(b"")})


def index(tree: Tree | None = None, **changes: Any) -> tuple[bytes, Manifest]:
    """index.erofs of *tree* and its manifest, with *changes* to the latter."""
    tree = tree or indexed_tree()
    erofs = write_erofs(tree)
    fields: dict[str, Any] = {
        "image": ImageId.parse("library/nginx:1.25"),
        "image_digest": Digest.of(b"image"),
        "platform": "linux/amd64",
        "config": {"os": "linux", "config": {"Env": ["A=ä"], "Cmd": None}, "history": []},
        "totals": tree.totals(),
        "index_digest": Digest.of(erofs),
        "chunks": {LARGE: tuple(bytes([n]) * 32 for n in range(chunk_count(LARGE_BYTES)))},
        "profile": (SMALL, LARGE),
    }
    return erofs, Manifest(**(fields | changes))
