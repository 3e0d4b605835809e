"""The suite that every object store passes (`content/base.py`)."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gear_plugin.content import (
    CHUNK_BYTES,
    BuiltFiles,
    DirectoryStore,
    FileSource,
    MemoryStore,
    ObjectSource,
    ObjectStore,
    until_named,
)
from gear_plugin.content.calls import Calls
from gear_plugin.content.peer import CachedCopies, HomesSource, ManagerSource
from gear_plugin.digest import Digest
from gear_plugin.errors import ContentCorrupt, ContentNotFound
from tests.unit.content.nodes import ME, TOKEN, members_of, running

CONTENTS = {
    "empty": b"",
    "one byte": b"x",
    "a block": os.urandom(4096),
    "text": b"the same line again\n" * 5000,
    "noise": os.urandom(300_000),
    "chunks of text": b"many chunks " * 300_000,
    "chunks of noise": os.urandom(CHUNK_BYTES * 2 + 7),
    "text then noise": b"a" * 2_000_000 + os.urandom(2_000_000),
}
ABSENT = Digest.of(b"never stored")

Put = Callable[[bytes], bool]


@pytest.fixture(params=["memory", "directory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "memory":
        return MemoryStore()
    return DirectoryStore.create(tmp_path / "store")


@pytest.fixture
def put(store: ObjectStore, tmp_path: Path) -> Put:
    def put(content: bytes) -> bool:
        path = tmp_path / f"file-{threading.get_ident()}"
        path.write_bytes(content)
        return store.put(Digest.of(content), path)

    return put


def read(store: ObjectStore, digest: Digest) -> bytes:
    with store.read(digest) as chunks:
        return b"".join(chunks)


@pytest.mark.parametrize("kind", CONTENTS)
def test_what_was_put_is_read(store: ObjectStore, put: Put, kind: str) -> None:
    """Any content comes back byte by byte, in chunks of 1 to CHUNK_BYTES."""
    content = CONTENTS[kind]
    assert put(content) is True
    with store.read(Digest.of(content)) as chunks:
        parts = list(chunks)
    assert b"".join(parts) == content
    assert all(1 <= len(part) <= CHUNK_BYTES for part in parts)


def test_put_says_who_was_first(store: ObjectStore, put: Put) -> None:
    """True the first time, False ever after; True again once it was deleted."""
    assert [put(b"content"), put(b"content")] == [True, False]
    store.delete(Digest.of(b"content"))
    assert put(b"content") is True


@pytest.mark.parametrize("kind", ["one byte", "text", "chunks of text", "noise"])
def test_wrong_content_is_refused(store: ObjectStore, tmp_path: Path, kind: str) -> None:
    """What does not hash to its name is not stored, in whatever form it would be."""
    path = tmp_path / "file"
    path.write_bytes(CONTENTS[kind])
    with pytest.raises(ContentCorrupt):
        store.put(ABSENT, path)
    assert not store.has(ABSENT)
    assert list(store.list()) == []


def test_absent_object(store: ObjectStore, put: Put) -> None:
    """Every call has its own answer for an object that is not there."""
    put(b"another")
    assert not store.has(ABSENT)
    assert not store.delete(ABSENT)
    with pytest.raises(ContentNotFound, match=ABSENT.hex):
        store.size(ABSENT)
    with pytest.raises(ContentNotFound, match=ABSENT.hex), store.read(ABSENT):
        pass


def test_list_gives_every_object_once(store: ObjectStore, put: Put) -> None:
    """Exactly the objects there are, in any order."""
    for content in CONTENTS.values():
        put(content)
    listed = list(store.list())
    assert len(listed) == len(set(listed))
    assert set(listed) == {Digest.of(content) for content in CONTENTS.values()}


@pytest.mark.parametrize("kind", ["empty", "text", "noise"])
def test_delete_removes_one(store: ObjectStore, put: Put, kind: str) -> None:
    """The object is gone, others are not; the second delete says so."""
    put(CONTENTS[kind])
    put(b"another")
    digest = Digest.of(CONTENTS[kind])
    assert store.has(digest)
    assert [store.delete(digest), store.delete(digest)] == [True, False]
    assert not store.has(digest)
    assert list(store.list()) == [Digest.of(b"another")]


def test_reader_outlives_a_delete(store: ObjectStore, put: Put) -> None:
    """Whoever has an object open reads it to its end."""
    content = CONTENTS["chunks of noise"]
    put(content)
    with store.read(Digest.of(content)) as chunks:
        first = next(chunks)
        store.delete(Digest.of(content))
        assert first + b"".join(chunks) == content


def test_reader_may_stop_early(store: ObjectStore, put: Put) -> None:
    """Leaving the block in the middle, or by an error, is fine; the error is untouched."""
    content = CONTENTS["chunks of text"]
    put(content)
    error = OSError("the reader's own")
    with pytest.raises(OSError, match="reader's own"), store.read(Digest.of(content)) as chunks:
        next(chunks)
        raise error
    assert read(store, Digest.of(content)) == content


def test_size_is_what_it_takes(store: ObjectStore, put: Put) -> None:
    """At most the content's size; noise cannot take less."""
    for content in CONTENTS.values():
        put(content)
        assert store.size(Digest.of(content)) <= len(content)
    assert store.size(Digest.of(CONTENTS["noise"])) == len(CONTENTS["noise"])


def test_many_writers_one_first(store: ObjectStore, put: Put) -> None:
    """Of writers at the same moment exactly one is told that it was new."""
    content = CONTENTS["text"]
    barrier = threading.Barrier(8)
    answers: list[bool] = []

    def write() -> None:
        barrier.wait()
        answers.append(put(content))

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [False] * 7 + [True]
    assert read(store, Digest.of(content)) == content


def files(folder: Path, contents: list[bytes]) -> list[tuple[Digest, Path]]:
    """What `put_all` takes."""
    folder.mkdir(exist_ok=True)
    objects = [(Digest.of(content), folder / Digest.of(content).hex) for content in contents]
    for (_, path), content in zip(objects, contents, strict=True):
        path.write_bytes(content)
    return objects


def test_many_are_put_together(store: ObjectStore, put: Put, tmp_path: Path) -> None:
    """Each has its answer, in their order: whether it was new, and what it takes there."""
    contents = list(CONTENTS.values())
    put(contents[3])
    done: list[int] = []
    puts = store.put_all(files(tmp_path / "files", contents), done.append)
    assert [one.is_new for one in puts] == [content != contents[3] for content in contents]
    assert [one.stored_bytes for one in puts] == [
        store.size(Digest.of(content)) for content in contents
    ]
    assert sum(done) == sum(map(len, contents))
    for content in contents:
        assert read(store, Digest.of(content)) == content


def test_none_is_put_under_a_wrong_name(store: ObjectStore, tmp_path: Path) -> None:
    """The others may be there, and are right."""
    objects = files(tmp_path / "files", [b"1", b"2", b"3"])
    objects[1][1].write_bytes(b"changed")
    with pytest.raises(ContentCorrupt):
        store.put_all(objects, lambda _: None)
    assert not store.has(Digest.of(b"2"))
    assert not store.has(Digest.of(b"changed"))
    for digest in store.list():
        assert Digest.of(read(store, digest)) == digest


def test_of_writers_of_many_each_object_has_one_first(store: ObjectStore, tmp_path: Path) -> None:
    """In whatever order their objects come."""
    contents = [b"%d" % number * 3000 for number in range(100)]
    objects = files(tmp_path / "files", contents)
    barrier = threading.Barrier(4)
    firsts: list[Digest] = []

    def write(number: int) -> None:
        mine = objects[number * 20 :] + objects[: number * 20]
        barrier.wait()
        puts = store.put_all(mine, lambda _: None)
        firsts.extend(digest for (digest, _), one in zip(mine, puts, strict=True) if one.is_new)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(firsts) == sorted(digest for digest, _ in objects)
    assert set(store.list()) == set(firsts)


def test_nothing_to_sweep(store: ObjectStore, put: Put) -> None:
    """Objects are never swept."""
    put(b"content")
    assert store.sweep() == 0
    assert store.has(Digest.of(b"content"))


def test_an_announcement_is_withdrawn_once(store: ObjectStore) -> None:
    """It stands until then, if no collector gave it up."""
    announcement = store.announce()
    announcement.renew()
    assert announcement.stands()
    assert announcement.withdraw()


def test_what_is_named_was_announced(store: ObjectStore, put: Put) -> None:
    """First the objects, then their names; both once, when nothing happens meanwhile."""
    done: list[str] = []
    assert until_named(store, lambda _: put(b"content"), lambda: done.append("named"))
    assert done == ["named"]


def test_name_is_for_people(store: ObjectStore) -> None:
    """One short line for logs and statistics."""
    assert store.name
    assert "\n" not in store.name


@pytest.fixture(params=["file", "builds", "homes", "manager", "cache of a node"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectSource]:
    """Sources that are only read from, with all CONTENTS."""
    with running(2) as nodes:
        for node in nodes:
            node.put(*CONTENTS.values())
        calls = Calls(TOKEN)
        folder = tmp_path / "build/files"
        for content in CONTENTS.values():
            path = folder / Digest.of(content).shard_path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        if request.param == "file":
            yield FileSource("files", folder)
        elif request.param == "builds":
            yield BuiltFiles(tmp_path)
        elif request.param == "homes":
            members = members_of(nodes)
            yield HomesSource(calls, lambda: members, ME, hedge_s=5)
        elif request.param == "manager":
            yield ManagerSource(calls, nodes[0].address)
        else:
            yield next(CachedCopies(calls, members_of(nodes)).sources(ABSENT))
        calls.close()


@pytest.mark.parametrize("kind", CONTENTS)
def test_source_gives_the_bytes(source: ObjectSource, kind: str) -> None:
    """Of any content, in chunks of 1 to CHUNK_BYTES."""
    content = CONTENTS[kind]
    with source.read(Digest.of(content)) as chunks:
        parts = list(chunks)
    assert b"".join(parts) == content
    assert all(1 <= len(part) <= CHUNK_BYTES for part in parts)


def test_source_says_what_it_lacks(source: ObjectSource) -> None:
    """On entry."""
    with pytest.raises(ContentNotFound, match=ABSENT.hex), source.read(ABSENT):
        pass


def test_readers_of_a_source_may_stop_early(source: ObjectSource) -> None:
    """Leaving the block in the middle, or by an error, is fine; the error is untouched."""
    content = CONTENTS["chunks of noise"]
    error = OSError("the reader's own")
    with pytest.raises(OSError, match="reader's own"), source.read(Digest.of(content)) as chunks:
        next(chunks)
        raise error
    with source.read(Digest.of(content)) as chunks:
        assert b"".join(chunks) == content


def test_source_reads_many_at_a_time(source: ObjectSource) -> None:
    """Each reader gets its own object."""
    wrong: list[str] = []

    def read_one(kind: str) -> None:
        with source.read(Digest.of(CONTENTS[kind])) as chunks:
            if b"".join(chunks) != CONTENTS[kind]:
                wrong.append(kind)

    threads = [threading.Thread(target=read_one, args=(kind,)) for kind in list(CONTENTS) * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_name_of_a_source_is_for_people(source: ObjectSource) -> None:
    """One short line for logs and statistics."""
    assert source.name
    assert "\n" not in source.name
