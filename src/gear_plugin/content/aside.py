"""
Which nodes are not asked for a while, because they failed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

FIRST_S = 1.0
LONGEST_S = 300.0


@dataclass(frozen=True, slots=True)
class _Fault:
    since_s: float
    pause_s: float


class Aside:
    """
    Nodes that are set aside: for 1 s, after each further fault for twice as
    long, at most 5 minutes; one success, and all is forgotten.

    Requests that were under way when a node was set aside change nothing: a
    node that dies with 64 of them has failed once.  From any thread.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._faults: dict[str, _Fault] = {}

    def now_s(self) -> float:
        """For `fault` and `success`: when a request begins."""
        return self._clock()

    def __contains__(self, node: object) -> bool:
        """Whether *node* should not be asked now."""
        fault = self._faults.get(node) if isinstance(node, str) else None
        return fault is not None and self._clock() < fault.since_s + fault.pause_s

    def fault(self, node: str, begun_s: float) -> float | None:
        """
        Note that a request to *node* failed; for how long it is set aside.

        None: it was already when this request began, or by another one since.
        """
        with self._lock:
            last = self._faults.get(node)
            if last is not None and begun_s < last.since_s + last.pause_s:
                return None
            pause_s = FIRST_S if last is None else min(2 * last.pause_s, LONGEST_S)
            self._faults[node] = _Fault(self._clock(), pause_s)
        return pause_s

    def success(self, node: str, begun_s: float) -> None:
        """Note that *node* did what a request asked for."""
        if node in self._faults:
            with self._lock:
                last = self._faults.get(node)
                if last is not None and begun_s >= last.since_s:
                    del self._faults[node]
