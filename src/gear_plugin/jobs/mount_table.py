"""
What is mounted where, from the kernel's list: nothing that is mounted is touched.

proc(5), `/proc/self/mountinfo`.  Safe from any thread.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_TABLE = Path("/proc/self/mountinfo")
_OCTAL = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mounted:
    """One mount."""

    point: Path
    kind: str
    """The filesystem's type, such as `nfs4`."""
    source: str
    is_read_only: bool
    options: dict[str, str]
    """Of the filesystem; a flag's value is empty."""


def mounts_at(target: Path, table: Path = _TABLE) -> list[Mounted]:
    """What is mounted exactly on *target*, the topmost last."""
    lines = table.read_text(errors="surrogateescape").splitlines()
    return [mounted for mounted in map(_parse, lines) if mounted.point == target]


def _parse(line: str) -> Mounted:
    before, _, after = line.partition(" - ")
    fields = before.split(" ")
    kind, source, options = after.split(" ", 2)
    words = [word.partition("=") for word in options.split(",")]
    return Mounted(
        point=Path(_unescaped(fields[4])),
        kind=kind,
        source=_unescaped(source),
        is_read_only="ro" in fields[5].split(","),
        options={key: value for key, _, value in words},
    )


def _unescaped(text: str) -> str:
    """As mountinfo writes it, blanks and the like as three octal digits."""
    raw = text.encode(errors="surrogateescape")
    return os.fsdecode(_OCTAL.sub(lambda found: bytes([int(found[1], 8)]), raw))
