"""Waiting in tests for what happens in another thread or process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

PATIENCE_S = float(os.environ.get("GEAR_TEST_PATIENCE_S", "60"))
"""Generous: what takes 2 s takes ten times as long on a busy machine, emulated even longer."""


def eventually(
    condition: Callable[[], object], what: str = "it", *, timeout_s: float = PATIENCE_S
) -> None:
    """Poll *condition* until it is true; *what* is said when it does not come true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true in {timeout_s:g} s"
        time.sleep(0.01)
