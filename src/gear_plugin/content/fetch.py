"""
Getting an object that the cache lacks: one read at a time per object, the
sources in their order, and an answer in bounded time.

A *flight* is one object on its way, whoever waits for it.  Its reads run in
the sources' lanes; those who wait watch it, and move it on to the next source
when it stalls.  A flight does not end when a waiter's time is up: as long as
bytes come it goes on, so an object too large for one `timeout_s` is there for
a later open.  A stalled flight without waiters is moved on by the next one.

Other nodes go first, if there are any, and may have a second turn: when one
sent wrong bytes or broke off, the object's next home is asked.  Several objects
that one node can send in one stream are flights with one read.

Wrong bytes end one source's turn, never the fetch.  Safe from any thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

from gear_plugin.content.base import Group, ObjectSource, Peers
from gear_plugin.content.cache import Cache
from gear_plugin.content.flight import Flight
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
)

log = logging.getLogger(__name__)

# These say that the cache cannot take the object; no other source helps.
_OURS = (StorageFull, StorageUnavailable, ImageNotFound)

_PEER_TURNS = 2
_BATCHES = 8
"""Streams of many objects that are read at a time."""
_SMALL_BYTES = 8 << 20
"""Larger objects come one by one: those behind them in a stream would wait."""
_PART_OBJECTS = 4096
_PART_BYTES = 64 << 20
_HOME_BYTES_S = 32 << 20


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


class Fetcher:
    """
    Fills *cache* from *peers* and then from *sources*, asked in their order.

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
        peers: Peers | None = None,
        stall_s: float,
        timeout_s: float,
        workers: int,
        size_of: Callable[[Digest, Digest], int | None] = lambda _image, _digest: None,
    ) -> None:
        self._cache = cache
        self._size_of = size_of
        self._peers = peers
        self._peer_lanes = [Lane(peers, count) for count in (workers, _BATCHES)] if peers else []
        self._lanes = self._peer_lanes[:1] * _PEER_TURNS
        self._after_peers = len(self._lanes)
        self._lanes += [Lane(source, workers) for source in sources]
        self._stall_s = stall_s
        self._timeout_s = timeout_s
        self._lock = threading.Lock()  # guards everything below; held for nothing that blocks
        self._flights: dict[Digest, list[Flight]] = {}
        """Seldom more than one an object: those with other sizes, or from other sources."""
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
        self._bring(image, digest, lambda: self._size_of(image, digest), is_direct=False)

    def obtain(self, digest: Digest, size_bytes: int | None = None) -> None:
        """
        Have the object whole and verified in the public cache, for another node.

        It comes from *sources*, never from *peers*, so that two nodes never
        wait for each other.  Raises as `fetch`.
        """
        self._bring(None, digest, lambda: size_bytes, is_direct=True)

    def parts(self, image: Digest, digests: Iterable[Digest]) -> Iterator[list[Digest]]:
        """*digests* in parts for `fetch_ahead`, in their order."""
        part: list[Digest] = []
        part_bytes = 0
        for digest in digests:
            if self._peers is not None:
                size_bytes = self._size_of(image, digest) or 0
                if part and (len(part) == _PART_OBJECTS or part_bytes + size_bytes > _PART_BYTES):
                    yield part
                    part, part_bytes = [], 0
                part_bytes += size_bytes
            part.append(digest)
        yield part

    def fetch_ahead(self, image: Digest, part: Iterable[Digest]) -> None:
        """
        Start to bring those of *part* together that one node can send in one
        stream; returns at once.

        `fetch` of one that is on its way waits for it.
        """
        if self._peers is None:
            return
        wanted = []
        for digest in part:
            size_bytes = self._size_of(image, digest)
            is_small = size_bytes is not None and size_bytes <= _SMALL_BYTES
            if is_small and not self._cache.has(digest):
                wanted.append(digest)
        for group in self._peers.groups(wanted):
            self._fly_together(image, group)

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

    def _bring(
        self,
        image: Digest | None,
        digest: Digest,
        size_of: Callable[[], int | None],
        *,
        is_direct: bool,
    ) -> None:
        deadline_s = time.monotonic() + self._timeout_s
        try:
            while not self._cache.link(image, digest):
                size_bytes = size_of()
                flight, is_mine = self._board(image, digest, size_bytes, is_direct=is_direct)
                self._await(flight, deadline_s)
                error = flight.error
                if is_mine and error is None:
                    return
                # Another's flight: pin the object for this image too, or fly again
                # if it failed for a reason of its own.
                if error is not None and (is_mine or _concerns(error, flight, size_bytes)):
                    raise type(error)(str(error))
                if time.monotonic() >= deadline_s:
                    raise self._too_late(digest)
        except GearError:
            with self._lock:
                self._failures += 1
            raise
        with self._lock:
            self._hits += 1

    def _board(
        self, image: Digest | None, digest: Digest, size_bytes: int | None, *, is_direct: bool
    ) -> tuple[Flight, bool]:
        """The flight that brings the object, and whether this call started it."""
        skips_peers = is_direct or self._peers is None or not self._peers.asks(digest)
        with self._lock:
            flights = self._flights.setdefault(digest, [])
            for flight in flights:
                if flight.brings(size_bytes) and (
                    not is_direct or flight.next_turn >= self._after_peers
                ):
                    return flight, False
            first_turn = self._after_peers if skips_peers else 0
            flight = Flight(image, digest, size_bytes, first_turn)
            flights.append(flight)
        try:
            # The flight that brought it may have landed since the caller looked.
            is_here = self._cache.link(image, digest)
        except GearError as error:
            self._land(flight, error)
        else:
            if is_here:
                self._land(flight, None)
            else:
                self._move_on(flight, None, None)
        return flight, True

    def _fly_together(self, image: Digest, group: Group) -> None:
        lane = self._peer_lanes[1]
        flights = []
        with self._lock:
            for digest in group.digests:
                if digest not in self._flights:
                    flight = Flight(image, digest, self._size_of(image, digest))
                    self._flights[digest] = [flight]
                    flights.append(flight)
        if not flights:
            return
        group = Group(group.member, tuple(flight.digest for flight in flights))
        task = Task(partial(self._read_many, group, flights, lane))
        for flight in flights:
            with flight.lock:
                flight.lane, flight.task = lane, task
        try:
            lane.submit(task)
        except SourceUnavailable as error:
            log.debug("%s", error)
            for flight in flights:
                self._move_on(flight, task, None)

    def _await(self, flight: Flight, deadline_s: float) -> None:
        """Wait until *flight* lands, moving it on when it stalls; raises TimedOut."""
        while True:
            with flight.lock:
                lane, task = flight.lane, flight.task
            still_s = lane.stalled_for_s(task) if lane and task else 0.0
            left_s = deadline_s - time.monotonic()
            stall_s = self._patience_s(flight, lane)
            if flight.done.wait(max(0.0, min(left_s, stall_s - still_s))):
                return
            if time.monotonic() >= deadline_s:
                raise self._too_late(flight.digest)
            if lane and task and lane.stalled_for_s(task) >= stall_s:
                lane.abandon(task)
                self._fail(
                    flight,
                    lane,
                    task,
                    SourceUnavailable(
                        f"{lane.source.name} delivered nothing of {flight.digest} for {stall_s:g} s"
                    ),
                )

    def _patience_s(self, flight: Flight, lane: Lane | None) -> float:
        if lane in self._peer_lanes and flight.size_bytes:
            return peer_patience_s(self._stall_s, flight.size_bytes)
        return self._stall_s

    def _too_late(self, digest: Digest) -> TimedOut:
        return TimedOut(f"{digest} did not arrive in {self._timeout_s:g} s")

    def _move_on(
        self,
        flight: Flight,
        ended: Task | None,
        why: GearError | None,
        *,
        leaves_peers: bool = False,
    ) -> None:
        """Ask the next source, unless somebody else noticed first that *ended* is over."""
        with flight.lock:
            if flight.task is not ended:
                return
            if why is not None:
                flight.failures.append(why)
            if leaves_peers:
                flight.next_turn = max(flight.next_turn, self._after_peers)
            while (lane := self._next_lane(flight)) is not None:
                task = Task(partial(self._read, flight, lane))
                try:
                    lane.submit(task)
                except SourceUnavailable as error:
                    flight.failures.append(error)
                    self._note(lane, "unavailable")
                    continue
                flight.lane, flight.task = lane, task
                return
        self._land(flight, flight.verdict())

    def _next_lane(self, flight: Flight) -> Lane | None:
        """Whose turn it is; None: all had theirs."""
        if flight.next_turn < self._after_peers and self._peers is not None:
            if self._peers.asks(flight.digest):
                flight.next_turn += 1
                return self._peer_lanes[0]
            flight.next_turn = self._after_peers
        if flight.next_turn == len(self._lanes):
            return None
        flight.next_turn += 1
        return self._lanes[flight.next_turn - 1]

    def _land(self, flight: Flight, error: GearError | None) -> None:
        with self._lock:
            flights = self._flights.get(flight.digest, [])
            if flight in flights:
                flights.remove(flight)
            if not flights:
                self._flights.pop(flight.digest, None)
        flight.land(error)

    def _read(self, flight: Flight, lane: Lane, task: Task) -> None:
        """One source's turn, in one of its threads."""
        is_open = False
        try:
            with self._opened(flight, lane) as chunks:
                is_open = True
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
            self._fail(flight, lane, task, error, had_begun=is_open)
        except Exception:
            log.exception("internal error: %s from %s", flight.digest, lane.source.name)
            self._fail(
                flight, lane, task, SourceUnavailable("internal error; see the client's log")
            )
        else:
            self._note(lane, "objects")
            self._note(lane, "size_bytes", size_bytes)
            self._land(flight, None)

    def _opened(self, flight: Flight, lane: Lane) -> AbstractContextManager[Iterator[bytes]]:
        if self._peers is not None and lane in self._peer_lanes:
            return self._peers.read(flight.digest, flight.size_bytes)
        return lane.source.read(flight.digest)

    def _read_many(self, group: Group, flights: list[Flight], lane: Lane, task: Task) -> None:
        """One stream from another node, in one of the lane's threads."""
        assert self._peers is not None
        left = {flight.digest: flight for flight in flights}
        try:
            with self._peers.read_many(group) as records:
                for digest, chunks in records:
                    self._take_in(left[digest], chunks, lane, task)
                    del left[digest]
        except _GivenUp:
            pass
        except _OURS as error:
            for flight in left.values():
                self._land(flight, error)
            return
        except GearError as error:
            log.info(
                "%d of %d objects have to be asked for again: %s", len(left), len(flights), error
            )
            self._note(lane, "corrupt" if isinstance(error, ContentCorrupt) else "unavailable")
        except Exception:
            log.exception("internal error: a batch from %s", lane.source.name)
        for flight in left.values():
            self._move_on(flight, task, None)

    def _take_in(
        self, flight: Flight, chunks: Iterator[bytes] | None, lane: Lane, task: Task
    ) -> None:
        """One object of a stream."""
        if task.is_abandoned:
            raise _GivenUp
        lane.progressed(task)
        if flight.done.is_set():
            return  # it stalled, and came by another way
        if chunks is None:
            missing = ContentNotFound(f"{lane.source.name}: no object {flight.digest}")
            self._fail(flight, lane, task, missing)
            return
        size_bytes = self._cache.publish(
            flight.image,
            flight.digest,
            _watched(chunks, lane, task),
            expected_bytes=flight.size_bytes,
        )
        self._note(lane, "objects")
        self._note(lane, "size_bytes", size_bytes)
        self._land(flight, None)

    def _fail(
        self,
        flight: Flight,
        lane: Lane,
        task: Task,
        error: GearError,
        *,
        had_begun: bool = False,
    ) -> None:
        if isinstance(error, ContentNotFound):
            log.debug("%s", error)
            self._note(lane, "missing")
        elif isinstance(error, ContentCorrupt):
            log.warning("wrong bytes from %s: %s", lane.source.name, error)
            self._note(lane, "corrupt")
        else:
            # That a node fails is no news: it is set aside, which is logged once.
            log.log(logging.DEBUG if lane in self._peer_lanes else logging.WARNING, "%s", error)
            self._note(lane, "unavailable")
        # Nodes are worth a second turn only when one of them failed on the way.
        self._move_on(flight, task, error, leaves_peers=not had_begun)

    def _note(self, lane: Lane, kind: str, amount: int = 1) -> None:
        with self._lock:
            self._counter[lane.source.name, kind] += amount


def _watched(chunks: Iterator[bytes], lane: Lane, task: Task) -> Iterator[bytes]:
    for chunk in chunks:
        if task.is_abandoned:
            raise _GivenUp
        lane.progressed(task)
        yield chunk


def peer_patience_s(stall_s: float, size_bytes: int) -> float:
    """
    How long a node may send nothing of an object.

    It may have to read and to verify the whole object itself first, and does
    so at 32 MiB a second or more.
    """
    return stall_s + size_bytes / _HOME_BYTES_S


def _concerns(error: GearError, flight: Flight, size_bytes: int | None) -> bool:
    """Whether another's flight would have failed for who expects *size_bytes* as well."""
    if isinstance(error, ContentCorrupt):
        return flight.size_bytes in (size_bytes, None)
    return not isinstance(error, ImageNotFound)
