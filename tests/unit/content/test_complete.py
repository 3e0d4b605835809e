"""Completing images in the background."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gear_plugin.content import Cache, Completer, Fetcher, MemoryStore
from gear_plugin.digest import Digest
from gear_plugin.errors import ImageNotFound
from tests.waiting import eventually

NGINX = Digest.of(b"nginx index")
CONTENTS = [b"%d" % number for number in range(50)]
OBJECTS = [Digest.of(content) for content in CONTENTS]


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    cache = Cache(tmp_path / "gear", 0)
    cache.admit(NGINX)
    return cache


class Gated(MemoryStore):
    """A full store whose reads wait for the gate, and which counts readers."""

    def __init__(self, tmp_path: Path) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.reading = self.most = 0
        self._guard = threading.Lock()
        for content in CONTENTS:
            (tmp_path / "file").write_bytes(content)
            self.put(Digest.of(content), tmp_path / "file")

    @contextlib.contextmanager
    def read(self, digest: Digest) -> Iterator[Iterator[bytes]]:
        with self._guard:
            self.reading += 1
            self.most = max(self.most, self.reading)
        try:
            assert self.gate.wait(5)
            with super().read(digest) as chunks:
                yield chunks
        finally:
            with self._guard:
                self.reading -= 1


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Gated]:
    store = Gated(tmp_path)
    yield store
    store.gate.set()


@pytest.fixture
def fetcher(cache: Cache, store: Gated) -> Fetcher:
    return Fetcher(cache, [store], stall_s=5, timeout_s=5, workers=8)


def completer(fetcher: Fetcher) -> Completer:
    return Completer(fetcher, lambda _image: iter(OBJECTS * 2), width=3, first_pause_s=0.02)


def test_everything_comes(cache: Cache, fetcher: Fetcher, store: Gated) -> None:
    """A few at a time, each once, pinned; then the work is over."""
    work = completer(fetcher)
    work.start(NGINX)
    work.start(NGINX)
    eventually(lambda: store.reading == 3)
    assert work.pending() == {NGINX: len(OBJECTS)}
    store.gate.set()
    eventually(lambda: not work.pending())
    assert all(cache.path(digest).stat().st_nlink == 2 for digest in OBJECTS)
    assert store.most == 3
    assert fetcher.counts().objects == len(OBJECTS)


def test_failed_objects_are_tried_again(
    cache: Cache, fetcher: Fetcher, store: Gated, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With pauses, until they are there; the others do not wait for them."""
    store.gate.set()
    store.delete(OBJECTS[0])
    work = completer(fetcher)
    work.start(NGINX)
    eventually(lambda: fetcher.counts().failures >= 2)
    assert work.pending() == {NGINX: 1}
    assert all(cache.has(digest) for digest in OBJECTS[1:])
    assert "lacks 1 objects" in caplog.text
    (tmp_path / "file").write_bytes(CONTENTS[0])
    store.put(OBJECTS[0], tmp_path / "file")
    eventually(lambda: not work.pending())
    assert cache.has(OBJECTS[0])
    caplog.clear()


def test_stop_ends_the_work(cache: Cache, fetcher: Fetcher, store: Gated) -> None:
    """What was under way may come, nothing more; the image may be started again."""
    work = completer(fetcher)
    work.start(NGINX)
    eventually(lambda: store.reading == 3)
    work.stop(NGINX)
    work.stop(NGINX)
    assert work.pending() == {}
    store.gate.set()
    eventually(lambda: store.reading == 0)
    time.sleep(0.05)
    assert sum(cache.has(digest) for digest in OBJECTS) == 3
    work.start(NGINX)
    eventually(lambda: not work.pending())
    assert all(cache.has(digest) for digest in OBJECTS)


def test_forgotten_image_ends_the_work(cache: Cache, fetcher: Fetcher, store: Gated) -> None:
    """Also when nobody says stop."""
    work = completer(fetcher)
    work.start(NGINX)
    eventually(lambda: store.reading == 3)
    cache.forget(NGINX)
    store.gate.set()
    eventually(lambda: not work.pending())
    assert not any(cache.has(digest) for digest in OBJECTS)


def test_unknown_image_is_logged(fetcher: Fetcher, caplog: pytest.LogCaptureFixture) -> None:
    """The list of objects may be missing; that is a warning, and the end."""

    def objects_of(_image: Digest) -> list[Digest]:
        raise ImageNotFound("no such image here")

    work = Completer(fetcher, objects_of)
    work.start(NGINX)
    eventually(lambda: not work.pending())
    assert "no such image here" in caplog.text
    caplog.clear()
