"""Waiting in tests for what happens in another thread or process."""

from __future__ import annotations

import time
from collections.abc import Callable


def eventually(
    condition: Callable[[], object], what: str = "it", *, timeout_s: float = 10.0
) -> None:
    """Poll *condition* until it is true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true in {timeout_s:g} s"
        time.sleep(0.01)
