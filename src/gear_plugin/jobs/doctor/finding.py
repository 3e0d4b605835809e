"""
What a check found: one line each.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How bad it is; only FIX means that something is broken."""

    OK = "ok"
    WARN = "warn"
    """Works, but not as well as it could, or not for everything."""
    FIX = "fix"
    SKIP = "skip"
    """Could not be looked at."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: *detail* says what is, *remedy* what to do (empty: nothing)."""

    check: str
    status: Status
    detail: str
    remedy: str = ""


def ok(check: str, detail: str) -> Finding:
    """All is well."""
    return Finding(check, Status.OK, detail)


def warn(check: str, detail: str, remedy: str = "") -> Finding:
    """It could be better."""
    return Finding(check, Status.WARN, detail, remedy)


def fix(check: str, detail: str, remedy: str) -> Finding:
    """Something is broken."""
    return Finding(check, Status.FIX, detail, remedy)


def skip(check: str, detail: str, remedy: str = "") -> Finding:
    """Could not be looked at."""
    return Finding(check, Status.SKIP, detail, remedy)
