"""The tar of the index layer."""

from __future__ import annotations

import hashlib
import io
import tarfile

from gear_plugin.image import FOLDER, INDEX_NAME, MANIFEST_NAME, copy_layer, write_layer
from tests.unit.image.tars import scan


def _layer(erofs: bytes, manifest: bytes) -> bytes:
    out = io.BytesIO()
    write_layer(erofs, manifest, out)
    return out.getvalue()


def test_it_holds_one_folder_with_two_files() -> None:
    """
    Owned by root, time 0, and readable by any tar.
    """
    erofs, manifest = b"E" * (2**20 + 4096), b"manifest"
    data = _layer(erofs, manifest)
    with tarfile.open(fileobj=io.BytesIO(data)) as oracle:
        found = {
            entry.name: (entry.type, entry.mode, entry.uid, entry.gid, entry.mtime, entry.size)
            for entry in oracle
        }
        assert oracle.extractfile(INDEX_NAME).read() == erofs  # type: ignore[union-attr]
        assert oracle.extractfile(MANIFEST_NAME).read() == manifest  # type: ignore[union-attr]
    assert found == {
        FOLDER: (tarfile.DIRTYPE, 0o755, 0, 0, 0, 0),
        INDEX_NAME: (tarfile.REGTYPE, 0o644, 0, 0, 0, len(erofs)),
        MANIFEST_NAME: (tarfile.REGTYPE, 0o644, 0, 0, 0, len(manifest)),
    }
    assert [member.name.decode() for member in scan(data)] == list(found)


def test_the_same_index_gives_the_same_layer_for_ever() -> None:
    """
    The layer's digest names the image in registries; a change of its bytes would be a new format.
    """
    digest = hashlib.sha256(_layer(b"index", b"manifest")).hexdigest()
    assert digest == "a2481223ad111e43a10138a4fbc4ba74825f398f350e1a501f6e9aada12359de"


def test_it_takes_a_buffer_of_any_kind() -> None:
    """
    A mapped index.erofs need not be copied first.
    """
    out = io.BytesIO()
    write_layer(memoryview(b"index"), b"manifest", out)
    assert out.getvalue() == _layer(b"index", b"manifest")


def test_an_index_in_a_file_gives_the_same_layer() -> None:
    """
    An index of any size goes through in pieces.
    """
    erofs = b"E" * (2**20 + 4096)
    out = io.BytesIO()
    copy_layer(io.BytesIO(erofs), len(erofs), b"manifest", out)
    assert out.getvalue() == _layer(erofs, b"manifest")
