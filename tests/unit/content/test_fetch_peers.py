"""Fetching in a cluster: other nodes first, for other nodes never, and many in one stream."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from gear_plugin.cluster import Member
from gear_plugin.content import Cache, Completer, Fetcher, MemoryStore, ObjectSource, SourceCounts
from gear_plugin.content.base import Group, Record
from gear_plugin.digest import Digest
from gear_plugin.errors import (
    ContentCorrupt,
    ContentNotFound,
    GearError,
    ImageNotFound,
    SourceUnavailable,
    TimedOut,
)
from tests.waiting import eventually

IMAGE, OTHER_IMAGE = Digest.of(b"nginx index"), Digest.of(b"python index")
NODE = Member("1" * 32, "127.0.0.1:9")
X = Digest.of(b"x")

Chunks = Callable[[Digest], Iterator[bytes]]


class Fakes:
    """Other nodes that do what the test says."""

    name = "other nodes"

    def __init__(self, chunks: Chunks) -> None:
        self.chunks = chunks
        self.is_home = False
        self.reads: list[Digest] = []
        self.batches: list[tuple[Digest, ...]] = []
        self.told: list[str] = []

    def asks(self, _digest: Digest) -> bool:
        return not self.is_home

    @contextlib.contextmanager
    def read(self, digest: Digest, _size_bytes: int | None = None) -> Iterator[Iterator[bytes]]:
        self.reads.append(digest)
        try:
            yield self.chunks(digest)
        except GearError as error:
            self.told.append(type(error).__name__)
            raise

    def groups(self, digests: Iterable[Digest]) -> list[Group]:
        found = tuple(digests)
        return [Group(NODE, found)] if found and not self.is_home else []

    @contextlib.contextmanager
    def read_many(self, group: Group) -> Iterator[Iterator[Record]]:
        self.batches.append(group.digests)
        yield self._records(group)

    def _records(self, group: Group) -> Iterator[Record]:
        for digest in group.digests:
            try:
                yield digest, self.chunks(digest)
            except ContentNotFound:
                yield digest, None


class Hanging:
    """Content that comes when the test says so."""

    def __init__(self) -> None:
        self.gate = threading.Event()

    def __call__(self, _digest: Digest) -> Iterator[bytes]:
        assert self.gate.wait(30)
        yield b"x"


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    cache = Cache(tmp_path / "gear", 0)
    cache.admit(IMAGE)
    cache.admit(OTHER_IMAGE)
    return cache


@pytest.fixture
def store(tmp_path: Path) -> MemoryStore:
    store = MemoryStore("store")
    for content in [b"x", *(b"%d" % number for number in range(100))]:
        (tmp_path / "file").write_bytes(content)
        store.put(Digest.of(content), tmp_path / "file")
    return store


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    found = Hanging()
    yield found
    found.gate.set()


def from_(store: MemoryStore) -> Chunks:
    """What nodes send that have all that *store* has."""

    def chunks(digest: Digest) -> Iterator[bytes]:
        with store.read(digest) as found:
            return iter(list(found))

    return chunks


def raising(error: GearError) -> Chunks:
    def chunks(_digest: Digest) -> Iterator[bytes]:
        raise error
        yield b""

    return chunks


def fetcher(
    cache: Cache,
    peers: Fakes,
    *sources: ObjectSource,
    stall_s: float = 5,
    timeout_s: float = 20,
    size_of: Callable[[Digest, Digest], int | None] = lambda _image, _digest: None,
) -> Fetcher:
    return Fetcher(
        cache,
        sources,
        peers=peers,
        stall_s=stall_s,
        timeout_s=timeout_s,
        workers=8,
        size_of=size_of,
    )


def in_thread(call: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=call)
    thread.start()
    return thread


def test_nodes_are_asked_before_the_store(cache: Cache, store: MemoryStore) -> None:
    """Which is not asked at all."""
    peers = Fakes(from_(store))
    fetching = fetcher(cache, peers, store)
    fetching.fetch(IMAGE, X)
    assert fetching.counts().sources == {
        "other nodes": SourceCounts(objects=1, size_bytes=1),
        "store": SourceCounts(),
    }


def test_home_goes_to_the_store(cache: Cache, store: MemoryStore) -> None:
    """At once."""
    peers = Fakes(from_(store))
    peers.is_home = True
    fetcher(cache, peers, store).fetch(IMAGE, X)
    assert peers.reads == []


def test_nodes_that_lack_it_have_one_turn(cache: Cache, store: MemoryStore) -> None:
    """The store is the next."""
    peers = Fakes(from_(MemoryStore()))
    fetcher(cache, peers, store).fetch(IMAGE, X)
    assert len(peers.reads) == 1
    assert cache.has(X)


@pytest.mark.parametrize("first", [b"wrong", None])
def test_wrong_or_broken_bytes_give_nodes_another_turn(
    cache: Cache, first: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    """The next home may have it; the source is told what was wrong."""

    def chunks(_digest: Digest) -> Iterator[bytes]:
        if len(peers.reads) > 1:
            yield b"x"
        elif first is None:
            raise SourceUnavailable("broke off")
        else:
            yield first

    peers = Fakes(chunks)
    fetcher(cache, peers).fetch(IMAGE, X)
    assert cache.path(X).read_bytes() == b"x"
    assert peers.told == ["ContentCorrupt" if first else "SourceUnavailable"]
    caplog.clear()


def test_lying_nodes_have_two_turns_at_most(
    cache: Cache, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Then it is the store's."""
    peers = Fakes(lambda _: iter([b"wrong"]))
    fetcher(cache, peers, store).fetch(IMAGE, X)
    assert len(peers.reads) == 2
    assert cache.path(X).read_bytes() == b"x"
    caplog.clear()


def test_obtain_takes_from_the_store_alone(cache: Cache, store: MemoryStore) -> None:
    """And pins nothing: it is for another node."""
    peers = Fakes(from_(store))
    fetching = fetcher(cache, peers, store)
    fetching.obtain(X)
    fetching.obtain(X, 1)
    assert peers.reads == []
    assert cache.path(X).stat().st_nlink == 1
    assert fetching.counts().sources["store"].objects == 1
    with pytest.raises(ContentNotFound):
        fetching.obtain(Digest.of(b"absent"))


def test_obtain_refuses_another_size(
    cache: Cache, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Who says a size gets that or nothing."""
    with pytest.raises(ContentCorrupt):
        fetcher(cache, Fakes(from_(store)), store).obtain(X, 2)
    caplog.clear()


class Counting(MemoryStore):
    """A store that counts reads, which wait for the gate."""

    def __init__(self) -> None:
        super().__init__("store")
        self.reads = 0
        self.gate = threading.Event()

    @contextlib.contextmanager
    def read(self, digest: Digest) -> Iterator[Iterator[bytes]]:
        self.reads += 1
        assert self.gate.wait(30)
        with super().read(digest) as chunks:
            yield chunks


def test_all_who_want_it_of_a_home_share_one_read(cache: Cache, tmp_path: Path) -> None:
    """Containers of the home, and other nodes that know its size or do not."""
    store = Counting()
    (tmp_path / "file").write_bytes(b"x")
    store.put(X, tmp_path / "file")
    peers = Fakes(from_(store))
    peers.is_home = True
    fetching = fetcher(cache, peers, store, size_of=lambda _image, _digest: 1)
    wanted: list[Callable[[], None]] = [
        lambda: fetching.fetch(IMAGE, X),
        lambda: fetching.fetch(OTHER_IMAGE, X),
        lambda: fetching.obtain(X),
        lambda: fetching.obtain(X, 1),
    ]
    threads = [in_thread(call) for call in wanted * 3]
    eventually(lambda: store.reads)
    store.gate.set()
    for thread in threads:
        thread.join(10)
    assert store.reads == 1
    assert cache.path(X).stat().st_nlink == 3


def test_obtain_does_not_wait_for_other_nodes(
    cache: Cache, store: MemoryStore, hanging: Hanging
) -> None:
    """Lest two nodes wait for each other; the fetch that does goes on."""
    peers = Fakes(hanging)
    fetching = fetcher(cache, peers, store)
    thread = in_thread(lambda: fetching.fetch(IMAGE, X))
    eventually(lambda: peers.reads)
    fetching.obtain(X)
    assert cache.path(X).stat().st_nlink == 1
    hanging.gate.set()
    thread.join(10)
    assert cache.path(X).stat().st_nlink == 2


def test_lie_about_a_size_fails_alone(
    cache: Cache, hanging: Hanging, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever shared its flight and does not know the size flies again."""
    reads: list[Digest] = []

    class Source:
        name = "store"

        @contextlib.contextmanager
        def read(self, digest: Digest) -> Iterator[Iterator[bytes]]:
            reads.append(digest)
            yield hanging(digest)

    peers = Fakes(hanging)
    peers.is_home = True
    fetching = fetcher(cache, peers, Source(), size_of=lambda _image, _digest: 7)
    errors: list[GearError] = []

    def fetch() -> None:
        try:
            fetching.fetch(IMAGE, X)
        except GearError as error:
            errors.append(error)

    liar = in_thread(fetch)
    eventually(lambda: reads)
    honest = in_thread(lambda: fetching.obtain(X))
    hanging.gate.set()
    liar.join(10)
    honest.join(10)
    assert cache.has(X)
    caplog.clear()


def test_obtain_answers_in_time(cache: Cache, hanging: Hanging) -> None:
    """Whatever the store does."""

    class Source:
        name = "store"

        @contextlib.contextmanager
        def read(self, digest: Digest) -> Iterator[Iterator[bytes]]:
            yield hanging(digest)

    with pytest.raises(TimedOut, match="did not arrive in"):
        fetcher(cache, Fakes(hanging), Source(), timeout_s=0.2).obtain(X)


NUMBERS = [b"%d" % number for number in range(100)]
OBJECTS = [Digest.of(content) for content in NUMBERS]
SIZES = {Digest.of(content): len(content) for content in [b"x", *NUMBERS]}


def sized(_image: Digest, digest: Digest) -> int | None:
    return SIZES.get(digest)


def test_many_come_in_one_stream(cache: Cache, store: MemoryStore) -> None:
    """Pinned; what is here is not asked for again."""
    peers = Fakes(from_(store))
    fetching = fetcher(cache, peers, size_of=sized)
    fetching.fetch(IMAGE, OBJECTS[0])
    fetching.fetch_ahead(IMAGE, OBJECTS)
    for digest in OBJECTS:
        fetching.fetch(IMAGE, digest)
    assert peers.batches == [tuple(OBJECTS[1:])]
    assert peers.reads == OBJECTS[:1]
    assert all(cache.path(digest).stat().st_nlink == 2 for digest in OBJECTS)
    assert fetching.counts().sources["other nodes"].objects == len(OBJECTS)


def test_open_waits_for_what_is_on_its_way(
    cache: Cache, store: MemoryStore, hanging: Hanging
) -> None:
    """It is not asked for again, by any image."""
    good = from_(store)

    def chunks(digest: Digest) -> Iterator[bytes]:
        if digest == OBJECTS[50]:
            assert hanging.gate.wait(30)
        return good(digest)

    peers = Fakes(chunks)
    fetching = fetcher(cache, peers, store, size_of=sized)
    fetching.fetch_ahead(IMAGE, OBJECTS)
    threads = [
        in_thread(lambda image=image: fetching.fetch(image, OBJECTS[60]))  # type: ignore[misc]
        for image in (IMAGE, OTHER_IMAGE)
    ]
    eventually(lambda: cache.has(OBJECTS[49]))
    assert not cache.has(OBJECTS[60])
    hanging.gate.set()
    for thread in threads:
        thread.join(10)
    assert cache.path(OBJECTS[60]).stat().st_nlink == 3
    assert peers.reads == []


def test_what_a_stream_lacks_comes_from_the_store(cache: Cache, store: MemoryStore) -> None:
    """Without asking the node again."""
    good = from_(store)

    def chunks(digest: Digest) -> Iterator[bytes]:
        if digest == OBJECTS[3]:
            raise ContentNotFound("not here")
        return good(digest)

    peers = Fakes(chunks)
    fetching = fetcher(cache, peers, store, size_of=sized)
    fetching.fetch_ahead(IMAGE, OBJECTS[:6])
    for digest in OBJECTS[:6]:
        fetching.fetch(IMAGE, digest)
    assert peers.reads == []
    assert fetching.counts().sources["store"].objects == 1


@pytest.mark.parametrize("fault", ["wrong bytes", "breaks off", "hangs"])
def test_stream_that_fails_is_made_up_for(
    cache: Cache,
    store: MemoryStore,
    hanging: Hanging,
    fault: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What came before stays, the rest comes one by one."""
    good = from_(store)

    def chunks(digest: Digest) -> Iterator[bytes]:
        if peers.reads or digest != OBJECTS[3]:
            return good(digest)
        if fault == "wrong bytes":
            return iter([b"9"])
        if fault == "breaks off":
            return raising(SourceUnavailable("broke off"))(digest)
        return hanging(digest)

    peers = Fakes(chunks)
    stall_s = 0.3 if fault == "hangs" else 10
    fetching = fetcher(cache, peers, store, size_of=sized, stall_s=stall_s)
    fetching.fetch_ahead(IMAGE, OBJECTS[:6])
    for digest in OBJECTS[:6]:
        fetching.fetch(IMAGE, digest)
    # A third name, that of the incoming file, may be there for an instant.
    eventually(lambda: all(cache.path(one).stat().st_nlink == 2 for one in OBJECTS[:6]))
    assert peers.batches == [tuple(OBJECTS[:6])]
    caplog.clear()


def test_stream_for_an_image_that_left_ends(cache: Cache, store: MemoryStore) -> None:
    """And leaves nothing on its way."""
    peers = Fakes(from_(store))
    fetching = fetcher(cache, peers, store, size_of=sized)
    gone = Digest.of(b"gone")
    fetching.fetch_ahead(gone, OBJECTS)
    with pytest.raises(ImageNotFound):
        fetching.fetch(gone, OBJECTS[99])
    fetching.fetch(IMAGE, OBJECTS[99])
    eventually(lambda: not fetching._flights)


def test_unknown_and_large_objects_are_in_no_stream(cache: Cache, store: MemoryStore) -> None:
    """Those behind them would wait."""
    peers = Fakes(from_(store))
    sizes: dict[Digest, int | None] = {OBJECTS[0]: None, OBJECTS[1]: 9 << 20}
    fetching = fetcher(cache, peers, size_of=lambda _, digest: sizes.get(digest, SIZES[digest]))
    fetching.fetch_ahead(IMAGE, OBJECTS[:4])
    eventually(lambda: peers.batches == [(OBJECTS[2], OBJECTS[3])])


def test_parts_are_bounded(cache: Cache, store: MemoryStore) -> None:
    """In bytes and in number; without other nodes there is one."""
    many = [Digest.of(b"many %d" % number) for number in range(5000)]
    peers = Fakes(from_(store))
    parts = list(fetcher(cache, peers, size_of=lambda *_: 1).parts(IMAGE, many))
    assert [len(part) for part in parts] == [4096, 904]
    assert [digest for part in parts for digest in part] == many
    large = fetcher(cache, peers, size_of=lambda *_: 20 << 20)
    assert [len(part) for part in large.parts(IMAGE, many[:7])] == [3, 3, 1]
    alone = Fetcher(cache, [store], stall_s=5, timeout_s=5, workers=2)
    assert [len(part) for part in alone.parts(IMAGE, many)] == [5000]


def test_completing_uses_streams(cache: Cache, store: MemoryStore) -> None:
    """One for all objects of one node."""
    peers = Fakes(from_(store))
    completer = Completer(fetcher(cache, peers, size_of=sized), lambda _image: iter(OBJECTS))
    completer.start(IMAGE)
    eventually(lambda: not completer.pending())
    assert peers.batches == [tuple(OBJECTS)]
    assert peers.reads == []
    assert all(cache.has(digest) for digest in OBJECTS)
