"""
How a job tells what it is doing; the caller decides where that is shown.
"""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Takes steps one after another; `advance` may be called from any thread."""

    def step(self, text: str, *, total_bytes: int = 0) -> None:
        """The next step begins; *text* is one line.  0: its size is not known."""
        ...

    def advance(self, count_bytes: int) -> None:
        """So many more bytes of the current step are done."""
        ...

    def note(self, text: str) -> None:
        """Something to know meanwhile, one line; the current step goes on."""
        ...
