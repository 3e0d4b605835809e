"""Which nodes keep an object for all others; how they are found: ring.py."""

from __future__ import annotations

from collections.abc import Iterable

from gear_plugin.cluster.members import Member
from gear_plugin.cluster.ring import HOMES, Ring
from gear_plugin.digest import Digest


def homes(digest: Digest, members: Iterable[Member], count: int = HOMES) -> list[Member]:
    """
    The *count* homes of the object among *members* (fewer if there are), the first first.

    Sorts the members each time; who asks often asks `Members.homes`.
    """
    nodes = list(members)
    return [nodes[place] for place in Ring([member.node for member in nodes]).homes(digest, count)]
