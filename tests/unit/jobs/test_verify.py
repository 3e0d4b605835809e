"""`gear verify`: what is damaged or missing is found, and put right."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gear_plugin.content import Cache, DirectoryStore, FileSource
from gear_plugin.digest import Digest
from gear_plugin.errors import SourceUnavailable
from gear_plugin.jobs.verify import Repair, Verification, verify_cache, verify_store
from tests.unit.jobs.fakes import Recorder

TEXT = b"the same line again\n" * 1000
LARGE = b"many chunks " * 300_000
IMAGES = {"app-gear:1": [TEXT, LARGE], "other-gear:1": [b"small", LARGE]}


def needs() -> Iterator[tuple[str, frozenset[Digest]]]:
    for image, contents in IMAGES.items():
        yield image, frozenset(map(Digest.of, contents))


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


class Place:
    """A store with all of the images' objects, and sources of good copies."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "store"
        self.store = DirectoryStore.create(self.root)
        self.good = folder / "good"
        self.bad = folder / "bad"
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        for content in (TEXT, LARGE, b"small", b"unneeded"):
            path = self.good / Digest.of(content).shard_path
            path.parent.mkdir(parents=True)
            path.write_bytes(content)
            self.store.put(Digest.of(content), path)

    def path(self, content: bytes) -> Path:
        (path,) = self.root.glob(f"objects/{Digest.of(content).shard_path}*")
        return path

    def verify(self, *, repair: bool = False, everything: bool = True) -> Verification:
        sources = [FileSource("bad", self.bad), FileSource("good", self.good)]
        return verify_store(
            self.root,
            needs,
            Recorder(),
            everything=everything,
            repair=Repair(lambda _digest: sources, self.scratch) if repair else None,
        )

    def read(self, content: bytes) -> bytes:
        with self.store.read(Digest.of(content)) as chunks:
            return b"".join(chunks)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_sound_store(place: Place) -> None:
    """
    Every file is read; the bytes are those on disk.
    """
    done = place.verify()
    assert done.is_good
    assert (done.objects, done.problems) == (4, [])
    assert done.size_bytes == sum(path.stat().st_size for path in place.root.glob("objects/*/*"))


@pytest.mark.parametrize("content", [TEXT, LARGE, b"small"], ids=["text", "large", "small"])
def test_damage_is_found(place: Place, content: bytes) -> None:
    """
    Wrong bytes, and what is no zstd frame any more; with the images that need it.
    """
    damage(place.path(content))
    done = place.verify()
    (problem,) = done.problems
    assert not done.is_good
    assert (problem.digest, problem.problem, problem.action) == (
        str(Digest.of(content)),
        "damaged",
        None,
    )
    assert problem.place == str(place.path(content))
    assert problem.images == [image for image, contents in IMAGES.items() if content in contents]


def test_only_objects_of_the_named_images_are_read(place: Place) -> None:
    """
    And the damage of others is not looked for.
    """
    damage(place.path(b"unneeded"))
    assert place.verify(everything=False).objects == 3
    assert place.verify(everything=False).is_good
    assert not place.verify().is_good


@pytest.mark.parametrize("everything", [True, False])
def test_missing_objects_are_found_and_replaced(place: Place, everything: bool) -> None:
    """
    Once each, however many images need them.
    """
    place.path(LARGE).unlink()
    (problem,) = place.verify(everything=everything).problems
    assert (problem.problem, problem.digest) == ("missing", str(Digest.of(LARGE)))
    assert problem.images == list(IMAGES)
    done = place.verify(everything=everything, repair=True)
    assert [problem.action for problem in done.problems] == ["replaced"]
    assert done.is_good
    assert place.read(LARGE) == LARGE
    assert place.verify(everything=everything).problems == []


def test_a_damaged_object_is_replaced_by_a_good_copy(place: Place) -> None:
    """
    A source with wrong bytes of its own is passed over; nothing is left behind.
    """
    damage(place.path(TEXT))
    wrong = place.bad / Digest.of(TEXT).shard_path
    wrong.parent.mkdir(parents=True)
    wrong.write_bytes(b"wrong")
    done = place.verify(repair=True)
    assert [problem.action for problem in done.problems] == ["replaced"]
    assert done.is_good
    assert place.read(TEXT) == TEXT
    assert list(place.root.glob("damaged/*/*")) == []
    assert list(place.scratch.iterdir()) == []


def test_without_a_good_copy_it_is_moved_aside(place: Place) -> None:
    """
    So that nobody reads it, and a push of its image stores it again.
    """
    data = b"damaged" * 100
    place.path(TEXT).unlink()
    path = place.root / "objects" / Digest.of(TEXT).shard_path
    path.write_bytes(data)
    (place.good / Digest.of(TEXT).shard_path).unlink()
    done = place.verify(repair=True)
    assert [problem.action for problem in done.problems] == ["moved aside"]
    assert not done.is_good
    assert (place.root / "damaged" / Digest.of(TEXT).shard_path).read_bytes() == data
    (problem,) = place.verify().problems
    assert problem.problem == "missing"
    source = place.good / Digest.of(TEXT).shard_path
    source.write_bytes(TEXT)
    assert place.store.put(Digest.of(TEXT), source)
    assert place.verify().is_good


def test_of_two_forms_the_good_one_is_left(place: Place) -> None:
    """
    Each form is looked at by itself.
    """
    raw = place.root / "objects" / Digest.of(TEXT).shard_path
    raw.write_bytes(TEXT[:-1])
    (place.good / Digest.of(TEXT).shard_path).unlink()
    done = place.verify(repair=True)
    assert [(problem.place, problem.action) for problem in done.problems] == [
        (str(raw), "replaced")
    ]
    assert place.read(TEXT) == TEXT


@pytest.mark.parametrize("repair", [False, True])
def test_what_the_disk_cannot_read_is_left_where_it_is(
    place: Place, monkeypatch: pytest.MonkeyPatch, repair: bool
) -> None:
    """
    A share whose server is away may say the same of every file.
    """
    path, original = place.path(b"small"), os.read

    def read(handle: int, count: int) -> bytes:
        if os.readlink(f"/proc/self/fd/{handle}") == str(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(handle, count)

    monkeypatch.setattr(os, "read", read)
    (problem,) = place.verify(repair=repair).problems
    assert (problem.problem, problem.action) == ("unreadable", None)
    assert path.exists()


def test_no_store_is_no_sound_store(tmp_path: Path) -> None:
    """
    A share that is not mounted has nothing damaged, and is not all right.
    """
    with pytest.raises(SourceUnavailable, match="is it mounted"):
        verify_store(tmp_path, needs, Recorder(), everything=True)


IMAGE, SECOND = Digest.of(b"image"), Digest.of(b"second")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """With two images that share an object."""
    cache = Cache(tmp_path / "node", 0)
    for image in (IMAGE, SECOND):
        cache.admit(image)
    for content in (TEXT, LARGE, b"small"):
        cache.publish(IMAGE, Digest.of(content), iter([content]))
        cache.link(SECOND, Digest.of(content))
    return cache


def check(tmp_path: Path, *, repair: bool = False, everything: bool = True) -> Verification:
    return verify_cache(
        [tmp_path / "node"], needs, Recorder(), everything=everything, repair=repair
    )


def test_a_sound_cache(cache: Cache, tmp_path: Path) -> None:
    """
    Every object once, whatever its names.
    """
    done = check(tmp_path)
    assert (done.objects, done.problems) == (3, [])


def test_all_names_of_a_damaged_cache_entry_go(cache: Cache, tmp_path: Path) -> None:
    """
    A private link alone would bring the wrong bytes back.
    """
    damage(cache.path(Digest.of(TEXT)))
    (problem,) = check(tmp_path).problems
    assert (problem.problem, problem.action) == ("damaged", None)
    done = check(tmp_path, repair=True)
    assert [problem.action for problem in done.problems] == ["removed"]
    assert done.is_good
    assert not cache.has(Digest.of(TEXT))
    assert not cache.link(IMAGE, Digest.of(TEXT))
    assert not cache.link(SECOND, Digest.of(TEXT))
    assert check(tmp_path).objects == 2
    cache.publish(IMAGE, Digest.of(TEXT), iter([TEXT]))
    assert check(tmp_path).problems == []


def test_a_private_link_that_stands_alone_is_looked_at(cache: Cache, tmp_path: Path) -> None:
    """
    The next fetch would give it its public name back.
    """
    cache.path(Digest.of(TEXT)).unlink()
    damage(tmp_path / "node" / "private" / IMAGE.hex / Digest.of(TEXT).shard_path)
    done = check(tmp_path, repair=True)
    assert {problem.action for problem in done.problems} == {"removed"}
    assert not cache.link(IMAGE, Digest.of(TEXT))
    assert not cache.link(SECOND, Digest.of(TEXT))


def test_a_client_that_links_it_back_meanwhile(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Is no match for the one who removes it.
    """
    damage(cache.path(Digest.of(TEXT)))
    original = Path.unlink
    links: list[bool] = []

    def unlink(path: Path, missing_ok: bool = False) -> None:
        original(path, missing_ok=missing_ok)
        if path.match("private/*/*/*") and len(links) < 2:
            links.append(cache.link(IMAGE, Digest.of(TEXT)))

    monkeypatch.setattr(Path, "unlink", unlink)
    assert check(tmp_path, repair=True).is_good
    assert any(links)
    assert not cache.link(IMAGE, Digest.of(TEXT))
    assert not cache.link(SECOND, Digest.of(TEXT))


def test_who_has_a_damaged_entry_open_keeps_it(cache: Cache, tmp_path: Path) -> None:
    """
    Names go, not files.
    """
    path = cache.path(Digest.of(b"small"))
    damage(path)
    with path.open("rb") as opened:
        check(tmp_path, repair=True)
        assert os.fstat(opened.fileno()).st_nlink == 0
        assert len(opened.read()) == 5


def test_only_what_named_images_have_is_looked_at(cache: Cache, tmp_path: Path) -> None:
    """
    What they have not is not missing: it is fetched when it is opened.
    """
    cache.publish(IMAGE, Digest.of(b"unneeded"), iter([b"unneeded"]))
    damage(cache.path(Digest.of(b"unneeded")))
    done = check(tmp_path, everything=False)
    assert (done.objects, done.problems) == (3, [])
