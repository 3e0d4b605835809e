"""
How fast bytes may go: one limit that any number of threads keep together.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_BURST_S = 0.1
"""After a pause this much of a second's bytes may go at once."""


class RateLimit:
    """
    At most *bytes_s* bytes a second in all (0: no bound); from any thread.

    Who takes more than there is waits as long as that takes, so that pieces of
    any size pass.
    """

    def __init__(
        self,
        bytes_s: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.bytes_s = bytes_s
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._free_s = 0.0
        """When all that was taken until now will have been paid for."""

    def take(self, size_bytes: int) -> None:
        """Wait until *size_bytes* may go."""
        if not self.bytes_s:
            return
        with self._lock:
            now_s = self._clock()
            self._free_s = max(self._free_s, now_s - _BURST_S) + size_bytes / self.bytes_s
            wait_s = self._free_s - now_s
        if wait_s > 0:
            self._sleep(wait_s)
