"""Fetching: one read for many, sources in their order, an answer in bounded time."""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gear_plugin.content import Cache, Fetcher, MemoryStore, ObjectSource, SourceCounts, fetch
from gear_plugin.content.lane import STUCK_LIMIT
from gear_plugin.digest import Digest
from gear_plugin.errors import (
    ContentCorrupt,
    ContentNotFound,
    GearError,
    ImageNotFound,
    SourceUnavailable,
    StorageFull,
    StorageUnavailable,
    TimedOut,
)
from tests.waiting import eventually

NGINX, PYTHON = Digest.of(b"nginx index"), Digest.of(b"python index")
STALL_S = 0.25


class Scripted:
    """A source that does what the test says, and counts."""

    def __init__(self, name: str, chunks: Callable[[Digest], Iterator[bytes]]) -> None:
        self.name = name
        self.reads: list[Digest] = []
        self._chunks = chunks

    @contextlib.contextmanager
    def read(self, digest: Digest) -> Iterator[Iterator[bytes]]:
        self.reads.append(digest)
        yield self._chunks(digest)


class Hanging(Scripted):
    """Delivers nothing until `release` is called, then the content."""

    def __init__(self, name: str, content: bytes = b"") -> None:
        super().__init__(name, self._wait)
        self._released = threading.Event()
        self._content = content

    def _wait(self, _digest: Digest) -> Iterator[bytes]:
        assert self._released.wait(30)
        yield self._content

    def release(self) -> None:
        self._released.set()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    cache = Cache(tmp_path / "gear", 0)
    cache.admit(NGINX)
    cache.admit(PYTHON)
    return cache


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    source = Hanging("hanging", b"x")
    yield source
    source.release()


def stocked(tmp_path: Path, *contents: bytes, name: str = "memory") -> MemoryStore:
    store = MemoryStore(name)
    for content in contents:
        (tmp_path / "file").write_bytes(content)
        store.put(Digest.of(content), tmp_path / "file")
    return store


def failing(name: str, error: Exception) -> Scripted:
    def chunks(_digest: Digest) -> Iterator[bytes]:
        raise error
        yield b""

    return Scripted(name, chunks)


def fetcher(
    cache: Cache, *sources: ObjectSource, timeout_s: float = 20, workers: int = 8
) -> Fetcher:
    return Fetcher(cache, sources, stall_s=STALL_S, timeout_s=timeout_s, workers=workers)


def in_threads(number: int, call: Callable[[], None]) -> list[GearError]:
    """Run *call* in *number* threads at once; the errors that were raised."""
    errors: list[GearError] = []

    def run() -> None:
        try:
            call()
        except GearError as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_miss_then_hit(cache: Cache, tmp_path: Path) -> None:
    """The first call brings the object, pinned; the second reads nothing."""
    store = stocked(tmp_path, b"x")
    fetching = fetcher(cache, store)
    digest = Digest.of(b"x")
    fetching.fetch(NGINX, digest)
    fetching.fetch(NGINX, digest)
    assert cache.path(digest).read_bytes() == b"x"
    assert cache.path(digest).stat().st_nlink == 2
    counts = fetching.counts()
    assert (counts.hits, counts.objects, counts.size_bytes, counts.failures) == (1, 1, 1, 0)
    assert counts.sources == {"memory": SourceCounts(objects=1, size_bytes=1)}


def sized(cache: Cache, *sources: ObjectSource, sizes: dict[Digest, int]) -> Fetcher:
    """A fetcher that knows an object's size by each image's index."""
    return Fetcher(
        cache, sources, stall_s=5, timeout_s=20, workers=4, size_of=lambda image, _: sizes[image]
    )


def test_no_source_can_send_more_than_the_index_says(
    cache: Cache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """
    One that never ends is left after a chunk, and the next one is asked.
    """
    sent = []

    def endless(_digest: Digest) -> Iterator[bytes]:
        while True:
            sent.append(1)
            yield bytes(1 << 20)

    good = stocked(tmp_path, b"x" * 5)
    fetching = sized(cache, Scripted("endless", endless), good, sizes={NGINX: 5})
    fetching.fetch(NGINX, Digest.of(b"x" * 5))
    assert len(sent) == 1
    assert "wrong bytes from endless" in caplog.text
    assert "goes on after its 5 bytes" in caplog.text
    caplog.clear()


@pytest.mark.parametrize("claimed", [4, 6])
def test_an_index_that_lies_about_a_size_gets_nothing(
    cache: Cache, tmp_path: Path, claimed: int, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Right bytes of another length are not what the image's files say they hold.
    """
    fetching = sized(cache, stocked(tmp_path, b"right"), sizes={NGINX: claimed})
    with pytest.raises(ContentCorrupt, match=str(claimed)):
        fetching.fetch(NGINX, Digest.of(b"right"))
    assert not cache.has(Digest.of(b"right"))
    caplog.clear()


def test_an_image_that_lies_about_a_size_fails_for_itself_alone(
    cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Another image that waits for the same object at the same time gets it.
    """
    gate = threading.Event()

    def slow(_digest: Digest) -> Iterator[bytes]:
        yield b"ri"
        assert gate.wait(10)
        yield b"ght"

    source = Scripted("slow", slow)
    fetching = sized(cache, source, sizes={NGINX: 3, PYTHON: 5})
    digest = Digest.of(b"right")
    failures: list[list[GearError]] = []
    liar = threading.Thread(
        target=lambda: failures.append(in_threads(1, lambda: fetching.fetch(NGINX, digest)))
    )
    liar.start()
    eventually(lambda: len(source.reads) == 1)
    honest = threading.Thread(target=lambda: fetching.fetch(PYTHON, digest))
    honest.start()
    eventually(lambda: len(source.reads) == 2)
    gate.set()
    liar.join()
    honest.join()
    assert [type(error) for error in failures[0]] == [ContentCorrupt]
    assert cache.link(PYTHON, digest)
    caplog.clear()


def test_a_clock_that_jumps_makes_no_stall(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Limits are counted on the monotonic clock: a year forth or back is nothing.
    """
    jumps = iter([10**9, -(10**9)] * 1000)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    monkeypatch.setattr(time, "time_ns", lambda: int((real() + next(jumps)) * 10**9))
    digest = Digest.of(b"steady")

    def steady(_digest: Digest) -> Iterator[bytes]:
        for byte in b"steady":
            time.sleep(0.01)
            yield bytes([byte])

    source = Scripted("steady", steady)
    Fetcher(cache, [source], stall_s=10, timeout_s=60, workers=1).fetch(NGINX, digest)
    monkeypatch.undo()
    assert cache.has(digest)


def test_many_openers_cause_one_read(cache: Cache) -> None:
    """And each image among them gets its own pin."""

    def chunks(_digest: Digest) -> Iterator[bytes]:
        time.sleep(0.05)
        yield b"x"

    source = Scripted("slow", chunks)
    fetching = fetcher(cache, source)
    images = iter([NGINX, PYTHON] * 8)
    assert in_threads(16, lambda: fetching.fetch(next(images), Digest.of(b"x"))) == []
    assert source.reads == [Digest.of(b"x")]
    assert cache.path(Digest.of(b"x")).stat().st_nlink == 3


def test_sources_are_asked_in_order(cache: Cache, tmp_path: Path) -> None:
    """The second only for what the first lacks."""
    first, second = stocked(tmp_path, b"1"), stocked(tmp_path, b"1", b"2", name="second")
    fetching = fetcher(cache, first, second)
    for content in (b"1", b"2"):
        fetching.fetch(NGINX, Digest.of(content))
    sources = fetching.counts().sources
    assert sources["memory"] == SourceCounts(objects=1, size_bytes=1, missing=1)
    assert sources["second"] == SourceCounts(objects=1, size_bytes=1)


def test_wrong_bytes_are_never_published(
    cache: Cache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The culprit is named in the log, and the next source is asked."""
    bad = Scripted("liar", lambda _digest: iter([b"wrong"]))
    fetching = fetcher(cache, bad, stocked(tmp_path, b"right"))
    fetching.fetch(NGINX, Digest.of(b"right"))
    assert cache.path(Digest.of(b"right")).read_bytes() == b"right"
    assert "wrong bytes from liar" in caplog.text
    assert fetching.counts().sources["liar"] == SourceCounts(corrupt=1)
    caplog.clear()


ABSENT = ContentNotFound("absent")
CORRUPT = ContentCorrupt("corrupt")
DOWN = SourceUnavailable("down")
BUG = ZeroDivisionError("bug")


@pytest.mark.parametrize(
    ("sources", "verdict"),
    [
        ([], ContentNotFound),
        ([ABSENT, ABSENT], ContentNotFound),
        ([CORRUPT, CORRUPT], ContentCorrupt),
        ([ABSENT, CORRUPT], ContentCorrupt),
        ([DOWN, ABSENT], SourceUnavailable),
        ([CORRUPT, DOWN], SourceUnavailable),
        ([BUG, ABSENT], SourceUnavailable),
    ],
)
def test_verdict_when_nobody_delivers(
    cache: Cache,
    caplog: pytest.LogCaptureFixture,
    sources: list[Exception],
    verdict: type[GearError],
) -> None:
    """The error that says most about what to do; "not found" only if all say so."""
    fetching = fetcher(cache, *(failing(f"s{i}", error) for i, error in enumerate(sources)))
    with pytest.raises(verdict) as caught:
        fetching.fetch(NGINX, Digest.of(b"x"))
    assert type(caught.value) is verdict
    assert fetching.counts().failures == 1
    caplog.clear()


def test_failure_is_not_remembered(cache: Cache, tmp_path: Path) -> None:
    """Once the object is back, the same call succeeds."""
    store = MemoryStore()
    fetching = fetcher(cache, store)
    with pytest.raises(ContentNotFound):
        fetching.fetch(NGINX, Digest.of(b"x"))
    (tmp_path / "file").write_bytes(b"x")
    store.put(Digest.of(b"x"), tmp_path / "file")
    fetching.fetch(NGINX, Digest.of(b"x"))


def test_all_who_wait_get_the_error(cache: Cache) -> None:
    """A failed read fails each of its openers, with an error of its own."""

    def chunks(_digest: Digest) -> Iterator[bytes]:
        time.sleep(0.05)
        raise ContentNotFound("absent")
        yield b""

    errors = in_threads(
        4,
        lambda f=fetcher(cache, Scripted("slow", chunks)): f.fetch(  # type: ignore[misc]
            NGINX, Digest.of(b"x")
        ),
    )
    assert [type(error) for error in errors] == [ContentNotFound] * 4
    assert len({id(error) for error in errors}) == 4


def test_stalled_source_is_passed_over(
    cache: Cache, tmp_path: Path, hanging: Hanging, caplog: pytest.LogCaptureFixture
) -> None:
    """After stall_s the next source is asked; the late one publishes nothing."""
    fetching = fetcher(cache, hanging, stocked(tmp_path, b"x"))
    began = time.monotonic()
    fetching.fetch(NGINX, Digest.of(b"x"))
    assert STALL_S <= time.monotonic() - began < 10 * STALL_S
    inode = cache.path(Digest.of(b"x")).stat().st_ino
    hanging.release()
    eventually(lambda: fetching._lanes[0].stuck == 0)
    assert cache.path(Digest.of(b"x")).stat().st_ino == inode
    assert fetching.counts().sources["hanging"] == SourceCounts(unavailable=1)
    caplog.clear()


def test_stalled_only_source_is_an_error(
    cache: Cache, hanging: Hanging, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody waits for ever."""
    with pytest.raises(SourceUnavailable, match="hanging delivered nothing"):
        fetcher(cache, hanging).fetch(NGINX, Digest.of(b"x"))
    caplog.clear()


def test_slow_but_steady_is_not_stalled(cache: Cache) -> None:
    """Each chunk starts the clock again."""

    def chunks(_digest: Digest) -> Iterator[bytes]:
        for _ in range(4):
            time.sleep(STALL_S / 2)
            yield b"x"

    fetcher(cache, Scripted("steady", chunks)).fetch(NGINX, Digest.of(b"x" * 4))


def test_dead_source_costs_a_bounded_number_of_threads(
    cache: Cache, tmp_path: Path, hanging: Hanging, caplog: pytest.LogCaptureFixture
) -> None:
    """With STUCK_LIMIT reads hanging it fails at once, and recovers when they return."""
    workers = 8
    fetching = fetcher(cache, hanging, workers=workers)
    digests = iter([Digest.of(b"%d" % number) for number in range(100)])

    def attempt() -> None:
        fetching.fetch(NGINX, next(digests))

    for _ in range(4):
        assert len(in_threads(workers, attempt)) == workers
    assert STUCK_LIMIT <= fetching._lanes[0].stuck < STUCK_LIMIT + workers
    assert len(hanging.reads) < STUCK_LIMIT + workers
    began = time.monotonic()
    with pytest.raises(SourceUnavailable, match="stalled"):
        attempt()
    assert time.monotonic() - began < STALL_S
    hanging.release()
    eventually(lambda: fetching._lanes[0].stuck == 0)
    fetching.fetch(NGINX, Digest.of(b"x"))
    caplog.clear()


def test_no_thread_is_an_error_and_passes(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the limit of threads the fetch fails at once; the next one may do better."""
    fetching = fetcher(cache, stocked(tmp_path, b"x"))

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(SourceUnavailable, match="no thread"):
        fetching.fetch(NGINX, Digest.of(b"x"))
    monkeypatch.undo()
    fetching.fetch(NGINX, Digest.of(b"x"))


def test_queued_reads_wait_for_a_busy_source(cache: Cache) -> None:
    """More large objects than threads are no stall: the lane moves."""

    def chunks(digest: Digest) -> Iterator[bytes]:
        for _ in range(2):
            time.sleep(STALL_S / 2)
            yield b"x"
        yield b"%d" % numbers[digest]

    numbers = {Digest.of(b"xx%d" % number): number for number in range(4)}
    fetching = fetcher(cache, Scripted("busy", chunks), workers=1)
    digests = iter(numbers)
    # The last one waits in line for 3 * STALL_S.
    assert in_threads(4, lambda: fetching.fetch(NGINX, next(digests))) == []


def test_timeout_answers_but_the_object_still_comes(cache: Cache) -> None:
    """Too large for one timeout_s: the first opener is told so, a later one finds it."""
    proceed = threading.Event()

    def chunks(_digest: Digest) -> Iterator[bytes]:
        while not proceed.wait(STALL_S / 4):
            yield b""  # a sign of life
        yield b"x"

    source = Scripted("large", chunks)
    fetching = fetcher(cache, source, timeout_s=0.3)
    with pytest.raises(TimedOut):
        fetching.fetch(NGINX, Digest.of(b"x"))
    proceed.set()
    eventually(lambda: cache.has(Digest.of(b"x")))
    fetching.fetch(NGINX, Digest.of(b"x"))
    assert len(source.reads) == 1


def test_a_broken_disk_asks_no_other_source(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """
    The reason is told as it is; it is no source's fault, and no bug.
    """

    def write(_handle: int, _data: bytes) -> int:
        raise OSError(errno.EIO, "Input/output error")

    first, second = stocked(tmp_path, b"x"), Scripted("second", lambda _: iter([b"x"]))
    monkeypatch.setattr("gear_plugin.content.cache.os.write", write)
    with pytest.raises(StorageUnavailable, match="cannot be used: Input/output error"):
        fetcher(cache, first, second).fetch(NGINX, Digest.of(b"x"))
    monkeypatch.undo()
    assert second.reads == []
    assert caplog.text == ""


def test_full_cache_asks_no_other_source(cache: Cache, tmp_path: Path) -> None:
    """StorageFull is not the source's fault."""
    small = Cache(tmp_path / "small", 4096)
    small.admit(NGINX)
    content = b"x" * 5000
    second = stocked(tmp_path, content, name="second")
    fetching = fetcher(small, stocked(tmp_path, content), second)
    with pytest.raises(StorageFull):
        fetching.fetch(NGINX, Digest.of(content))
    assert fetching.counts().sources["second"] == SourceCounts()


def test_image_must_be_admitted(cache: Cache, tmp_path: Path) -> None:
    """Whether or not the object is here."""
    fetching = fetcher(cache, stocked(tmp_path, b"x"))
    with pytest.raises(ImageNotFound):
        fetching.fetch(Digest.of(b"stranger"), Digest.of(b"x"))


def test_forgotten_image_does_not_fail_another(cache: Cache) -> None:
    """The read began for an image that leaves meanwhile; the other still gets its object."""
    proceed = threading.Event()

    def chunks(_digest: Digest) -> Iterator[bytes]:
        proceed.wait(5)
        yield b"x"

    source = Scripted("slow", chunks)
    patient = fetch.Fetcher(cache, [source], stall_s=5, timeout_s=10, workers=2)
    outcome: list[object] = []

    def opener(image: Digest) -> threading.Thread:
        def run() -> None:
            try:
                patient.fetch(image, Digest.of(b"x"))
                outcome.append("here")
            except GearError as error:
                outcome.append(type(error))

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    leaving = opener(NGINX)
    eventually(lambda: len(source.reads) == 1)
    staying = opener(PYTHON)
    time.sleep(0.05)
    cache.forget(NGINX)
    proceed.set()
    leaving.join()
    staying.join()
    assert outcome.count("here") == 1
    assert outcome.count(ImageNotFound) == 1
    assert cache.link(PYTHON, Digest.of(b"x"))
