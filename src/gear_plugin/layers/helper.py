"""
What a helper process said, and how it ended: both the structure check and the
unpacking of a layer run in processes that may die on what they are given.
"""

from __future__ import annotations

import json
import signal
from typing import Any


def answer(said: bytes) -> dict[str, Any] | None:
    """The JSON object that a helper printed; None if it died before it had said all."""
    try:
        found = json.loads(said)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def ending(status: int) -> str:
    """`was killed by SIGKILL` or `ended with status 1`, from a process's return code."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
