"""
Getting an object that the cache lacks: one read at a time per object, the
sources in their order, and an answer in bounded time.

A *flight* is one object on its way, whoever waits for it.  Its reads run in
the sources' lanes; those who wait watch it, and move it on to the next source
when it stalls.  A flight does not end when a waiter's time is up: as long as
bytes come it goes on, so an object too large for one `timeout_s` is there for
a later open.  A stalled flight without waiters is moved on by the next one.

Wrong bytes end one source's turn, never the fetch.  Safe from any thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from gear_plugin.content.base import ObjectSource
from gear_plugin.content.cache import Cache
from gear_plugin.content.lane import Lane, Task
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
    Unavailable,
)

log = logging.getLogger(__name__)

# These say that the cache cannot take the object; no other source helps.
_OURS = (StorageFull, StorageUnavailable, ImageNotFound)


@dataclass(frozen=True, slots=True)
class SourceCounts:
    """What one source has done since the start."""

    objects: int = 0
    size_bytes: int = 0
    missing: int = 0
    corrupt: int = 0
    unavailable: int = 0
    """Failures and stalls."""


@dataclass(frozen=True, slots=True)
class FetchCounts:
    """What a Fetcher has done since the start; bytes are uncompressed."""

    hits: int
    """Calls that the cache could answer."""
    objects: int
    size_bytes: int
    failures: int
    """Calls that ended in an error."""
    sources: dict[str, SourceCounts]


class _GivenUp(Exception):
    """Ends a read that nobody waits for any more."""


@dataclass(slots=True, eq=False)
class _Flight:
    """One object on its way; `lock` guards the route, `done` says that it landed."""

    image: Digest
    digest: Digest
    size_bytes: int | None
    """What the image's index says; None: not known."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    done: threading.Event = field(default_factory=threading.Event)
    lane: Lane | None = None
    task: Task | None = None
    next_lane: int = 0
    failures: list[GearError] = field(default_factory=list)
    error: GearError | None = None
    """Why it failed; meaningful once `done`."""


class Fetcher:
    """
    Fills *cache* from *sources*, asked in their order.

    A source that delivers no byte for *stall_s* is given up for this object.
    *workers*: how many objects may be read from one source at a time.
    *size_of* tells an object's size by an image's index (None: not known);
    what a source sends beyond it is wrong bytes, and is not waited for.
    """

    def __init__(
        self,
        cache: Cache,
        sources: Sequence[ObjectSource],
        *,
        stall_s: float,
        timeout_s: float,
        workers: int,
        size_of: Callable[[Digest, Digest], int | None] = lambda _image, _digest: None,
    ) -> None:
        self._cache = cache
        self._size_of = size_of
        self._lanes = [Lane(source, workers) for source in sources]
        self._stall_s = stall_s
        self._timeout_s = timeout_s
        self._lock = threading.Lock()  # guards everything below; held for nothing that blocks
        # By size too: an index that lies about it fails for its own image alone.
        self._flights: dict[tuple[Digest, int | None], _Flight] = {}
        self._hits = self._failures = 0
        self._counter: Counter[tuple[str, str]] = Counter()

    def fetch(self, image: Digest, digest: Digest) -> None:
        """
        Have the object whole and verified in the public cache, pinned for *image*.

        Raises, after at most *timeout_s* (local disk permitting):
            ContentNotFound: every source says that it has no such object.
            ContentCorrupt: every copy found was wrong.
            SourceUnavailable: a source that may have it did not deliver.
            TimedOut: it is still on its way; a later call may find it there.
            StorageFull; ImageNotFound: *image* was not admitted.
        """
        deadline_s = time.monotonic() + self._timeout_s
        try:
            while not self._cache.link(image, digest):
                flight, is_mine = self._board(image, digest)
                self._await(flight, deadline_s)
                error = flight.error
                if is_mine and error is None:
                    return
                # Another image's flight: pin the object for this one too, or
                # fly again if that image was forgotten while it was on its way.
                if error is not None and (is_mine or not isinstance(error, ImageNotFound)):
                    raise type(error)(str(error))
        except GearError:
            with self._lock:
                self._failures += 1
            raise
        with self._lock:
            self._hits += 1

    def counts(self) -> FetchCounts:
        """The counts now."""
        with self._lock:
            counter, hits, failures = self._counter.copy(), self._hits, self._failures
        kinds = SourceCounts.__dataclass_fields__
        sources = {
            lane.source.name: SourceCounts(
                **{kind: counter[lane.source.name, kind] for kind in kinds}
            )
            for lane in self._lanes
        }
        return FetchCounts(
            hits=hits,
            objects=sum(counts.objects for counts in sources.values()),
            size_bytes=sum(counts.size_bytes for counts in sources.values()),
            failures=failures,
            sources=sources,
        )

    def _board(self, image: Digest, digest: Digest) -> tuple[_Flight, bool]:
        """The flight that brings the object, and whether this call started it."""
        size_bytes = self._size_of(image, digest)
        with self._lock:
            flight = self._flights.get((digest, size_bytes))
            if flight is not None:
                return flight, False
            flight = self._flights[digest, size_bytes] = _Flight(image, digest, size_bytes)
        self._move_on(flight, None, None)
        return flight, True

    def _await(self, flight: _Flight, deadline_s: float) -> None:
        """Wait until *flight* lands, moving it on when it stalls; raises TimedOut."""
        while True:
            with flight.lock:
                lane, task = flight.lane, flight.task
            still_s = lane.stalled_for_s(task) if lane and task else 0.0
            left_s = deadline_s - time.monotonic()
            if flight.done.wait(max(0.0, min(left_s, self._stall_s - still_s))):
                return
            if time.monotonic() >= deadline_s:
                raise TimedOut(f"{flight.digest} did not arrive in {self._timeout_s:g} s")
            if lane and task and lane.stalled_for_s(task) >= self._stall_s:
                lane.abandon(task)
                self._fail(
                    flight,
                    lane,
                    task,
                    SourceUnavailable(
                        f"{lane.source.name} delivered nothing of {flight.digest}"
                        f" for {self._stall_s:g} s"
                    ),
                )

    def _move_on(self, flight: _Flight, ended: Task | None, why: GearError | None) -> None:
        """Ask the next source, unless somebody else noticed first that *ended* is over."""
        with flight.lock:
            if flight.task is not ended:
                return
            if why is not None:
                flight.failures.append(why)
            while flight.next_lane < len(self._lanes):
                lane = self._lanes[flight.next_lane]
                flight.next_lane += 1
                task = Task(partial(self._read, flight, lane))
                try:
                    lane.submit(task)
                except SourceUnavailable as error:
                    flight.failures.append(error)
                    self._note(lane, "unavailable")
                    continue
                flight.lane, flight.task = lane, task
                return
        self._land(flight, _verdict(flight))

    def _land(self, flight: _Flight, error: GearError | None) -> None:
        with self._lock:
            key = flight.digest, flight.size_bytes
            if self._flights.get(key) is flight:
                del self._flights[key]
        with flight.lock:
            if not flight.done.is_set():
                flight.error = error
                flight.done.set()

    def _read(self, flight: _Flight, lane: Lane, task: Task) -> None:
        """One source's turn, in one of its threads."""
        try:
            with lane.source.read(flight.digest) as chunks:
                size_bytes = self._cache.publish(
                    flight.image,
                    flight.digest,
                    _watched(chunks, lane, task),
                    expected_bytes=flight.size_bytes,
                )
        except _GivenUp:
            return
        except _OURS as error:
            self._land(flight, error)
        except GearError as error:
            self._fail(flight, lane, task, error)
        except Exception:
            log.exception("internal error: %s from %s", flight.digest, lane.source.name)
            self._fail(
                flight, lane, task, SourceUnavailable("internal error; see the client's log")
            )
        else:
            self._note(lane, "objects")
            self._note(lane, "size_bytes", size_bytes)
            self._land(flight, None)

    def _fail(self, flight: _Flight, lane: Lane, task: Task, error: GearError) -> None:
        if isinstance(error, ContentNotFound):
            log.debug("%s", error)
            self._note(lane, "missing")
        elif isinstance(error, ContentCorrupt):
            log.warning("wrong bytes from %s: %s", lane.source.name, error)
            self._note(lane, "corrupt")
        else:
            log.warning("%s", error)
            self._note(lane, "unavailable")
        self._move_on(flight, task, error)

    def _note(self, lane: Lane, kind: str, amount: int = 1) -> None:
        with self._lock:
            self._counter[lane.source.name, kind] += amount


def _watched(chunks: Iterator[bytes], lane: Lane, task: Task) -> Iterator[bytes]:
    for chunk in chunks:
        if task.is_abandoned:
            raise _GivenUp
        lane.progressed(task)
        yield chunk


def _verdict(flight: _Flight) -> GearError:
    """The one error that says most about what to do: try again, repair, or it never was there."""
    failures = flight.failures
    reasons = "; ".join(str(failure) for failure in failures)
    if any(isinstance(failure, Unavailable) for failure in failures):
        return SourceUnavailable(reasons)
    if any(isinstance(failure, ContentCorrupt) for failure in failures):
        return ContentCorrupt(reasons)
    return ContentNotFound(reasons or f"no source is configured to fetch {flight.digest} from")
