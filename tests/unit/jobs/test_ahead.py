"""Many objects in order, from sources that lack, lie, hang or break."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from gear_plugin.content import CHUNK_BYTES, DirectoryStore, FileSource, MemoryStore, ObjectSource
from gear_plugin.digest import Digest
from gear_plugin.errors import ContentCorrupt, ContentNotFound, GearError, SourceUnavailable
from gear_plugin.jobs.ahead import ReadAhead

SMALL = [b"content %d" % number for number in range(50)]
LARGE = bytes(range(256)) * (12 * CHUNK_BYTES // 256) + b"end"
STALL_S = 5.0


def store_of(folder: Path, *contents: bytes) -> MemoryStore:
    store = MemoryStore()
    for content in contents:
        path = folder / "content"
        path.write_bytes(content)
        store.put(Digest.of(content), path)
    return store


class Lying:
    """Says that everything is *content*."""

    name = "a lying source"

    def __init__(self, content: bytes) -> None:
        self._content = content

    @contextlib.contextmanager
    def read(self, digest: Digest) -> Iterator[Iterator[bytes]]:
        at = range(0, len(self._content), CHUNK_BYTES)
        yield (self._content[start : start + CHUNK_BYTES] for start in at)


class Hanging:
    """Never comes back until it is let go."""

    name = "a hanging source"

    def __init__(self) -> None:
        self.let_go = threading.Event()

    @contextlib.contextmanager
    def read(self, digest: Digest) -> Iterator[Iterator[bytes]]:
        self.let_go.wait(60)
        raise ContentNotFound("let go")
        yield iter(())


def read(
    contents: Sequence[bytes], *sources: ObjectSource, stall_s: float = STALL_S
) -> list[bytes]:
    """Every content as it arrives, retries settled."""
    found = []
    order = [(Digest.of(content), len(content)) for content in contents]
    with ReadAhead(order, sources, stall_s=stall_s) as ahead:
        for _ in order:
            parts: list[bytes] = []
            for part in ahead.contents():
                if part is None:
                    parts.clear()
                else:
                    parts.append(part)
            found.append(b"".join(parts))
    return found


def test_contents_come_in_their_order_repeats_too(tmp_path: Path) -> None:
    """
    Whichever thread was quicker; an object may be wanted more than once.
    """
    wanted = [*SMALL, LARGE, *SMALL[::-1], SMALL[0], SMALL[0]]
    assert read(wanted, store_of(tmp_path, *SMALL, LARGE)) == wanted


def test_no_object_at_all() -> None:
    """
    Nothing is asked for, nothing hangs.
    """
    assert read([]) == []


def test_each_object_comes_from_the_first_source_that_has_it(tmp_path: Path) -> None:
    """
    The node's cache has some, the store the rest.
    """
    half = store_of(tmp_path, *SMALL[::2])
    rest = store_of(tmp_path, *SMALL[1::2])
    assert read(SMALL, half, rest) == SMALL


@pytest.mark.parametrize("wrong", [b"short", LARGE[:-1], LARGE[:-1] + b"?", LARGE + b"more"])
def test_wrong_bytes_are_taken_back_and_the_next_source_asked(tmp_path: Path, wrong: bytes) -> None:
    """
    Also when they turn out wrong only after many chunks, or never end.
    """
    assert read([LARGE], Lying(wrong), store_of(tmp_path, LARGE)) == [LARGE]


def test_an_object_that_is_nowhere_is_named(tmp_path: Path) -> None:
    """
    With every place that was asked.
    """
    store = DirectoryStore.create(tmp_path / "store")
    with pytest.raises(ContentNotFound, match=f"the build .*; store .* no object {ABSENT}"):
        read([b"absent"], FileSource("the build", tmp_path), store)


ABSENT = Digest.of(b"absent")


@pytest.mark.parametrize(
    ("sources", "kind"),
    [
        ([Lying(b"x")], ContentCorrupt),
        ([Lying(b"x"), FileSource("cache", Path("/nowhere"))], ContentCorrupt),
        ([Lying(b"x"), DirectoryStore(Path("/nowhere"))], SourceUnavailable),
        ([FileSource("cache", Path("/nowhere"))], ContentNotFound),
        ([], ContentNotFound),
    ],
)
def test_the_error_says_what_to_do(sources: list[ObjectSource], kind: type[GearError]) -> None:
    """
    A source that could not be asked comes first: trying again may help.
    """
    with pytest.raises(kind):
        read([b"absent"], *sources)


def test_a_hanging_source_is_given_up() -> None:
    """
    Within the time limit, and leaving takes no longer.
    """
    hanging = Hanging()
    began = time.monotonic()
    with pytest.raises(SourceUnavailable, match=r"a hanging source delivered nothing of .* 0\.2 s"):
        read([b"a", b"b"], hanging, stall_s=0.2)
    assert time.monotonic() - began < 20
    hanging.let_go.set()


def test_a_reader_that_stops_early_leaves_no_thread(tmp_path: Path) -> None:
    """
    The disk was full, say: the threads end at their next chunk.
    """
    before = set(threading.enumerate())
    order = [(Digest.of(LARGE), len(LARGE))] * 9
    with ReadAhead(order, [store_of(tmp_path, LARGE)], stall_s=STALL_S) as ahead:
        next(ahead.contents())
    deadline = time.monotonic() + 20
    while set(threading.enumerate()) - before:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_bug_in_a_source_is_not_swallowed() -> None:
    """
    It arrives as it is, not as "not found".
    """

    class Broken:
        name = "broken"

        def read(self, digest: Digest) -> contextlib.AbstractContextManager[Iterator[bytes]]:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        read([b"a"], Broken())


def test_files_are_read_and_their_failures_told_apart(tmp_path: Path) -> None:
    """
    Missing is not the same as unreadable.
    """
    digest = Digest.of(LARGE)
    path = tmp_path / digest.shard_path
    path.parent.mkdir()
    source = FileSource("files", tmp_path)
    with pytest.raises(ContentNotFound), source.read(digest):
        pass
    path.write_bytes(LARGE)
    with source.read(digest) as chunks:
        parts = list(chunks)
    assert b"".join(parts) == LARGE and max(map(len, parts)) <= CHUNK_BYTES
    path.unlink()
    path.mkdir()
    with pytest.raises(SourceUnavailable, match="Is a directory"), source.read(digest) as chunks:
        list(chunks)
