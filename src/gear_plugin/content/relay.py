"""
A store in front of callers who must not hang with it.

A call to a store may never return (NFS), so it runs in a thread that can be
given up (`lane`), and the caller waits no longer than *stall_s* for it to
move.  A dead store costs at most STUCK_LIMIT - 1 + *workers* threads for reads
and as many for writes, and holds nobody up.

Safe from any thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from gear_plugin.content.announce import until_named
from gear_plugin.content.base import Announcement, ObjectStore, Put
from gear_plugin.content.lane import Lane, Task
from gear_plugin.digest import Digest
from gear_plugin.errors import TimedOut

_AHEAD = 2
"""Chunks read before the caller has taken them: 3 MiB a reader at most, with the one at hand."""


class _GivenUp(Exception):
    """Ends what nobody waits for any more."""


class Relay:
    """Reads from and writes to *store*, so many at a time; see the module."""

    def __init__(self, store: ObjectStore, *, stall_s: float, workers: int) -> None:
        self._store = store
        self._stall_s = stall_s
        self._reads = Lane(store, workers)
        self._writes = Lane(store, workers)

    def read(self, digest: Digest) -> Reading:
        """
        The object, whose first bytes have come; they are NOT verified.

        Raises what the store's `read` does, and TimedOut.
        """
        reading = Reading(self._reads, self._store, digest, self._stall_s)
        reading.begin()
        return reading

    def put(self, digest: Digest, path: Path, name: Callable[[], object] = lambda: None) -> bool:
        """
        As the store's `put`, and then *name*, which gives the object a name in a
        catalog: no collector of garbage comes between.  *name* may be called twice.

        Raises what the two raise, and TimedOut when one stalls.  The store may
        still take the object then, as long as *path* is there.
        """
        writing = _Writing(self._writes, self._store, self._stall_s)
        return writing.put(digest, path, name)


class _Call:
    """One call of the store: what its thread and its caller share."""

    def __init__(self, lane: Lane, store: ObjectStore, stall_s: float) -> None:
        self._lane = lane
        self._store = store
        self._stall_s = stall_s
        self._changed = threading.Condition()  # guards what subclasses keep, and these two
        self._is_over = False
        self._failure: BaseException | None = None
        self._task = Task(self._run)

    def _work(self) -> None:
        raise NotImplementedError

    def _run(self, task: Task) -> None:
        failure: BaseException | None = None
        try:
            self._work()
        except BaseException as error:
            failure = error
        with self._changed:
            self._is_over, self._failure = True, failure
            self._changed.notify_all()

    def _moved(self) -> None:
        """By the thread; raises _GivenUp when nobody waits."""
        self._lane.progressed(self._task)
        if self._task.is_abandoned:
            raise _GivenUp

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        """By the caller, with the lock: until it is true or all is over; raises TimedOut."""
        while not condition() and not self._is_over:
            still_s = self._lane.stalled_for_s(self._task)
            if still_s >= self._stall_s:
                self._lane.abandon(self._task)
                raise TimedOut(f"{self._store.name} has not answered for {self._stall_s:g} s")
            self._changed.wait(self._stall_s - still_s)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


class Reading(_Call):
    """An object on its way from the store: an iterator of chunks, to be closed."""

    def __init__(self, lane: Lane, store: ObjectStore, digest: Digest, stall_s: float) -> None:
        super().__init__(lane, store, stall_s)
        self._digest = digest
        self._chunks: deque[bytes] = deque()
        self._is_closed = False

    def begin(self) -> None:
        """Start, and wait for the first bytes, the end or the failure, which is raised."""
        self._lane.submit(self._task)
        with self._changed:
            self._wait_for(lambda: bool(self._chunks))
            if not self._chunks:
                self._raise_failure()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        with self._changed:
            self._wait_for(lambda: bool(self._chunks))
            if not self._chunks:
                self._raise_failure()
                raise StopIteration
            chunk = self._chunks.popleft()
            # The thread may have waited for this caller, which is no stall of the store's.
            self._lane.progressed(self._task)
            self._changed.notify_all()
            return chunk

    def close(self) -> None:
        """Free the thread, at whatever point the reader stopped; safe to repeat."""
        with self._changed:
            self._is_closed = True
            self._chunks.clear()
            self._changed.notify_all()
            if not self._is_over:
                self._lane.abandon(self._task)  # it may hang, and nobody would notice

    def _work(self) -> None:
        with self._store.read(self._digest) as chunks:
            for chunk in chunks:
                self._moved()
                with self._changed:
                    self._chunks.append(chunk)
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: len(self._chunks) < _AHEAD or self._is_closed)
                    if self._is_closed:
                        raise _GivenUp
                self._moved()


class _Writing(_Call):
    """An object on its way into the store."""

    def __init__(self, lane: Lane, store: ObjectStore, stall_s: float) -> None:
        super().__init__(lane, store, stall_s)
        self._object: tuple[Digest, Path, Callable[[], object]] | None = None
        self._is_new = False

    def put(self, digest: Digest, path: Path, name: Callable[[], object]) -> bool:
        self._object = (digest, path, name)
        self._lane.submit(self._task)
        with self._changed:
            self._wait_for(lambda: False)
            self._raise_failure()
            return self._is_new

    def _work(self) -> None:
        assert self._object is not None
        digest, path, name = self._object

        def put(announcement: Announcement) -> Put:
            def advance(_: int) -> None:
                announcement.renew()
                self._moved()

            (done,) = self._store.put_all([(digest, path)], advance)
            return done

        def give_name() -> None:
            self._moved()
            name()

        self._is_new = until_named(self._store, put, give_name).is_new
