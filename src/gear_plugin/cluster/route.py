"""
Whom a node asks for an object that it lacks, before it goes to the store.

The whole order is: its cache, this route, the store, the manager
(docs/decisions/0007-cluster.md).  A request of another node is answered without
a route, so that no request goes through a third node, whatever each of them
believes about who is live.
"""

from __future__ import annotations

from gear_plugin.cluster.members import Member, Members
from gear_plugin.digest import Digest


def route(digest: Digest, members: Members, me: str) -> list[Member]:
    """
    The object's live homes in their order, for the node with the id *me*.

    Empty if *me* is one of them: it gets the object from the store itself.
    """
    homes = members.homes(digest)
    return [] if any(home.node == me for home in homes) else homes
