"""
The contract of the cluster's own records: its token, its nodes, and what the
managers see of them.

`tests/contracts/test_roster.py` runs one suite over every implementation.
Threads, durability and errors: as `base.Catalog`.  No method relies on clocks,
of which two managers may have different ones.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from gear_plugin.cluster import Members, Token


@dataclass(frozen=True, slots=True)
class Report:
    """What one manager saw in its latest round of checks."""

    round: int
    """Grows with each report of that manager."""
    seen: frozenset[str]
    """The ids of the nodes that answered."""


class Roster(Protocol):
    """The cluster's records; any number of managers may use them at once."""

    def identity(self) -> Token:
        """The cluster's token; made by whoever asks first, the same for ever after."""
        ...

    def join(self, node: str, address: str) -> Members:
        """
        Have *node* in the list, live, at *address*; safe to repeat.

        The version grows only if that is news.
        """
        ...

    def leave(self, node: str) -> Members:
        """Take *node* off the list; nothing happens if it is not there."""
        ...

    def set_live(self, changes: Mapping[str, bool]) -> Members:
        """Note which nodes answer now and which do not any more; unknown ones are passed over."""
        ...

    def members(self) -> Members:
        """The nodes now."""
        ...

    def wait(self, version: int, timeout_s: float) -> Members:
        """The nodes, as soon as their version is not *version*, or after *timeout_s*."""
        ...

    def report(self, manager: str, seen: Collection[str]) -> None:
        """Replace what *manager* (32 hex digits) saw by a report of its next round."""
        ...

    def reports(self) -> dict[str, Report]:
        """The latest report of each manager."""
        ...

    def close(self) -> None:
        """Free what is open; nothing may be called after it."""
        ...
