"""
`gear gc`: what no image needs any more, out of the store.

Pushes go on meanwhile.  A push puts objects first and names them last, and
what it finds in the store already it does not send again: so an object that is
old and that nobody names may be named in a moment.  In this order:

1. see what the records need; throw into the trash what is old and they do not;
2. note what is in the trash, and wait until no machine believes it in its place;
3. wait until every push that is announced now has been withdrawn; the dead are
   given up;
4. see again what the records need; of what was noted, put that back, and
   remove the rest.

Why that loses nothing, whatever dies, sleeps or runs twice, and whatever the
clocks say: docs/decisions/0008-garbage-collection.md.  What is in the trash is
read as before (`DirectoryStore.read`).

Memory: about 100 bytes an object that is needed, 400 one that is not.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gear_plugin.catalog import Catalog
from gear_plugin.content import DirectoryProfiles, DirectoryStore, StoredFile, Trash
from gear_plugin.digest import Digest
from gear_plugin.durable import is_full, is_local
from gear_plugin.errors import Conflict, ImageNotFound, SourceUnavailable, StorageFull
from gear_plugin.jobs.progress import Progress
from gear_plugin.jobs.watched import Watch

DEAD_AFTER_S = 900.0
"""A push renews its announcement every minute, and gives up what stalls for 2."""
_SETTLE_S = 75.0
"""An NFS client believes what it knows of names for 60 s (nfs(5), acdirmax)."""
_WAIT_S = 600.0
_POLL_S = 1.0


@dataclass(slots=True)
class Collection:
    """What `gear gc` did, or with *dry_run* would do; bytes are those in the store."""

    dry_run: bool
    images: int = 0
    kept_objects: int = 0
    """Those that images need."""
    kept_bytes: int = 0
    missing_objects: int = 0
    """Those that images need and the store has not: see `gear verify`."""
    recent_objects: int = 0
    """Those that nobody needs and that are not old enough."""
    recent_bytes: int = 0
    removed_objects: int = 0
    removed_bytes: int = 0
    waiting_objects: int = 0
    """Those in the trash that stay there until pushes under way have ended."""
    waiting_bytes: int = 0
    pushes: int = 0
    """Those that are waited for."""
    profiles: int = 0
    """Start profiles removed."""
    leftovers: int = 0
    """Files that dead writers left, removed."""
    seconds: float = 0.0


@dataclass(slots=True)
class _Needs:
    """What the catalog names, as of a moment after it was asked."""

    images: int = 0
    indexes: set[Digest] = field(default_factory=set)
    objects: set[bytes] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long things are waited for, seconds."""

    stall_s: float = 120.0
    """A store or catalog that does nothing for this long is given up."""
    dead_after_s: float = DEAD_AFTER_S
    settle_s: float | None = None
    """None: as the store's filesystem needs it."""
    wait_s: float = _WAIT_S
    """For pushes under way."""
    poll_s: float = _POLL_S


def collect(
    root: Path,
    catalog: Catalog,
    progress: Progress,
    *,
    grace_s: float,
    is_dry_run: bool = False,
    may_empty: bool = False,
    patience: Patience = Patience(),
) -> Collection:
    """
    Remove from the store in *root* what *catalog* does not need and is *grace_s* old.

    Safe to stop at any moment and to repeat; the next one does the rest.

    Raises Conflict (the catalog names nothing, so that everything would go,
    without *may_empty*), Unavailable (store or catalog).
    """
    begun = time.monotonic()
    storing = Watch(f"store {root}", patience.stall_s, progress)
    asking = Watch("the catalog", patience.stall_s, progress)
    done = Collection(dry_run=is_dry_run)
    collector = _Collector(root, grace_s, storing.moved, done)

    progress.step("asking the catalog what the images need")
    needs = asking.call(lambda: _look(catalog, asking.moved))
    progress.step("looking for objects that no image needs")
    storing.call(lambda: collector.check(needs, may_empty=may_empty))
    storing.call(lambda: collector.throw(needs))
    if not is_dry_run:
        _empty(collector, catalog, progress, storing, asking, patience)
    done.seconds = round(time.monotonic() - begun, 3)
    return done


def _empty(
    collector: _Collector,
    catalog: Catalog,
    progress: Progress,
    storing: Watch,
    asking: Watch,
    patience: Patience,
) -> None:
    """Steps 2 to 4, if there is anything in the trash."""
    thrown = storing.call(collector.thrown)
    if thrown:
        settle_s = patience.settle_s
        if settle_s is None:
            settle_s = storing.call(collector.settle_s)
        if settle_s:
            progress.step(f"waiting {settle_s:.0f} s, for what other machines believe is there")
            time.sleep(settle_s)
        _wait_for_pushes(collector, progress, storing, patience)
    else:
        storing.call(lambda: collector.pushes(patience.dead_after_s))
    progress.step("asking the catalog again")
    needs = asking.call(lambda: _look(catalog, asking.moved))
    progress.step("removing", total_bytes=sum(file.size_bytes for file in thrown))
    storing.call(lambda: collector.finish(thrown, needs, progress.advance))


def _wait_for_pushes(
    collector: _Collector, progress: Progress, storing: Watch, patience: Patience
) -> None:
    until_s = time.monotonic() + patience.wait_s
    waited_for = storing.call(lambda: collector.pushes(patience.dead_after_s))
    while waited_for:
        if len(waited_for) != collector.done.pushes:
            progress.step(f"waiting for pushes under way: {len(waited_for)}")
        collector.done.pushes = len(waited_for)
        if time.monotonic() >= until_s:
            return
        time.sleep(patience.poll_s)
        waited_for &= storing.call(lambda: collector.pushes(patience.dead_after_s))
    collector.done.pushes = 0


def _look(catalog: Catalog, moved: Callable[[], None]) -> _Needs:
    needs = _Needs()
    # First, as they may become objects of images meanwhile.
    needs.objects.update(digest.raw for digest in catalog.loose_objects())
    for record in catalog.list_images():
        moved()
        with contextlib.suppress(ImageNotFound):  # it was removed meanwhile
            needs.objects.update(digest.raw for digest in catalog.objects_of(record.image))
            needs.indexes.add(record.index)
            needs.images += 1
    return needs


class _Collector:
    """Everything that touches the store; *moved* is called again and again."""

    def __init__(
        self, root: Path, grace_s: float, moved: Callable[[], None], done: Collection
    ) -> None:
        self._root = root
        self._grace_s = grace_s
        self._moved = moved
        self._trash = Trash(root)
        self._store = DirectoryStore(root)
        self._now_s = 0.0
        self._kept: set[bytes] = set()
        self._missing: set[bytes] = set()
        self.done = done

    def check(self, needs: _Needs, *, may_empty: bool) -> None:
        """Raise unless there is a store, and this is most likely its catalog."""
        is_empty = next(self._store.list(), None) is None
        if not (needs.objects or may_empty or is_empty):
            raise Conflict(
                f"the catalog names no object, so all of {self._store.name} would go; is it the "
                "right catalog (--catalog)? If nothing is to be kept, say --everything"
            )

    def throw(self, needs: _Needs) -> None:
        """Step 1; in a dry run only count."""
        done = self.done
        with self._border():
            self._now_s = self._trash.announced(float("inf")).now_s
            if not done.dry_run:
                done.leftovers = self._store.sweep()
            for file in self._trash.objects():
                self._moved()
                if file.digest.raw in needs.objects:
                    self._kept.add(file.digest.raw)
                    done.kept_bytes += file.size_bytes
                elif abs(self._now_s - file.mtime_s) < self._grace_s:
                    done.recent_objects += 1
                    done.recent_bytes += file.size_bytes
                elif done.dry_run:
                    done.removed_objects += 1
                    done.removed_bytes += file.size_bytes
                else:
                    self._trash.throw(file)
            if done.dry_run:
                for file in self._trash.thrown():
                    if file.digest.raw not in needs.objects:
                        done.removed_objects += 1
                        done.removed_bytes += file.size_bytes
                self._collect_profiles(needs)
        done.images = needs.images
        self._missing = needs.objects - self._kept
        self._count()

    def thrown(self) -> list[StoredFile]:
        """Step 2."""
        with self._border():
            return list(self._watched(self._trash.thrown()))

    def settle_s(self) -> float:
        """How long another machine may believe that a file is still in its place."""
        with self._border():
            return 0.0 if is_local(self._root) else _SETTLE_S

    def pushes(self, dead_after_s: float) -> frozenset[str]:
        """Step 3: who is waited for; the dead are given up."""
        with self._border():
            announced = self._trash.announced(dead_after_s)
            for name in announced.dead:
                self._trash.give_up(name)
        return announced.live

    def finish(
        self, thrown: list[StoredFile], needs: _Needs, advance: Callable[[int], None]
    ) -> None:
        """Step 4."""
        done = self.done
        with self._border():
            for file in self._watched(thrown):
                if file.digest.raw in needs.objects:
                    self._trash.put_back(file)
                    self._kept.add(file.digest.raw)
                    done.kept_bytes += file.size_bytes
                elif done.pushes:
                    done.waiting_objects += 1
                    done.waiting_bytes += file.size_bytes
                elif self._trash.remove(file):
                    done.removed_objects += 1
                    done.removed_bytes += file.size_bytes
                advance(file.size_bytes)
            self._trash.tidy()
            self._collect_profiles(needs)
        self._count()

    def _count(self) -> None:
        self.done.kept_objects = len(self._kept)
        self.done.missing_objects = len(self._missing - self._kept)

    def _collect_profiles(self, needs: _Needs) -> None:
        self.done.profiles = DirectoryProfiles(self._root).collect(
            needs.indexes,
            older_than_s=self._grace_s,
            now_s=self._now_s,
            is_dry_run=self.done.dry_run,
        )

    def _watched(self, files: Iterator[StoredFile] | list[StoredFile]) -> Iterator[StoredFile]:
        for file in files:
            self._moved()
            yield file

    @contextlib.contextmanager
    def _border(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if is_full(error):
                raise StorageFull(f"{self._store.name} is full ({error.strerror})") from error
            raise SourceUnavailable(
                f"cannot collect in {self._store.name}, {error.filename}: {error.strerror}"
            ) from error
