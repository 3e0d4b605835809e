"""`gear gc`: what goes, what stays, and what it says."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gear_plugin.catalog import Catalog, ImageRecord, open_catalog
from gear_plugin.content import DirectoryProfiles, DirectoryStore, Trash, announce, until_named
from gear_plugin.digest import Digest, object_id
from gear_plugin.errors import (
    Conflict,
    ContentCorrupt,
    ContentNotFound,
    GearError,
    SourceUnavailable,
    TimedOut,
)
from gear_plugin.jobs import collect as job
from gear_plugin.jobs.collect import Collection, Patience, collect
from gear_plugin.names import ImageId
from tests.unit.jobs.fakes import Recorder

DAY_S = 24 * 3600.0
APP, OTHER = ImageId("app", "1"), ImageId("other", "1")
TEXT = b"the same line again\n" * 1000
AT_ONCE = Patience(settle_s=0, wait_s=0)


class World:
    """A store, its catalog, and pushes of images of plain contents."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "store"
        self.store = DirectoryStore.create(self.root)
        self.catalog: Catalog = open_catalog(f"sqlite://{folder}/catalog")
        self.files = folder / "files"
        self.files.mkdir()

    def put(self, *contents: bytes, age_s: float = 2 * DAY_S) -> None:
        """Into the store, as if it had been done so long ago."""
        for content in contents:
            path = self.files / Digest.of(content).hex
            path.write_bytes(content)
            self.store.put(Digest.of(content), path)
            self.age(content, age_s)

    def age(self, content: bytes, age_s: float) -> None:
        then_s = time.time() - age_s
        for path in self.paths(content):
            os.utime(path, (then_s, then_s))

    def paths(self, content: bytes, folder: str = "objects") -> list[Path]:
        return list(self.root.glob(f"{folder}/{Digest.of(content).shard_path}*"))

    def name(self, image: ImageId, *contents: bytes) -> None:
        digests = map(Digest.of, contents)
        objects = {object_id(str(image), digest.raw): digest for digest in digests}
        record = ImageRecord(
            image, image.gear, index(image), Digest.of(b"o"), Digest.of(b"m"), 1, 1, 0
        )
        self.catalog.put_image(record, objects)

    def collect(
        self, *, grace_s: float = DAY_S, patience: Patience = AT_ONCE, **options: bool
    ) -> Collection:
        return collect(
            self.root, self.catalog, Recorder(), grace_s=grace_s, patience=patience, **options
        )

    def has(self, content: bytes) -> bool:
        return self.store.has(Digest.of(content))

    def read(self, content: bytes) -> bytes:
        with self.store.read(Digest.of(content)) as chunks:
            return b"".join(chunks)


def index(image: ImageId) -> Digest:
    return Digest.of(str(image).encode())


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_what_no_image_needs_goes(world: World) -> None:
    """
    In both forms; shared objects stay as long as one image needs them.
    """
    world.put(b"shared", b"app's", b"other's", TEXT)
    world.name(APP, b"shared", b"app's")
    world.name(OTHER, b"shared", b"other's")
    world.catalog.remove_image(APP)
    text_bytes = world.store.size(Digest.of(TEXT))
    done = world.collect()
    assert not world.has(b"app's")
    assert not world.has(TEXT)
    assert (done.removed_objects, done.removed_bytes) == (2, 5 + text_bytes)
    assert (done.kept_objects, done.kept_bytes, done.images) == (2, 13, 1)
    assert world.read(b"shared") == b"shared"
    assert world.read(b"other's") == b"other's"
    assert list(world.root.glob("trash/*")) == []


def test_what_was_named_by_itself_stays(world: World) -> None:
    """
    As objects are that come through a manager, before their image has a record.
    """
    world.put(b"loose", b"gone")
    world.catalog.name_object(object_id("app:1", b"path"), Digest.of(b"loose"))
    done = world.collect()
    assert (done.kept_objects, done.removed_objects, done.images) == (1, 1, 0)
    assert world.has(b"loose")


def test_what_was_stored_lately_stays(world: World) -> None:
    """
    By the clock that stamps the files; 0 lets it go at once.
    """
    world.put(b"new", age_s=3600)
    world.put(b"from the future", age_s=-3600)
    world.name(APP)
    done = world.collect(may_empty=True)
    assert (done.removed_objects, done.recent_objects, done.recent_bytes) == (0, 2, 18)
    assert world.has(b"new")
    assert world.collect(grace_s=0, may_empty=True).removed_objects == 2


def test_a_dry_run_only_counts(world: World) -> None:
    """
    The same numbers, and nothing has changed.
    """
    world.put(b"kept", b"gone")
    world.name(APP, b"kept")
    before = sorted(world.root.rglob("*/*"))
    dry = world.collect(is_dry_run=True)
    assert sorted(world.root.rglob("*/*")) == before
    done = world.collect()
    assert dry.dry_run
    assert not done.dry_run
    for field in ("removed_objects", "removed_bytes", "kept_objects", "kept_bytes", "images"):
        assert getattr(dry, field) == getattr(done, field)


def test_objects_of_a_catalog_without_objects_are_not_touched(world: World) -> None:
    """
    It is most likely the wrong catalog; the message says how to insist.
    """
    world.put(b"content")
    with pytest.raises(Conflict, match="--everything"):
        world.collect()
    assert world.has(b"content")
    assert world.collect(may_empty=True).removed_objects == 1
    assert world.collect().removed_objects == 0  # an empty store and no images: all is well


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path, world: World) -> None:
    """
    A share that is not mounted is not an empty store.
    """
    (tmp_path / "share").mkdir()
    with pytest.raises(SourceUnavailable, match="is it mounted"):
        collect(tmp_path / "share", world.catalog, Recorder(), grace_s=0)
    assert list((tmp_path / "share").iterdir()) == []


def test_what_a_push_under_way_may_rely_on_waits_in_the_trash(world: World) -> None:
    """
    Readable all the time; back in its place when it is named, gone when it is not.
    """
    world.put(b"relied on", b"nobody's")
    world.name(APP)
    announcement = world.store.announce()
    assert world.has(b"relied on")
    done = world.collect(may_empty=True)
    assert (done.removed_objects, done.waiting_objects, done.pushes) == (0, 2, 1)
    assert not world.has(b"relied on")
    assert world.read(b"relied on") == b"relied on"
    assert world.store.size(Digest.of(b"relied on")) == 9
    world.name(APP, b"relied on")
    assert announcement.withdraw()
    done = world.collect()
    assert (done.removed_objects, done.waiting_objects, done.pushes) == (1, 0, 0)
    assert (done.kept_objects, done.missing_objects) == (1, 0)
    assert world.has(b"relied on")
    with pytest.raises(ContentNotFound):
        world.read(b"nobody's")


def test_a_dead_push_is_not_waited_for(world: World) -> None:
    """
    One that was not renewed for a quarter of an hour, and one that an hour's wrong clock stamped.
    """
    world.put(b"content")
    world.name(APP)
    for number, age_s in enumerate((1000, 3600, -3600)):
        path = world.root / "pushes" / f"{number:016x}"
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (time.time() - age_s,) * 2)
    assert world.collect(may_empty=True).removed_objects == 1
    assert list(world.root.glob("pushes/*")) == []


def pushed(world: World, put: Callable[[], None], name: Callable[[], None]) -> None:
    """A push of one object that is there already, with something happening on the way."""

    def puts() -> None:
        world.store.put(Digest.of(b"content"), world.files / Digest.of(b"content").hex)
        put()

    def names() -> None:
        name()
        world.name(APP, b"content")

    until_named(world.store, lambda _: puts(), names)


@pytest.mark.parametrize("when", ["before it names", "while it names"])
def test_a_push_that_was_taken_for_dead_makes_good(world: World, when: str) -> None:
    """
    What it found in the store is sent again: it had slept too long.
    """
    world.put(b"content")
    world.name(OTHER)
    slept: list[Collection] = []

    def sleep() -> None:
        if not slept:
            patience = Patience(settle_s=0, wait_s=0, dead_after_s=0)
            slept.append(world.collect(may_empty=True, patience=patience))

    steps: list[Callable[[], None]] = [lambda: None, lambda: None]
    steps[when == "while it names"] = sleep
    pushed(world, *steps)
    assert slept[0].removed_objects == 1
    assert world.has(b"content")
    assert list(world.root.glob("pushes/*")) == []


def test_an_announcement_lasts_until_it_is_withdrawn(world: World) -> None:
    """
    Renewing keeps it young; whose was given up is told so.
    """
    first, second = world.store.announce(), world.store.announce()
    assert len(Trash(world.root).announced(900).live) == 2
    for path in world.root.glob("pushes/*"):
        os.utime(path, (0, 0))
    assert first.stands()
    announced = Trash(world.root).announced(900)
    assert (len(announced.live), len(announced.dead)) == (1, 1)
    for name in announced.dead:
        Trash(world.root).give_up(name)
    assert not second.stands()
    assert [first.withdraw(), second.withdraw()] == [True, False]


def test_an_announcement_is_touched_now_and_then(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Not for every object; and one that was given up is not made again by that.
    """
    announcement = world.store.announce()
    (path,) = world.root.glob("pushes/*")
    os.utime(path, (0, 0))
    announcement.renew()
    assert path.stat().st_mtime == 0
    monkeypatch.setattr(announce, "_RENEW_S", 0.0)
    announcement.renew()
    assert path.stat().st_mtime > time.time() - 60
    path.unlink()
    announcement.renew()
    assert not path.exists()


@pytest.mark.parametrize("error", [ContentCorrupt("changed"), TimedOut("the catalog hangs")])
def test_a_push_that_fails_does_not_hold_up_collections(world: World, error: GearError) -> None:
    """
    It takes its announcement back; so does one that is interrupted.
    """
    for raised in (error, KeyboardInterrupt()):

        def name(raised: BaseException = raised) -> None:
            raise raised

        with pytest.raises(type(raised)):
            until_named(world.store, lambda _: None, name)
        assert list(world.root.glob("pushes/*")) == []


def test_a_store_that_hangs_is_not_waited_for_when_a_push_fails(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Its announcement is left, and dies.
    """
    answered = threading.Event()
    monkeypatch.setattr(announce, "_LAST_TRY_S", 0.01)
    monkeypatch.setattr(Path, "unlink", lambda _path: answered.wait(60))

    def put(_: object) -> None:
        raise TimedOut("the store hangs")

    with pytest.raises(TimedOut, match="the store hangs"):
        until_named(world.store, put, lambda: None)
    assert len(list(world.root.glob("pushes/*"))) == 1
    answered.set()


def test_other_machines_get_time_to_notice(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    On a share, before pushes are looked for; not if there is nothing to remove.
    """
    monkeypatch.setattr(job, "is_local", lambda _root: False)
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    world.name(APP)
    world.collect(may_empty=True, patience=Patience())
    assert slept == []
    world.put(b"content")
    assert world.collect(may_empty=True, patience=Patience()).removed_objects == 1
    assert slept == [75.0]


def test_what_a_dead_collector_left_is_finished(world: World) -> None:
    """
    Needed: back in its place, even if it was pushed again meanwhile.  Else: gone.
    """
    world.put(b"needed", b"again", b"garbage")
    for file in list(Trash(world.root).objects()):
        assert Trash(world.root).throw(file)
    world.put(b"again")
    world.name(APP, b"needed", b"again")
    done = world.collect()
    assert (done.removed_objects, done.missing_objects) == (1, 0)
    assert all(map(world.has, (b"needed", b"again")))
    assert list(world.root.glob("trash/*")) == []


def test_a_reader_that_has_an_object_open_reads_on(world: World) -> None:
    """
    To its end, whatever is removed.
    """
    world.put(TEXT)
    world.name(APP)
    with world.store.read(Digest.of(TEXT)) as chunks:
        assert world.collect(may_empty=True).removed_objects == 1
        assert b"".join(chunks) == TEXT


def test_other_files_are_left_alone(world: World) -> None:
    """
    What people put there is theirs.
    """
    theirs = [world.root / "objects" / "README", world.root / "objects" / "abc" / "note"]
    theirs[1].parent.mkdir()
    for path in theirs:
        path.write_text("mine")
    world.name(APP)
    world.collect(grace_s=0, may_empty=True)
    assert all(path.exists() for path in theirs)


def test_objects_that_are_missing_are_counted(world: World) -> None:
    """
    `gear verify` says which.
    """
    world.put(b"there")
    world.name(APP, b"there", b"not there")
    done = world.collect()
    assert (done.kept_objects, done.missing_objects) == (1, 1)


def test_start_profiles_go_with_their_image(world: World) -> None:
    """
    Those of images in the catalog stay, and so do young ones.
    """
    world.put(b"x")
    world.name(APP, b"x")
    profiles = DirectoryProfiles(world.root)
    known, old, young = index(APP), index(OTHER), Digest.of(b"another index")
    for image in (known, old, young):
        profiles.save(image, [Digest.of(b"x")])
    for image in (known, old):
        os.utime(world.root / "profiles" / image.hex, (1, 1))
    assert world.collect(is_dry_run=True).profiles == 1
    assert world.collect().profiles == 1
    assert [bool(profiles.load(image)) for image in (known, old, young)] == [True, False, True]


def test_leftovers_of_dead_writers_go(world: World) -> None:
    """
    As a push does it.
    """
    left = world.root / "incoming" / ".tmp-0123456789abcdef"
    left.touch()
    os.utime(left, (1, 1))
    world.name(APP)
    assert world.collect().leftovers == 1
    assert not left.exists()


def test_a_store_that_hangs_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The message names it.
    """
    world.name(APP)
    answered = threading.Event()
    monkeypatch.setattr(Trash, "objects", lambda _self: iter(lambda: answered.wait(60), True))
    with pytest.raises(TimedOut, match=f"store {world.root} has not moved"):
        world.collect(may_empty=True, patience=Patience(stall_s=0.2, settle_s=0))
    answered.set()
