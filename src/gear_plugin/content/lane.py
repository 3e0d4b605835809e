"""
One source and the threads that read from it.

A read may never return (NFS in state D), so it runs in a daemon thread that
can be given up: the thread is then *stuck*, another takes its place, and when
it does return it ends.  While STUCK_LIMIT threads are stuck the whole source
counts as stalled and refuses reads at once, so a dead server costs at most
STUCK_LIMIT - 1 + *workers* threads and holds nobody up.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

from gear_plugin.content.base import ObjectSource
from gear_plugin.errors import SourceUnavailable

log = logging.getLogger(__name__)

STUCK_LIMIT = 16


class Task:
    """One read, as its starter and its thread see it."""

    def __init__(self, run: Callable[[Task], None]) -> None:
        self.run = run
        self.made_s = time.monotonic()
        self.is_abandoned = False
        self.is_over = False
        self.last_byte_s: float | None = None
        """When it last moved (its start counts), monotonic; None while it is queued."""


class Lane:
    """
    Runs tasks on at most *workers* threads, which are started as they are needed.

    A task's `run` must not raise.
    """

    def __init__(self, source: ObjectSource, workers: int) -> None:
        self.source = source
        self._workers = workers
        self._queue: queue.SimpleQueue[Task] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards the counts below
        self._threads = 0  # stuck ones not counted
        self._idle = 0
        self._queued = 0
        self._stuck = 0
        self._last_progress_s = time.monotonic()

    @property
    def stuck(self) -> int:
        """How many threads were given up and have not returned."""
        return self._stuck

    def submit(self, task: Task) -> None:
        """Have the task run; raises SourceUnavailable while the source counts as stalled."""
        with self._lock:
            if self._stuck >= STUCK_LIMIT:
                raise SourceUnavailable(f"{self.source.name} is stalled: {self._stuck} reads hang")
            self._queued += 1
            must_start = self._queued > self._idle and self._threads < self._workers
            if must_start:
                self._threads += 1
                self._idle += 1
        if must_start:
            try:
                threading.Thread(target=self._work, name=self.source.name, daemon=True).start()
            except RuntimeError as error:
                with self._lock:
                    self._queued -= 1
                    self._threads -= 1
                    self._idle -= 1
                raise SourceUnavailable(f"no thread to read {self.source.name} with") from error
        self._queue.put(task)

    def progressed(self, task: Task) -> None:
        """To be called by the running *task* whenever bytes come."""
        task.last_byte_s = self._last_progress_s = time.monotonic()

    def stalled_for_s(self, task: Task) -> float:
        """
        For how long *task* has not moved, seconds.

        One that is still queued moves as long as the lane does: many large
        objects being read are not a stall.
        """
        last_s = task.last_byte_s
        if last_s is None:
            last_s = max(task.made_s, self._last_progress_s)
        return time.monotonic() - last_s

    def abandon(self, task: Task) -> None:
        """Give *task* up: it ends at its next chunk, if one ever comes, and publishes nothing."""
        with self._lock:
            if task.is_abandoned or task.is_over:
                return
            task.is_abandoned = True
            if task.last_byte_s is None:
                return  # still queued: it will be skipped
            self._threads -= 1
            self._stuck += 1
            if self._stuck == STUCK_LIMIT:
                log.warning("%s is stalled: %d reads hang", self.source.name, self._stuck)

    def _work(self) -> None:
        while True:
            task = self._queue.get()
            with self._lock:
                self._idle -= 1
                self._queued -= 1
                if not task.is_abandoned:
                    self.progressed(task)
            if task.last_byte_s is not None:
                task.run(task)
            with self._lock:
                self._last_progress_s = time.monotonic()
                task.is_over = True
                if task.is_abandoned and task.last_byte_s is not None:
                    self._stuck -= 1
                    return
                self._idle += 1
