"""
Scenarios run on sides, and where two sides differ.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence

from tests.engine.differential.side import Note, Side

_MOST_LINES = 60
"""Of one note that differs; the rest is counted."""


def notes_of(side: Side, scenario: Callable[[Side], None]) -> list[Note]:
    """What *scenario* notes on *side*."""
    with side:
        side.notes = []
        scenario(side)
        return side.notes


def differences(theirs: Sequence[Note], ours: Sequence[Note]) -> list[str]:
    """Where the notes *ours* are not *theirs*, readable: `-` theirs, `+` ours."""
    labels = [note.label for note in theirs], [note.label for note in ours]
    if labels[0] != labels[1]:
        return ["not the same steps:", *difflib.unified_diff(*labels, lineterm="", n=1)]
    found = []
    for one, two in zip(theirs, ours, strict=True):
        if one.lines != two.lines:
            lines = list(difflib.unified_diff(one.lines, two.lines, lineterm="", n=0))[2:]
            lines = [line for line in lines if not line.startswith("@@")]
            more = [f"  ... {len(lines) - _MOST_LINES} lines more"]
            found += [f"{one.label}:", *lines[:_MOST_LINES]]
            found += more if len(lines) > _MOST_LINES else []
    return found
