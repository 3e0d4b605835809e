"""
Pushes, removals and collections of garbage, one system call at a time, in an
order that a seed decides.

Each *actor* is a thread that stops before every call that touches the store or
the catalog; the stage then lets one of them go on, or kills it.  Between two
steps nothing moves, so what must always hold can be looked at.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest

from gear_plugin.catalog import ImageRecord, MemoryCatalog
from gear_plugin.digest import Digest
from gear_plugin.names import ImageId

T = TypeVar("T")

GATED = ["link", "rename", "unlink", "stat", "open", "utime"]
GATED += ["listdir", "scandir", "mkdir", "makedirs", "rmdir"]


class Killed(BaseException):
    """The actor is no more."""


class _Actor(threading.Thread):
    def __init__(self, stage: Stage, work: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self.go = threading.Semaphore(0)
        self.is_killed = False
        self.is_done = False
        self.failure: BaseException | None = None
        self._stage = stage
        self._work = work

    def run(self) -> None:
        self._stage.local.actor = self
        self.go.acquire()
        try:
            self._work()
        except Killed:
            pass
        except BaseException as error:
            self.failure = error
        self.is_done = True
        self._stage.stopped.release()

    def gate(self) -> None:
        """Wait for the next turn."""
        self._stage.stopped.release()
        self.go.acquire()
        if self.is_killed:
            raise Killed


class Stage:
    """Lets actors go one step at a time; *watch* is called between all steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.stopped = threading.Semaphore(0)
        self.local = threading.local()
        self._folder = str(folder)
        for name in GATED:
            monkeypatch.setattr(os, name, self._gated(getattr(os, name)))
        monkeypatch.setattr(time, "sleep", lambda _s: self.gate())
        monkeypatch.setattr(os, "fsync", lambda _handle: None)  # no power fails here
        self._actors: list[_Actor] = []

    def actor(self, work: Callable[[], None]) -> None:
        """Another actor."""
        self._actors.append(_Actor(self, work))

    def gate(self) -> None:
        """An actor's next step begins; nothing for anybody else."""
        actor = getattr(self.local, "actor", None)
        if actor is not None:
            actor.gate()

    def play(self, watch: Callable[[], None], *, kills: int = 0) -> None:
        """Run to the end, killing some on the way."""
        for actor in self._actors:
            actor.start()
        steps = 0
        while left := [actor for actor in self._actors if not actor.is_done]:
            # Bursts, or no actor would ever finish something while another stands.
            actor = self.random.choice(left)
            for _ in range(self.random.choice((1, 1, 3, 10, 50))):
                if kills and steps > 20 and self.random.random() < 0.005:
                    kills -= 1
                    actor.is_killed = True
                actor.go.release()
                self.stopped.acquire()
                steps += 1
                watch()
                if actor.is_done:
                    break
            assert steps < 100_000, "it never ends"
        for actor in self._actors:
            if actor.failure is not None:
                raise actor.failure

    def _gated(self, function: Callable[..., T]) -> Callable[..., T]:
        def call(*arguments: Any, **words: Any) -> T:
            if arguments and str(arguments[0]).startswith(self._folder):
                self.gate()
            return function(*arguments, **words)

        return call


class GatedCatalog(MemoryCatalog):
    """Stops before each call."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self._stage = stage

    def put_image(self, record: ImageRecord, objects: Mapping[str, Digest]) -> None:
        self._stage.gate()
        super().put_image(record, objects)

    def list_images(self) -> list[ImageRecord]:
        self._stage.gate()
        return super().list_images()

    def objects_of(self, image: ImageId) -> frozenset[Digest]:
        self._stage.gate()
        return super().objects_of(image)

    def remove_image(self, image: ImageId) -> bool:
        self._stage.gate()
        return super().remove_image(image)

    def needed(self) -> set[Digest]:
        """What the records name now."""
        return {digest for _, objects in self._images.values() for digest in objects.values()}


class Unwatched:
    """A `Watch` that calls in the caller's thread."""

    def __init__(self, *_: object) -> None:
        pass

    def moved(self) -> None:
        pass

    def call(self, function: Callable[[], T]) -> T:
        return function()

    def run(self, function: Callable[[T], None], items: Iterable[T], *, threads: int) -> None:
        for item in items:
            function(item)
