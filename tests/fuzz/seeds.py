"""Where fuzzing starts: the corpora, a few larger good inputs, and what was once a finding."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gear_plugin.image import Kind, write_erofs
from tests.fuzz.members import encode
from tests.unit.image.indexes import index
from tests.unit.image.tars import member
from tests.unit.image.trees import file, tree_of

CORPUS = Path(__file__).parents[1] / "corpus"
_FOLDERS = {"manifest": "manifest", "erofs": "index", "layer": "layer"}


def seeds(target: str) -> Iterator[bytes]:
    """The inputs to begin *target* with."""
    for folder in (CORPUS / _FOLDERS[target], CORPUS / "fuzz" / target):
        for path in sorted(folder.glob("*")):
            yield path.read_bytes()
    if target == "manifest":
        manifest = index()[1].encode()
        yield manifest
        yield b"\0\0\2" + manifest[32:]
    elif target == "erofs":
        yield write_erofs(tree_of({b"d/%03d" % n * 20: file(b"%d" % n) for n in range(40)}))
    else:
        yield _every_kind()


def _every_kind() -> bytes:
    """One member of each kind, one with xattrs and one whiteout."""
    members = [
        member(b"", Kind.DIR, mode=0o755),
        member(b"d", Kind.DIR, xattrs={b"user.a": b"\n=\0", b"security.b": b"1"}),
        member(b"d/f", size=5, mtime_ns=-1),
        member(b"d/h", Kind.HARDLINK, link=b"d/f"),
        member(b"l", Kind.SYMLINK, link=b"d/../d"),
        member(b"l/in", size=2),
        member(b"c", Kind.CHAR, major=1, minor=3),
        member(b"b", Kind.BLOCK, major=8, minor=0),
        member(b"p", Kind.FIFO),
        member(b"d/.wh.x"),
        member(b"e/.wh..wh..opq"),
        member(b"n" * 300, size=1),
    ]
    return b"".join(encode(each, b"x" * each.size) for each in members) + bytes(1024)
