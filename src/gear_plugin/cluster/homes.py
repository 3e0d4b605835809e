"""
Rendezvous hashing: which nodes keep an object for all others.

Every node computes the same answer from the same members, without asking.  When
a node comes or goes, only the objects that it is a home of change homes.
(Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998.)
"""

from __future__ import annotations

import functools
import hashlib
import heapq
from collections.abc import Iterable

from gear_plugin.cluster.members import Member
from gear_plugin.digest import Digest

HOMES = 2
"""Homes of each object: the store is read about this many times per object."""

_MASK = (1 << 64) - 1


def homes(digest: Digest, members: Iterable[Member], count: int = HOMES) -> list[Member]:
    """The *count* homes of the object among *members* (fewer if there are), the first first."""
    key = int.from_bytes(digest.raw[:8], "big")
    return heapq.nlargest(count, members, key=lambda member: (_weight(member.node, key), member))


def _weight(node: str, key: int) -> int:
    """A number that depends on both in no visible way (the finaliser of splitmix64)."""
    mixed = (key ^ _seed(node)) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return mixed ^ (mixed >> 31)


@functools.lru_cache(maxsize=65536)
def _seed(node: str) -> int:
    return int.from_bytes(hashlib.sha256(node.encode()).digest()[:8], "big")
