"""The directory store's files: where they are, in which form, and what damage does."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from gear_plugin.content import DirectoryStore
from gear_plugin.digest import Digest
from gear_plugin.errors import ContentCorrupt, ContentNotFound, SourceUnavailable, StorageFull
from tests.unit.content.mounts import Mount

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


@pytest.mark.parametrize("size", [100_000, 3_000_000], ids=["whole", "by samples"])
@pytest.mark.parametrize(("saves", "suffix"), [(0.05, ""), (0.2, ".zst")])
def test_the_limit_is_a_tenth(
    store: DirectoryStore, root: Path, tmp_path: Path, size: int, saves: float, suffix: str
) -> None:
    """Less saves too little to pay for every reader's decompressor."""
    part = 10_000
    noise = round(part * (1 - saves))
    content = b"".join(os.urandom(noise) + bytes(part - noise) for _ in range(size // part))
    digest = put(store, tmp_path, content)
    assert (root / "objects" / (digest.shard_path + suffix)).exists()
    assert read(store, digest) == content


def test_compressed_objects_are_ordinary_zstd_files(
    store: DirectoryStore, root: Path, tmp_path: Path
) -> None:
    """One frame that says how large its content is; any zstd reads it."""
    for content in (TEXT, TEXT * 40):
        digest = put(store, tmp_path, content)
        data = (root / "objects" / (digest.shard_path + ".zst")).read_bytes()
        assert zstandard.get_frame_parameters(data).content_size == len(content)
        assert zstandard.ZstdDecompressor().decompress(data) == content


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


def files(folder: Path, contents: list[bytes]) -> list[tuple[Digest, Path]]:
    folder.mkdir(exist_ok=True)
    objects = [(Digest.of(content), folder / Digest.of(content).hex) for content in contents]
    for (_, path), content in zip(objects, contents, strict=True):
        path.write_bytes(content)
    return objects


def test_bytes_are_on_disk_before_any_name_and_names_before_the_answer(
    store: DirectoryStore, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power failure at any moment leaves whole objects alone."""
    objects = files(tmp_path / "files", [b"1", TEXT, NOISE])
    events: list[str] = []
    real_fsync, real_link, real_mkdir = os.fsync, os.link, os.mkdir

    def fsync(handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        events.append(f"sync {path.name if path.is_dir() else 'file'}")
        real_fsync(handle)

    def link(source: str, target: str) -> None:
        real_link(source, target)
        events.append("link")

    def mkdir(path: str) -> None:
        real_mkdir(path)
        events.append("mkdir")

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(os, "mkdir", mkdir)
    store.put_all(objects, lambda _: None)
    shards = [f"sync {shard}" for shard in sorted(digest.hex[:3] for digest, _ in objects)]
    assert events == ["sync file"] * 3 + ["mkdir", "link"] * 3 + [*shards, "sync objects"]
    events.clear()
    store.put_all(objects, lambda _: None)
    assert events == [*shards, "sync objects"]


def test_a_store_without_the_folder_for_temporaries(
    store: DirectoryStore, root: Path, tmp_path: Path
) -> None:
    """It is made when something is written."""
    (root / "incoming").rmdir()
    assert store.sweep() == 0
    digest = put(store, tmp_path, TEXT)
    assert read(store, digest) == TEXT


def leftover(root: Path, name: str, age_s: float) -> Path:
    path = root / "incoming" / name
    path.write_bytes(b"half")
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path


def test_sweep_spares_what_may_still_be_written(store: DirectoryStore, root: Path) -> None:
    """
    A day is long enough; a time in the future is a clock that was wrong.
    """
    day_s = 24 * 3600
    kept = {
        leftover(root, ".tmp-now", 0),
        leftover(root, ".tmp-hours", 0.9 * day_s),
        leftover(root, ".tmp-soon", -0.9 * day_s),
        leftover(root, "not-ours", 9 * day_s),
    }
    leftover(root, ".tmp-old", 1.1 * day_s)
    leftover(root, ".tmp-future", -400 * day_s)
    assert store.sweep() == 2
    assert set((root / "incoming").iterdir()) == kept
    assert store.sweep() == 0


def test_sweep_goes_by_the_stores_clock(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    This machine's may be years off; writers elsewhere must not lose their files.
    """
    kept = leftover(root, ".tmp-now", 0)
    monkeypatch.setattr(time, "time", lambda: 4_000_000_000.0)
    assert store.sweep() == 0
    assert kept.exists()


def test_a_writer_whose_file_was_swept_says_try_again(
    store: DirectoryStore, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a clock's jump of a day; nothing is left, and the next try works."""
    real = os.fsync

    def fsync(handle: int) -> None:
        real(handle)
        for path in (root / "incoming").iterdir():
            path.unlink()

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(SourceUnavailable, match="try again"):
        put(store, tmp_path, TEXT)
    monkeypatch.undo()
    assert read(store, put(store, tmp_path, TEXT)) == TEXT


@pytest.mark.parametrize("call", ["fsync", "link", "unlink"])
def test_a_killed_writer_leaves_no_half_object(
    store: DirectoryStore, root: Path, tmp_path: Path, call: str
) -> None:
    """
    kill -9 before the bytes are on disk, before the first name, after the last.
    """
    objects = files(tmp_path / "files", [b"1", TEXT, NOISE])
    writer = f"""
import os, signal
from pathlib import Path
from gear_plugin.content import DirectoryStore
from gear_plugin.digest import Digest
os.{call} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
paths = [Path(p) for p in {[str(path) for _, path in objects]!r}]
DirectoryStore(Path({str(root)!r})).put_all(
    [(Digest.from_hex(path.name), path) for path in paths], lambda _: None)
"""
    done = subprocess.run([sys.executable, "-c", writer])
    assert done.returncode == -9
    assert len(list(store.list())) == (3 if call == "unlink" else 0)
    left = list((root / "incoming").iterdir())
    assert len(left) == 3
    puts = store.put_all(objects, lambda _: None)
    assert [one.is_new for one in puts] == [call != "unlink"] * 3
    for content in (b"1", TEXT, NOISE):
        assert read(store, Digest.of(content)) == content
    for path in left:
        os.utime(path, (0, 0))
    assert store.sweep() == 3


def test_a_large_object_is_synced_on_the_way(
    store: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow share is never waited for with gigabytes outstanding."""
    monkeypatch.setattr("gear_plugin.content.incoming._SYNC_EVERY_BYTES", 1 << 20)
    synced: list[int] = []
    real = os.fdatasync

    def fdatasync(handle: int) -> None:
        synced.append(handle)
        real(handle)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    content = os.urandom(3_500_000)
    assert read(store, put(store, tmp_path, content)) == content
    assert len(synced) == 3


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Mount]:
    """A filesystem of 256 KiB."""
    with Mount.tmpfs(tmp_path / "tiny", size_bytes=256 << 10) as mount:
        yield mount


@pytest.mark.root
def test_a_full_store(tiny: Mount, tmp_path: Path) -> None:
    """
    Nothing half-made is left, what was there stays, and it works once there is room.
    """
    store = DirectoryStore.create(tiny.path / "store")
    small = put(store, tmp_path, b"small")
    ballast = tiny.path / "ballast"
    ballast.write_bytes(bytes(200_000))
    with pytest.raises(StorageFull, match=f"store {tiny.path}/store is full .*free space"):
        put(store, tmp_path, NOISE)
    assert list(store.list()) == [small]
    assert os.listdir(tiny.path / "store" / "incoming") == []
    ballast.unlink()
    assert read(store, put(store, tmp_path, NOISE)) == NOISE


@pytest.mark.root
def test_a_read_only_store(tiny: Mount, tmp_path: Path) -> None:
    """
    Says so; what it has may be "put" all the same, as nothing is to be written.
    """
    store = DirectoryStore.create(tiny.path / "store")
    put(store, tmp_path, TEXT)
    tiny.remount("ro")
    with pytest.raises(SourceUnavailable, match=r"cannot write to store .*Read-only file system"):
        put(store, tmp_path, NOISE)
    assert put(store, tmp_path, TEXT) == Digest.of(TEXT)
    assert store.sweep() == 0
    with pytest.raises(SourceUnavailable, match=r"cannot make a store .*Read-only file system"):
        DirectoryStore.create(tiny.path / "other")


def test_shards_made_by_many_writers_at_once(store: DirectoryStore, tmp_path: Path) -> None:
    """The folder may come to be between one writer's look and its next step."""
    failures: list[BaseException] = []
    barrier = threading.Barrier(8)

    def write(number: int) -> None:
        objects = files(tmp_path / f"files-{number}", [b"%d" % i for i in range(200)])
        barrier.wait()
        try:
            store.put_all(objects, lambda _: None)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(list(store.list())) == 200
