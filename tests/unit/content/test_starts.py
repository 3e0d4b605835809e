"""Start profiles: learned from one start, fetched ahead of the next."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from gear_plugin.content import (
    Cache,
    DirectoryProfiles,
    DirectoryStore,
    Fetcher,
    MemoryStore,
    Starts,
    starts,
)
from gear_plugin.content.profiles import MAX_OBJECTS
from gear_plugin.digest import Digest
from tests.waiting import eventually

IMAGE = Digest.of(b"the index")
CONTENTS = [b"%d" % number for number in range(40)]
OBJECTS = [Digest.of(content) for content in CONTENTS]
OTHER = Digest.of(b"of another image")


class Noted:
    """Profiles in memory."""

    def __init__(self) -> None:
        self.kept: dict[Digest, list[Digest]] = {}
        self.saved = threading.Event()
        self.loads = 0

    def load(self, image: Digest) -> list[Digest]:
        self.loads += 1
        return list(self.kept.get(image, ()))

    def save(self, image: Digest, wanted: Sequence[Digest]) -> bool:
        self.kept[image] = list(wanted)
        self.saved.set()
        return True


@pytest.fixture
def profiles() -> Noted:
    return Noted()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    cache = Cache(tmp_path / "gear", 0)
    cache.admit(IMAGE)
    return cache


@pytest.fixture
def fetcher(tmp_path: Path, cache: Cache) -> Fetcher:
    store = MemoryStore()
    for content in CONTENTS:
        (tmp_path / "file").write_bytes(content)
        store.put(Digest.of(content), tmp_path / "file")
    return Fetcher(cache, [store], stall_s=5, timeout_s=5, workers=8)


def size_of(_: Digest, digest: Digest) -> int | None:
    return 2 if digest in OBJECTS else None


@pytest.fixture
def make(fetcher: Fetcher, profiles: Noted) -> Iterator[Callable[..., Starts]]:
    made: list[Starts] = []

    def make(**settings: float) -> Starts:
        room = int(settings.pop("room_bytes", 10**9))
        timing = {"quiet_s": 0.2} | settings
        made.append(Starts(fetcher, profiles, size_of, lambda: room, **timing))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.forgotten(IMAGE)
        one.stop()


def test_what_one_start_opened_the_next_one_gets(
    make: Callable[..., Starts], profiles: Noted, cache: Cache
) -> None:
    """
    In the order of the first opens; the second node asks for nothing by itself.
    """
    first = make()
    first.mounted(IMAGE)
    for digest in (OBJECTS[3], OBJECTS[1], OBJECTS[3], OBJECTS[2]):
        first.opened(IMAGE, digest)
    assert profiles.saved.wait(10)
    assert profiles.kept[IMAGE] == [OBJECTS[3], OBJECTS[1], OBJECTS[2]]

    make().mounted(IMAGE)
    eventually(lambda: all(cache.has(OBJECTS[number]) for number in (1, 2, 3)))
    assert not cache.has(OBJECTS[0])


def test_a_profile_gains_what_later_starts_open(
    make: Callable[..., Starts], profiles: Noted
) -> None:
    """
    Behind what is known; nothing new, nothing written.
    """
    profiles.kept[IMAGE] = [OBJECTS[5], OBJECTS[6]]
    one = make()
    one.mounted(IMAGE)
    one.opened(IMAGE, OBJECTS[6])
    one.opened(IMAGE, OBJECTS[7])
    one.forgotten(IMAGE)  # at once, not only after the start's time
    assert profiles.saved.wait(10)
    assert profiles.kept[IMAGE] == OBJECTS[5:8]
    profiles.saved.clear()
    one.mounted(IMAGE)
    one.opened(IMAGE, OBJECTS[5])
    one.forgotten(IMAGE)
    time.sleep(0.3)
    assert not profiles.saved.is_set()


def test_only_the_images_own_objects_and_not_too_many(
    make: Callable[..., Starts],
    profiles: Noted,
    cache: Cache,
    fetcher: Fetcher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    The store may say anything; a container that reads everything teaches the beginning.
    """
    monkeypatch.setattr(starts, "LIMIT_BYTES", 20)
    profiles.kept[IMAGE] = [OTHER, *OBJECTS, *OBJECTS]
    one = make()
    one.mounted(IMAGE)
    eventually(lambda: all(map(cache.has, OBJECTS[:10])))
    for digest in OBJECTS:
        one.opened(IMAGE, digest)
    one.forgotten(IMAGE)
    assert profiles.saved.wait(10)
    assert profiles.kept[IMAGE] == OBJECTS[:10]
    assert fetcher.counts().objects == 10


def test_a_nearly_full_disk_is_left_to_what_is_opened(
    make: Callable[..., Starts], profiles: Noted, cache: Cache, fetcher: Fetcher
) -> None:
    """
    What was fetched ahead of a running container could not be evicted again.
    """
    profiles.kept[IMAGE] = list(OBJECTS)
    make(room_bytes=24).mounted(IMAGE)  # a quarter of it holds three
    eventually(lambda: cache.has(OBJECTS[2]))
    time.sleep(0.2)
    assert fetcher.counts().objects == 3


def test_opens_long_after_the_start_teach_nothing(
    make: Callable[..., Starts], profiles: Noted
) -> None:
    """
    Another mount of the image is another start.
    """
    one = make(window_s=0.1, quiet_s=0.1)
    one.mounted(IMAGE)
    eventually(lambda: not one._starts)
    one.opened(IMAGE, OBJECTS[0])
    one.mounted(IMAGE)
    one.opened(IMAGE, OBJECTS[1])
    assert profiles.saved.wait(10)
    assert profiles.kept[IMAGE] == [OBJECTS[1]]


def test_many_mounts_fetch_once(make: Callable[..., Starts], profiles: Noted, cache: Cache) -> None:
    """
    A second container finds everything here; an image that left and came back is new.
    """
    profiles.kept[IMAGE] = OBJECTS[:3]
    one = make(quiet_s=60.0)
    for _ in range(5):
        one.mounted(IMAGE)
    eventually(lambda: cache.has(OBJECTS[2]))
    assert profiles.loads == 1
    one.forgotten(IMAGE)
    eventually(lambda: not one._starts)
    cache.forget(IMAGE)
    cache.admit(IMAGE)
    one.mounted(IMAGE)
    eventually(lambda: profiles.loads == 2)


def test_profiles_in_a_directory(tmp_path: Path) -> None:
    """
    What was saved is loaded; what is damaged, or not there, is nothing.
    """
    DirectoryStore.create(tmp_path)
    kept = DirectoryProfiles(tmp_path)
    assert kept.load(IMAGE) == []
    assert kept.save(IMAGE, OBJECTS)
    assert kept.save(IMAGE, OBJECTS[::-1])
    assert DirectoryProfiles(tmp_path).load(IMAGE) == OBJECTS[::-1]
    path = tmp_path / "profiles" / IMAGE.hex
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], b"x" + whole[1:]):
        path.chmod(0o600)
        path.write_bytes(damaged)
        assert kept.load(IMAGE) == []
    assert kept.save(IMAGE, [Digest.of(b"%d" % n) for n in range(MAX_OBJECTS + 5)])
    assert len(kept.load(IMAGE)) == MAX_OBJECTS


def test_a_store_that_is_not_there_is_not_filled(tmp_path: Path) -> None:
    """
    Most likely a share that is not mounted; no profile is no failure.
    """
    assert not DirectoryProfiles(tmp_path / "nowhere").save(IMAGE, OBJECTS)
    assert DirectoryProfiles(tmp_path / "nowhere").load(IMAGE) == []
    assert not (tmp_path / "nowhere").exists()
