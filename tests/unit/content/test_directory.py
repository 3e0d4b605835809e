"""The directory store's files: where they are, in which form, and what damage does."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import zstandard

from gear_plugin.content import DirectoryStore
from gear_plugin.digest import Digest
from gear_plugin.errors import ContentCorrupt, ContentNotFound, SourceUnavailable

TEXT = b"the same line again\n" * 5000
NOISE = os.urandom(100_000)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> DirectoryStore:
    return DirectoryStore.create(root)


def put(store: DirectoryStore, tmp_path: Path, content: bytes) -> Digest:
    path = tmp_path / "file"
    path.write_bytes(content)
    store.put(Digest.of(content), path)
    return Digest.of(content)


def place(root: Path, digest: Digest, data: bytes, suffix: str = "") -> Path:
    path = root / "objects" / (digest.shard_path + suffix)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


def read(store: DirectoryStore, digest: Digest) -> bytes:
    with store.read(digest) as chunks:
        return b"".join(chunks)


@pytest.mark.parametrize(
    ("content", "suffix"),
    [
        (b"", ""),
        (TEXT[:4096], ""),
        (TEXT, ".zst"),
        (NOISE, ""),
        (TEXT * 20, ".zst"),
        (NOISE * 20 + os.urandom(2_000_000), ""),
    ],
    ids=["empty", "one block", "text", "noise", "large text", "large noise"],
)
def test_compressed_when_it_pays(
    store: DirectoryStore, root: Path, tmp_path: Path, content: bytes, suffix: str
) -> None:
    """One read-only file at the documented place, compressed when that saves 10 %."""
    digest = put(store, tmp_path, content)
    files = [path for path in (root / "objects").rglob("*") if path.is_file()]
    assert files == [root / "objects" / (digest.shard_path + suffix)]
    assert stat.S_IMODE(files[0].stat().st_mode) == 0o444


def test_either_form_is_read(store: DirectoryStore, root: Path) -> None:
    """Another writer may have chosen otherwise; both forms count as one object."""
    digest = Digest.of(TEXT)
    place(root, digest, zstandard.compress(TEXT), ".zst")
    assert read(store, digest) == TEXT
    place(root, digest, TEXT)
    assert read(store, digest) == TEXT
    assert list(store.list()) == [digest]
    assert store.delete(digest)
    assert not store.has(digest)


def test_damaged_frame_is_corrupt(store: DirectoryStore, root: Path) -> None:
    """Bytes that do not decompress are the store's damage, not an internal error."""
    digest = Digest.of(TEXT)
    place(root, digest, b"this is no zstd frame at all", ".zst")
    with pytest.raises(ContentCorrupt, match=digest.hex), store.read(digest) as chunks:
        list(chunks)


def test_greedy_frame_is_refused(store: DirectoryStore, root: Path) -> None:
    """A frame that wants a huge window is not decoded: it would cost each reader that memory."""
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    digest = Digest.of(TEXT)
    place(root, digest, compressor.compress(TEXT) + compressor.flush(), ".zst")
    with pytest.raises(ContentCorrupt), store.read(digest) as chunks:
        list(chunks)


def test_unmounted_share_is_neither_empty_nor_filled(tmp_path: Path) -> None:
    """Without objects/ it is most likely a bare mount point: unavailable, for every call."""
    bare = tmp_path / "bare"
    bare.mkdir()
    store = DirectoryStore(bare)
    digest = Digest.of(TEXT)
    with pytest.raises(SourceUnavailable, match="mounted"), store.read(digest):
        pass
    with pytest.raises(SourceUnavailable, match="mounted"):
        put(store, tmp_path, TEXT)
    with pytest.raises(SourceUnavailable, match="mounted"):
        store.has(digest)
    with pytest.raises(SourceUnavailable, match="mounted"):
        list(store.list())
    assert list(bare.iterdir()) == []


def test_create_is_safe_to_repeat(store: DirectoryStore, root: Path, tmp_path: Path) -> None:
    """Creating a store that is there changes nothing."""
    digest = put(store, tmp_path, TEXT)
    assert read(DirectoryStore.create(root), digest) == TEXT


def test_directory_in_an_objects_place_is_unavailable(store: DirectoryStore, root: Path) -> None:
    """An I/O error is "cannot say", never "not there"."""
    digest = Digest.of(TEXT)
    (root / "objects" / digest.shard_path).mkdir(parents=True)
    with pytest.raises(SourceUnavailable), store.read(digest) as chunks:
        list(chunks)


def test_foreign_files_are_not_listed(store: DirectoryStore, root: Path, tmp_path: Path) -> None:
    """Temporaries of writers and what people leave about are not objects."""
    digest = put(store, tmp_path, TEXT)
    (root / "objects" / digest.hex[:3] / ".tmp-0123").touch()
    (root / "objects" / "lost+found").mkdir()
    (root / "objects" / "lost+found" / "x").touch()
    (root / "objects" / "README").touch()
    assert list(store.list()) == [digest]


def test_absent_in_a_present_store(store: DirectoryStore) -> None:
    """A store that is there and empty says no."""
    with pytest.raises(ContentNotFound), store.read(Digest.of(TEXT)):
        pass
