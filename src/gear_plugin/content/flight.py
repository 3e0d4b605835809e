"""
One object on its way, whoever waits for it: what `fetch` and its threads know of it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from gear_plugin.content.lane import Lane, Task
from gear_plugin.digest import Digest
from gear_plugin.errors import (
    ContentCorrupt,
    ContentNotFound,
    GearError,
    SourceUnavailable,
    Unavailable,
)


@dataclass(slots=True, eq=False)
class Flight:
    """One object on its way; `lock` guards the route, `done` says that it landed."""

    image: Digest | None
    """For whom it is pinned when it lands; None: for no image."""
    digest: Digest
    size_bytes: int | None
    """What the image's index says; None: not known."""
    next_turn: int = 0
    """Its place in the fetcher's route."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    done: threading.Event = field(default_factory=threading.Event)
    lane: Lane | None = None
    task: Task | None = None
    failures: list[GearError] = field(default_factory=list)
    error: GearError | None = None
    """Why it failed; meaningful once `done`."""

    def brings(self, size_bytes: int | None) -> bool:
        """Whether it is for who expects *size_bytes*: an index that lies fails alone."""
        return self.size_bytes == size_bytes or None in (self.size_bytes, size_bytes)

    def land(self, error: GearError | None) -> None:
        """It is here, or failed; only the first word counts."""
        with self.lock:
            if not self.done.is_set():
                self.error = error
                self.done.set()

    def verdict(self) -> GearError:
        """The one error that says most about what to do: try again, repair, or it never was."""
        reasons = "; ".join(str(failure) for failure in self.failures)
        if any(isinstance(failure, Unavailable) for failure in self.failures):
            return SourceUnavailable(reasons)
        if any(isinstance(failure, ContentCorrupt) for failure in self.failures):
            return ContentCorrupt(reasons)
        return ContentNotFound(reasons or f"no source is configured to fetch {self.digest} from")
