"""An image's objects on their way into a store."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from gear_plugin.content import DirectoryStore, MemoryStore, Put
from gear_plugin.digest import Digest
from gear_plugin.errors import ContentCorrupt, ContentNotFound, SourceUnavailable
from gear_plugin.jobs import Watch
from gear_plugin.jobs.upload import Uploaded, upload
from tests.unit.jobs.fakes import Recorder

TEXT = b"the same line again\n" * 5000
NOISE = os.urandom(50_000)


class Build:
    """A build's files, and their upload."""

    def __init__(self, files: Path) -> None:
        self.files = files
        self.objects: dict[Digest, int] = {}
        self.progress = Recorder()

    def add(self, *contents: bytes) -> Build:
        for content in contents:
            digest = Digest.of(content)
            self.objects[digest] = len(content)
            self.path(digest).parent.mkdir(parents=True, exist_ok=True)
            self.path(digest).write_bytes(content)
        return self

    def path(self, digest: Digest) -> Path:
        return self.files / digest.shard_path

    def upload(self, store: MemoryStore | DirectoryStore) -> Uploaded:
        watch = Watch(store.name, 60, self.progress)
        return upload(self.objects, self.files, store, watch, self.progress)


@pytest.fixture
def build(tmp_path: Path) -> Build:
    return Build(tmp_path / "files")


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore.create(tmp_path / "store")


def test_counts_say_what_was_new_and_what_was_written(build: Build, store: DirectoryStore) -> None:
    """Content, and what it takes in the store, which is less where compression pays."""
    done = build.add(TEXT, NOISE).upload(store)
    text_stored, noise_stored = (store.size(Digest.of(content)) for content in (TEXT, NOISE))
    assert text_stored < len(TEXT) / 10
    assert noise_stored == len(NOISE)
    assert done == Uploaded(
        objects=2,
        object_bytes=len(TEXT) + len(NOISE),
        new_objects=2,
        new_bytes=len(TEXT) + len(NOISE),
        new_stored_bytes=text_stored + noise_stored,
    )


def test_counts_say_what_was_saved(build: Build, store: DirectoryStore) -> None:
    """Of what the store had: content, and the bytes that were not written again."""
    build.add(TEXT).upload(store)
    done = build.add(b"only new").upload(store)
    assert done == Uploaded(
        objects=2,
        object_bytes=len(TEXT) + 8,
        new_objects=1,
        new_bytes=8,
        new_stored_bytes=8,
        saved_bytes=len(TEXT),
        saved_stored_bytes=store.size(Digest.of(TEXT)),
    )


def test_many_objects_in_many_batches(build: Build, store: DirectoryStore) -> None:
    """Each is stored, counted and shown once."""
    contents = [b"%d" % number for number in range(1000)]
    done = build.add(*contents).upload(store)
    assert set(store.list()) == set(build.objects)
    assert (done.objects, done.new_objects) == (1000, 1000)
    total = sum(build.objects.values())
    assert done.new_bytes == total
    assert build.progress.steps == [("storing 1000 objects", total, total)]


def test_an_object_is_asked_for_once(build: Build) -> None:
    """Batches do not overlap, and are of limited size in number and bytes."""
    asked: list[list[Digest]] = []
    lock = threading.Lock()

    class Counting(MemoryStore):
        def put_all(
            self, objects: Sequence[tuple[Digest, Path]], advance: Callable[[int], None]
        ) -> list[Put]:
            with lock:
                asked.append([digest for digest, _ in objects])
            return super().put_all(objects, advance)

    build.add(*(b"%d" % number for number in range(200)), bytes(20 << 20), b"x" * (20 << 20))
    build.upload(Counting())
    flat = [digest for batch in asked for digest in batch]
    assert sorted(flat) == sorted(build.objects)
    assert all(len(batch) <= 64 for batch in asked)
    assert all(sum(build.objects[digest] for digest in batch) <= 32 << 20 for batch in asked)


def test_a_missing_file_is_named(build: Build, store: DirectoryStore) -> None:
    """It is the build that is wrong, not the store."""
    build.add(TEXT, NOISE)
    lost = build.path(Digest.of(TEXT))
    lost.unlink()
    with pytest.raises(ContentNotFound, match=f"{lost} cannot be read .No such file.*gear build"):
        build.upload(store)


def test_a_changed_file_is_refused(build: Build, store: DirectoryStore, tmp_path: Path) -> None:
    """Nothing of it is left in the store."""
    build.add(TEXT)
    build.path(Digest.of(TEXT)).write_bytes(TEXT[:-1] + b"!")
    with pytest.raises(ContentCorrupt, match="changed since it was built"):
        build.upload(store)
    assert list(store.list()) == []
    assert os.listdir(tmp_path / "store" / "incoming") == []


def test_the_store_is_swept_first(build: Build) -> None:
    """What killed pushes left goes before more is written."""
    calls: list[str] = []

    class Sweeping(MemoryStore):
        def sweep(self) -> int:
            calls.append("sweep")
            return 1

        def put(self, digest: Digest, path: Path) -> bool:
            calls.append("put")
            return super().put(digest, path)

    build.add(TEXT).upload(Sweeping())
    assert calls == ["sweep", "put"]


def test_a_failure_ends_the_others_soon(build: Build) -> None:
    """A large object on its way is not waited for."""
    begun, ended = threading.Event(), threading.Event()

    class Failing(MemoryStore):
        def put_all(
            self, objects: Sequence[tuple[Digest, Path]], advance: Callable[[int], None]
        ) -> list[Put]:
            if any(digest == Digest.of(b"bad") for digest, _ in objects):
                begun.wait(10)
                raise SourceUnavailable("gone")
            try:
                begun.set()
                while True:
                    advance(1)
            finally:
                ended.set()

    build.add(b"bad", bytes(20 << 20), b"x" * (20 << 20))
    with pytest.raises(SourceUnavailable, match="gone"):
        build.upload(Failing())
    assert ended.wait(10)
