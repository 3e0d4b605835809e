"""
Work on something that may never answer: a store or a catalog on a share.

A call to a hung NFS server does not return, and no signal but SIGKILL ends
it.  So whatever touches one runs in daemon threads, and the thread that
called only waits: it can be interrupted, says what it is waiting for, and
gives up when nothing has moved for long enough.  Threads that hang then are
left behind; `cli.departure` lets the command end all the same.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar, cast

from gear_plugin.errors import TimedOut
from gear_plugin.jobs.progress import Progress

T = TypeVar("T")

_END = object()

_SAY_AFTER_S = 10.0
"""Or half of the limit, if that is shorter."""
_GRACE_S = 2.0
"""For threads to clean up after themselves when one has failed, or at an interrupt."""


class Abandoned(Exception):
    """Ends work that nobody waits for any more, so that it can clean up."""


class Watch:
    """
    Watches over *what* (such as `store /mnt/gear`), which may stand still for *stall_s*.

    For one `run` or `call` at a time.
    """

    def __init__(self, what: str, stall_s: float, progress: Progress) -> None:
        self._what = what
        self._stall_s = stall_s
        self._progress = progress
        self._moved_s = time.monotonic()
        self._is_said = False
        self._is_over = True

    def moved(self) -> None:
        """
        To be called by the work, from any thread, whenever something has moved.

        Raises Abandoned, which the work lets through, when nobody waits any more.
        """
        self._moved_s = time.monotonic()
        if self._is_over:
            raise Abandoned

    def call(self, function: Callable[[], T]) -> T:
        """What *function* returns or raises; TimedOut when it stalls."""
        results: list[T] = []
        self.run(lambda _: results.append(function()), (None,), threads=1)
        return results[0]

    def run(self, function: Callable[[T], None], items: Iterable[T], *, threads: int) -> None:
        """
        Call *function* with every item, *threads* at a time.

        The first exception stops the rest and is raised; TimedOut when nothing
        has moved or ended for the time that the watch allows.
        """
        crew = _Crew(function, items, self.moved)
        self._is_over = False
        self.moved()
        try:
            crew.start(threads)
            while not crew.is_done(self._wait_s()):
                pass
        finally:
            self._is_over = True
            crew.stop()
        if crew.failures:
            raise crew.failures[0]

    def _wait_s(self) -> float:
        """For how long to wait now; tells the user, and raises TimedOut, when it is time."""
        still_s = time.monotonic() - self._moved_s
        if still_s >= self._stall_s:
            raise TimedOut(
                f"{self._what} has not moved for {self._stall_s:g} s; try again when it answers"
            )
        say_after_s = min(_SAY_AFTER_S, self._stall_s / 2)
        if still_s < say_after_s:
            self._is_said = False
            return say_after_s - still_s
        if not self._is_said:
            self._is_said = True
            self._progress.note(
                f"waiting for {self._what}: nothing for {still_s:.0f} s, "
                f"given up after {self._stall_s:g} s"
            )
        return self._stall_s - still_s


class _Crew(Generic[T]):
    """The threads of one run."""

    def __init__(
        self, function: Callable[[T], None], items: Iterable[T], moved: Callable[[], None]
    ) -> None:
        self.failures: list[BaseException] = []
        self._function = function
        self._items = iter(items)
        self._moved = moved
        self._changed = threading.Condition()  # guards everything, and the taking of items
        self._at_work = 0
        self._is_stopped = False

    def start(self, threads: int) -> None:
        """Start so many threads."""
        for _ in range(threads):
            with self._changed:
                self._at_work += 1
            threading.Thread(target=self._work, daemon=True).start()

    def is_done(self, wait_s: float) -> bool:
        """Whether all items are done or one has failed, perhaps after a wait."""
        with self._changed:
            return self._changed.wait_for(self._is_over, wait_s)

    def stop(self) -> None:
        """No further item is taken; wait a moment for those at hand."""
        with self._changed:
            self._is_stopped = True
            self._changed.wait_for(lambda: not self._at_work, _GRACE_S)

    def _is_over(self) -> bool:
        return bool(self.failures) or not self._at_work

    def _work(self) -> None:
        try:
            while True:
                with self._changed:
                    item = _END if self._is_stopped else next(self._items, _END)
                if item is _END:
                    return
                self._function(cast(T, item))
                self._moved()
        except BaseException as error:
            with self._changed:
                self.failures.append(error)
                self._is_stopped = True
        finally:
            with self._changed:
                self._at_work -= 1
                self._changed.notify_all()
