"""
How many requests may do one kind of thing at once.

Whoever comes when all places are taken is told so, instead of occupying a
thread: what hangs in a catalog or store costs at most the places of its gate.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from gear_plugin.errors import SourceUnavailable


class Gate:
    """*places* for *what* (such as `uploads`); safe from any thread."""

    def __init__(self, what: str, places: int) -> None:
        self._what = what
        self._free = threading.BoundedSemaphore(places)

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """One of the places, for the block; raises SourceUnavailable when all are taken."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    def enter(self) -> None:
        """Take a place that `leave`, from any thread, gives back; raises SourceUnavailable."""
        if not self._free.acquire(blocking=False):
            raise SourceUnavailable(f"too many {self._what} at once; try again in a moment")

    def leave(self) -> None:
        """Give a place back."""
        self._free.release()
