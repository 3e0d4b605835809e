"""Nothing that a record names is ever lost, in whatever order things happen."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import pytest

from gear_plugin.catalog import ImageRecord
from gear_plugin.content import DirectoryStore, until_named
from gear_plugin.digest import Digest, object_id
from gear_plugin.jobs import collect as job
from gear_plugin.jobs.collect import Patience, collect
from gear_plugin.jobs.progress import Silent
from gear_plugin.names import ImageId
from tests.unit.jobs.interleaved import GatedCatalog, Stage, Unwatched

T = TypeVar("T")

CONTENTS = [b"%d" % number for number in range(4)]
IMAGES = {
    ImageId("a", "1"): CONTENTS[:2],
    ImageId("b", "1"): CONTENTS[1:3],
    ImageId("c", "1"): CONTENTS[2:],
}
SEEDS = range(60)


class World:
    """A store and a catalog, and those who use them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
        monkeypatch.setattr(job, "Watch", Unwatched)
        self.root = folder / "store"
        self.store = DirectoryStore.create(self.root)
        self.files = folder / "files"
        self.files.mkdir()
        for content in CONTENTS:
            (self.files / Digest.of(content).hex).write_bytes(content)
        self.stage = Stage(monkeypatch, self.root, seed)
        self.random = self.stage.random
        self.catalog = GatedCatalog(self.stage)

    def push(self, image: ImageId) -> None:
        digests = [Digest.of(content) for content in IMAGES[image]]
        objects = {object_id(str(image), digest.hex.encode()): digest for digest in digests}
        record = ImageRecord(
            image, image.gear, Digest.of(b"i"), Digest.of(b"o"), Digest.of(b"m"), 2, 2, 0
        )
        until_named(
            self.store,
            lambda _: self.store.put_all(
                [(digest, self.files / digest.hex) for digest in digests], lambda _: None
            ),
            lambda: self.catalog.put_image(record, objects),
        )

    def pusher(self, times: int) -> None:
        self._actor(self.push, [self.random.choice(list(IMAGES)) for _ in range(times)])

    def remover(self, times: int) -> None:
        images = [self.random.choice(list(IMAGES)) for _ in range(times)]
        self._actor(self.catalog.remove_image, images)

    def collector(self, times: int, patience: Patience) -> None:
        self._actor(self.collect, [patience] * times)

    def _actor(self, function: Callable[[T], object], items: Iterable[T]) -> None:
        def work() -> None:
            for item in items:
                function(item)

        self.stage.actor(work)

    def collect(self, patience: Patience) -> job.Collection:
        return collect(
            self.root, self.catalog, Silent(), grace_s=0, may_empty=True, patience=patience
        )

    def is_readable(self, digest: Digest) -> bool:
        """Whether it is in its place or in the trash; looked at between any two steps."""
        trash = f"{self.root}/trash"
        runs = os.listdir(trash) if os.path.isdir(trash) else []
        folders = [f"{self.root}/objects", *(f"{trash}/{run}" for run in runs)]
        return any(os.path.exists(f"{folder}/{digest.shard_path}") for folder in folders)

    def in_place(self) -> set[Digest]:
        return {
            Digest.from_shard_path("/".join(path.parts[-2:]))
            for path in self.root.glob("objects/*/*")
        }

    def check_nothing_is_lost(self) -> None:
        assert all(self.is_readable(digest) for digest in self.catalog.needed())

    def check_next_collection_repairs(self) -> None:
        """Whatever was left: exactly what is needed is in its place, and nothing else is there."""
        self.collect(Patience(settle_s=0, dead_after_s=0))
        assert self.in_place() == self.catalog.needed()
        assert list(self.root.glob("trash/*")) == []
        assert list(self.root.glob("pushes/*")) == []
        for digest in self.in_place():
            with self.store.read(digest) as chunks:
                assert Digest.of(b"".join(chunks)) == digest


@pytest.mark.parametrize("seed", SEEDS)
def test_pushes_removals_and_collections_at_once(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    At every moment every object of every record can be read, and whoever is
    killed, the next collection leaves just those.
    """
    world = World(tmp_path, monkeypatch, seed)
    patience = Patience(settle_s=0, dead_after_s=float("inf"), wait_s=0)
    world.pusher(3)
    world.pusher(3)
    world.remover(4)
    world.collector(3, patience)
    world.collector(3, patience)
    world.stage.play(world.check_nothing_is_lost, kills=seed % 3)
    world.check_next_collection_repairs()


@pytest.mark.parametrize("seed", SEEDS)
def test_pushes_that_are_taken_for_dead(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Pushers that slept for long, or whose clock is wrong, find out and make good.
    """
    world = World(tmp_path, monkeypatch, seed)
    patience = Patience(settle_s=0, dead_after_s=0, wait_s=0)
    world.pusher(3)
    world.pusher(3)
    world.remover(4)
    world.collector(3, patience)
    world.stage.play(lambda: None)
    world.check_nothing_is_lost()
    world.check_next_collection_repairs()


@pytest.mark.parametrize("seed", range(20))
def test_a_collection_waits_for_pushes(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    As long as they live, and then it removes what is left.
    """
    world = World(tmp_path, monkeypatch, seed)
    world.pusher(1)
    world.pusher(1)
    world.collector(2, Patience(settle_s=0, dead_after_s=float("inf"), wait_s=1000))
    world.stage.play(world.check_nothing_is_lost)
    assert list(world.root.glob("trash/*")) == []
    world.check_next_collection_repairs()
