"""
A file of more than 4 GiB.  Here and not among the unit tests, as it takes ten seconds to hash.
"""

from __future__ import annotations

import json
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from gear_plugin.image import INDEX_NAME, MANIFEST_NAME, check_index, chunk_count, read_erofs
from gear_plugin.jobs import BuildFolder, Progress, build
from gear_plugin.jobs.saved import SavedImage, opened
from gear_plugin.names import ImageId
from tests.unit.image.rawtar import END, entry
from tests.unit.jobs import saves
from tests.unit.jobs.fakes import Recorder

IMAGE = ImageId.parse("huge:1")
SIZE = 2**32 + 4096 + 17
TAIL = b"the end of it"
DIGEST = "07823f94b374f444483f1e244e15475aa71dc418eaca6c96faa8a50159bc8626"
"""Of a file of SIZE bytes, all zero but for TAIL, as sha256sum says."""


def sparse_archive(path: Path) -> None:
    """A saved image whose only file is a hole of SIZE bytes that ends in TAIL."""
    head = entry(b"huge", size=SIZE)
    rest = TAIL + bytes(-SIZE % 512) + END
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{0:064}"]}
    config = json.dumps({"os": "linux", "architecture": "amd64", "rootfs": rootfs}).encode()
    listing = [{"Config": "config.json", "RepoTags": None, "Layers": ["layer.tar"]}]
    with path.open("wb") as out:
        out.write(entry(b"config.json", data=config))
        out.write(entry(b"manifest.json", data=json.dumps(listing).encode()))
        out.write(entry(b"layer.tar", size=len(head) + SIZE - len(TAIL) + len(rest)))
        out.write(head)
        out.seek(SIZE - len(TAIL), os.SEEK_CUR)
        out.write(rest + END)


@dataclass
class Trusted:
    """A source that spares the layer's digest: it would be another ten seconds."""

    path: Path
    place: str = "test"

    def opened(self, scratch: Path, progress: Progress) -> AbstractContextManager[SavedImage]:
        return opened(self.path, scratch, None, progress, known_good=True)


def test_a_file_of_more_than_four_gib(tmp_path: Path) -> None:
    """
    Its size, its digests and its chunks; holes stay holes, so that it costs no disk.
    """
    archive = tmp_path / "saved.tar"
    sparse_archive(archive)
    if archive.stat().st_blocks * 512 > 2**28:
        pytest.skip("this filesystem has no holes")
    build(IMAGE, None, tmp_path, Recorder(), source=Trusted(archive))
    made = BuildFolder.of(tmp_path, IMAGE)
    parts = saves.unpack(made.index_tar.read_bytes())
    checked = check_index(parts[INDEX_NAME], parts[MANIFEST_NAME])
    inode = read_erofs(parts[INDEX_NAME]).lookup(b"huge")
    assert inode is not None
    assert inode.size == SIZE
    assert inode.digest is not None
    assert inode.digest.hex == DIGEST
    assert len(checked.manifest.chunks[inode.digest]) == chunk_count(SIZE)
    stored = made.files / inode.digest.shard_path
    assert stored.stat().st_size == SIZE
    assert stored.stat().st_blocks * 512 < 2**28
    with stored.open("rb") as file:
        file.seek(-len(TAIL), os.SEEK_END)
        assert file.read() == TAIL
