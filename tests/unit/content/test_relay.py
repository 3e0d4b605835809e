"""A store in front of callers who must not hang with it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from gear_plugin.content import MemoryStore, Put, Relay
from gear_plugin.digest import Digest
from gear_plugin.errors import ContentCorrupt, ContentNotFound, SourceUnavailable, TimedOut
from tests.waiting import eventually

STALL_S = 0.2
LONG_S = 60.0
CONTENT = b"content of some length"
DIGEST = Digest.of(CONTENT)


class Store(MemoryStore):
    """Gives a byte at a time, and hangs where it is told to until `gate` is set."""

    def __init__(self) -> None:
        super().__init__("store /mnt")
        self.gate = threading.Event()
        self.hangs_at: int | None = None
        self.failure: Exception | None = None
        self.readers = 0

    @contextlib.contextmanager
    def read(self, digest: Digest) -> Iterator[Iterator[bytes]]:
        self.readers += 1
        try:
            with super().read(digest) as chunks:
                yield self._slowly(b"".join(chunks))
        finally:
            self.readers -= 1

    def put_all(
        self, objects: Sequence[tuple[Digest, Path]], advance: Callable[[int], None]
    ) -> list[Put]:
        if self.hangs_at is not None:
            self.gate.wait(LONG_S)
        return super().put_all(objects, advance)

    def _slowly(self, content: bytes) -> Iterator[bytes]:
        for at in range(len(content) + 1):
            if at == self.hangs_at:
                self.gate.wait(LONG_S)
            if at == len(content):
                return
            if at == 3 and self.failure is not None:
                raise self.failure
            yield content[at : at + 1]


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store()
    yield store
    store.gate.set()


@pytest.fixture
def relay(store: Store) -> Relay:
    return Relay(store, stall_s=STALL_S, workers=2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "object"
    path.write_bytes(CONTENT)
    return path


def test_an_object_goes_in_and_comes_out(relay: Relay, store: Store, path: Path) -> None:
    """Whole, in order; the second put is none."""
    assert relay.put(DIGEST, path) is True
    assert relay.put(DIGEST, path) is False
    assert b"".join(relay.read(DIGEST)) == CONTENT
    assert store.readers == 0


def test_an_empty_object(relay: Relay, tmp_path: Path) -> None:
    """Has no chunk."""
    (tmp_path / "empty").touch()
    relay.put(Digest.of(b""), tmp_path / "empty")
    assert list(relay.read(Digest.of(b""))) == []


def test_what_the_store_says_is_passed_on(relay: Relay, store: Store, path: Path) -> None:
    """Before the first byte, between bytes, and when putting."""
    with pytest.raises(ContentNotFound):
        relay.read(DIGEST)
    relay.put(DIGEST, path)
    store.failure = SourceUnavailable("the share went away")
    reading = relay.read(DIGEST)
    with pytest.raises(SourceUnavailable, match="went away"):
        list(reading)
    with pytest.raises(ContentCorrupt):
        relay.put(Digest.of(b"other"), path)


@pytest.mark.parametrize("at", [0, 2, len(CONTENT)])
def test_a_read_that_stalls_is_given_up(relay: Relay, store: Store, path: Path, at: int) -> None:
    """Wherever the store hangs; another read works meanwhile, by another thread."""
    relay.put(DIGEST, path)
    store.hangs_at = at
    with pytest.raises(TimedOut, match="store /mnt has not answered"):
        list(relay.read(DIGEST))
    store.hangs_at = None
    assert b"".join(relay.read(DIGEST)) == CONTENT
    store.gate.set()
    eventually(lambda: store.readers == 0, "the thread to end")


def test_a_put_that_stalls_is_given_up(relay: Relay, store: Store, path: Path) -> None:
    """Others go on."""
    store.hangs_at = 0
    with pytest.raises(TimedOut, match="store /mnt has not answered"):
        relay.put(DIGEST, path)
    store.hangs_at = None
    assert relay.put(DIGEST, path) is True


def test_a_dead_store_refuses_at_once(relay: Relay, store: Store, path: Path) -> None:
    """When many have hung, nobody waits any more; when it answers again, all is well."""
    relay.put(DIGEST, path)
    store.hangs_at = 0

    def is_stalled() -> bool:
        try:
            relay.read(DIGEST).close()
        except TimedOut:
            return False
        except SourceUnavailable:
            return True
        raise AssertionError("it was read")

    eventually(is_stalled, "the store to be refused", timeout_s=30)
    assert store.readers < 32
    store.gate.set()
    eventually(lambda: store.readers == 0, "the threads to end")
    store.hangs_at = None
    assert b"".join(relay.read(DIGEST)) == CONTENT


def test_who_leaves_frees_the_thread(relay: Relay, store: Store, path: Path) -> None:
    """At whatever point; also while the store hangs, when the thread counts as lost."""
    relay.put(DIGEST, path)
    for _ in range(5):
        reading = relay.read(DIGEST)
        next(reading)
        reading.close()
        reading.close()
    eventually(lambda: store.readers == 0, "the threads to end")
    store.hangs_at = 1
    for _ in range(5):
        relay.read(DIGEST).close()
    store.hangs_at = None
    assert b"".join(relay.read(DIGEST)) == CONTENT


def test_a_slow_reader_is_no_stall(store: Store, path: Path) -> None:
    """However long a caller does not take what is there, the store is not blamed."""
    relay = Relay(store, stall_s=0.05, workers=1)
    relay.put(DIGEST, path)
    reading = relay.read(DIGEST)
    found = next(reading)
    eventually(lambda: relay._reads.stalled_for_s(reading._task) > 0.05, "the thread to wait")
    assert found + b"".join(reading) == CONTENT


def test_the_store_is_not_read_far_ahead(relay: Relay, path: Path) -> None:
    """A large object is never in memory as a whole."""
    relay.put(DIGEST, path)
    reading = relay.read(DIGEST)
    eventually(lambda: len(reading._chunks) == 2, "the thread to wait")
    next(reading)
    eventually(lambda: len(reading._chunks) == 2, "the thread to go on")
    reading.close()
