"""
Reading many objects in a known order, verified, ahead of who writes them.

A handful of daemon threads read the next few objects, each from the first
source that has it whole and right; hashing and waiting for a store overlap
with writing.  Memory is bounded by _THREADS * (_QUEUED + 1) chunks of 1 MiB,
however large an object is.  A source that hangs (NFS) costs its thread, never
the caller: reads are given up after `stall_s`.
"""

from __future__ import annotations

import contextlib
import hashlib
import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType

from gear_plugin.content import ObjectSource
from gear_plugin.digest import Digest
from gear_plugin.errors import (
    ContentCorrupt,
    ContentNotFound,
    GearError,
    SourceUnavailable,
    Unavailable,
)

_THREADS = 4
_QUEUED = 3
"""Chunks of one object that wait to be written."""
_POLL_S = 0.2
_JOIN_S = 1.0


class _End:
    """The object was whole and right."""


class _Again:
    """What came so far was wrong; the next source begins anew."""


_Item = bytes | _End | _Again | BaseException


class ReadAhead:
    """
    The contents of *order* (digest, size in bytes), one `contents` call each.

    Sources are asked in their order.  To be used as a context manager by one
    thread, which has ended the others when the block ends (but for those that
    hang in a read).
    """

    def __init__(
        self,
        order: Iterable[tuple[Digest, int]],
        sources: Sequence[ObjectSource],
        *,
        stall_s: float,
    ) -> None:
        self._order = iter(order)
        self._sources = sources
        self._stall_s = stall_s
        self._todo: queue.SimpleQueue[_Reading | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._pending: deque[_Reading] = deque()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(_THREADS)]

    def __enter__(self) -> ReadAhead:
        for thread in self._threads:
            thread.start()
        for _ in self._threads:
            self._submit()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        for _ in self._threads:
            self._todo.put(None)
        deadline_s = time.monotonic() + _JOIN_S
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))

    def contents(self) -> Iterator[bytes | None]:
        """
        The next object's content in chunks; None: all that came so far was
        wrong, and it begins again.  To be read to its end.

        Raises ContentNotFound, ContentCorrupt, SourceUnavailable (also when
        nothing comes for `stall_s`): no source has it whole and right.
        """
        reading = self._pending.popleft()
        while True:
            item = reading.next(self._stall_s)
            if isinstance(item, BaseException):
                raise item
            if isinstance(item, _End):
                break
            yield None if isinstance(item, _Again) else item
        self._submit()

    def _submit(self) -> None:
        wanted = next(self._order, None)
        if wanted is not None:
            reading = _Reading(*wanted, self._stop)
            self._pending.append(reading)
            self._todo.put(reading)

    def _work(self) -> None:
        while not self._stop.is_set() and (reading := self._todo.get()) is not None:
            with contextlib.suppress(_Stopped):
                self._read(reading)

    def _read(self, reading: _Reading) -> None:
        failures: list[GearError] = []
        try:
            for source in self._sources:
                try:
                    reading.copy(source)
                except GearError as error:
                    failures.append(error)
                    reading.again()
                else:
                    reading.put(_End())
                    return
        except _Stopped:
            raise
        except BaseException as error:
            reading.put(error)
        else:
            reading.put(_verdict(reading.digest, failures))


class _Stopped(Exception):
    """Nobody waits for this object any more."""


class _Reading:
    """One object on its way from a thread to the caller."""

    def __init__(self, digest: Digest, size: int, stop: threading.Event) -> None:
        self.digest = digest
        self._size = size
        self._stop = stop
        self._items: queue.Queue[_Item] = queue.Queue(_QUEUED)
        self._source = "no source"
        self._has_sent = False

    def next(self, stall_s: float) -> _Item:
        """What comes next, waiting at most *stall_s*; raises SourceUnavailable."""
        try:
            return self._items.get(timeout=stall_s)
        except queue.Empty:
            raise SourceUnavailable(
                f"{self._source} delivered nothing of {self.digest} for {stall_s:g} s"
            ) from None

    def put(self, item: _Item) -> None:
        """Hand *item* over when there is room for it."""
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._items.put(item, timeout=_POLL_S)
                return
        raise _Stopped

    def copy(self, source: ObjectSource) -> None:
        """Hand over the object as *source* has it; raises when that was not all right."""
        self._source = source.name
        sha256, left = hashlib.sha256(), self._size
        with source.read(self.digest) as chunks:
            for chunk in chunks:
                left -= len(chunk)
                if left < 0:
                    break  # or it might never stop
                sha256.update(chunk)
                self._has_sent = True
                self.put(chunk)
        if left or sha256.digest() != self.digest.raw:
            raise ContentCorrupt(f"{source.name} has wrong bytes for {self.digest}")

    def again(self) -> None:
        """Take back what was handed over."""
        if self._has_sent:
            self._has_sent = False
            self.put(_Again())


def _verdict(digest: Digest, failures: Sequence[GearError]) -> GearError:
    """The one error that says most about what to do: try again, repair, or it is nowhere."""
    reasons = "; ".join(str(failure) for failure in failures)
    if any(isinstance(failure, Unavailable) for failure in failures):
        return SourceUnavailable(reasons)
    if any(isinstance(failure, ContentCorrupt) for failure in failures):
        return ContentCorrupt(reasons)
    return ContentNotFound(reasons or f"no source is set to read {digest} from")
