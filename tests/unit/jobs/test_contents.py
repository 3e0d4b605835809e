from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import pytest

from gear_plugin.digest import Digest
from gear_plugin.errors import ArchiveMalformed
from gear_plugin.image import CHUNK_BYTES, LARGE_OBJECT_BYTES, TarReader, flatten
from gear_plugin.jobs.bundle import Stretch
from gear_plugin.jobs.contents import Chunks, store_contents
from tests.unit.image.tars import tar
from tests.unit.jobs.fakes import Recorder
from tests.unit.jobs.saves import file


def store(tmp_path: Path, *layers: bytes, shift: int = 0) -> tuple[Path, Chunks, Recorder]:
    """Store what a container would see of *layers*, which lie in one spool, *shift* bytes off."""
    spool, files, progress = tmp_path / "spool", tmp_path / "files", Recorder()
    files.mkdir()
    spool.write_bytes(bytes(shift) + b"".join(layers))
    merged = flatten([TarReader(io.BytesIO(layer), seekable=True) for layer in layers])
    with spool.open("rb") as opened:
        places, at = [], shift
        for layer in layers:
            places.append(Stretch(opened.fileno(), at, len(layer)))
            at += len(layer)
        progress.step("hashing")
        chunks = store_contents(merged.contents, places, files, progress)
    return files, chunks, progress


def stored(files: Path) -> dict[str, bytes]:
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in files.glob("*/*")}


def by_name(*contents: bytes) -> dict[str, bytes]:
    return {Digest.of(content).shard_path: content for content in contents}


def test_each_distinct_content_is_stored_once_under_its_digest(tmp_path: Path) -> None:
    """
    Equal files share an object, in whichever layers they are; empty ones have none.
    """
    lower = tar(file("a", b"same"), file("b", b"lower"), file("empty", b""))
    upper = tar(file("c", b"same"), file("d/e", b"upper"))
    files, chunks, progress = store(tmp_path, lower, upper, shift=512)
    assert stored(files) == by_name(b"same", b"lower", b"upper")
    assert chunks == {}
    assert progress.steps == [("hashing", 0, len(b"same" + b"lower" + b"same" + b"upper"))]


def test_only_files_that_won_are_stored(tmp_path: Path) -> None:
    """
    What a higher layer replaced or hid costs nothing.
    """
    lower = tar(file("a", b"old"), file("b", b"hidden"))
    files, _, _ = store(tmp_path, lower, tar(file("a", b"new"), file(".wh.b", b"")))
    assert stored(files) == by_name(b"new")


@pytest.mark.parametrize(
    "size",
    [CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, LARGE_OBJECT_BYTES - 1, LARGE_OBJECT_BYTES],
)
def test_contents_around_every_limit_are_whole(tmp_path: Path, size: int) -> None:
    """
    Chunk digests come with exactly those that the manifest wants them for.
    """
    content = os.urandom(size)
    files, chunks, _ = store(tmp_path, tar(file("a", content), file("b", content)))
    assert stored(files) == by_name(content)
    if size < LARGE_OBJECT_BYTES:
        assert chunks == {}
    else:
        expected = tuple(
            hashlib.sha256(content[at : at + CHUNK_BYTES]).digest()
            for at in range(0, size, CHUNK_BYTES)
        )
        assert chunks == {Digest.of(content): expected}


def test_stored_files_are_read_only(tmp_path: Path) -> None:
    """
    Nobody changes by mistake what is named by its content.
    """
    files, _, _ = store(tmp_path, tar(file("a", b"x", mode=0o777)))
    (path,) = files.glob("*/*")
    assert path.stat().st_mode & 0o222 == 0


@pytest.mark.parametrize("size", [1000, CHUNK_BYTES + 5])
def test_a_layer_that_ends_within_a_file_is_refused(tmp_path: Path, size: int) -> None:
    """
    The bytes after a layer belong to others and are never taken for the file's.
    """
    layer = tar(file("a", b"x" * size))
    merged = flatten([TarReader(io.BytesIO(layer), seekable=True)])
    spool = tmp_path / "spool"
    spool.write_bytes(layer)
    for length, missing in ((512 + size - 1, 0), (len(layer), 512 + 512)):
        with spool.open("r+b") as opened:
            opened.truncate(len(layer) if not missing else 512 + size - 1)
            place = Stretch(opened.fileno(), 0, length)
            with pytest.raises(ArchiveMalformed, match="ends within a file"):
                store_contents(merged.contents, [place], tmp_path, Recorder())
    assert list(tmp_path.glob("???/*")) == []
