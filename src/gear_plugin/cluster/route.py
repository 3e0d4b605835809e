"""
Whom a node asks for an object that it lacks, before it goes to the store.

The whole order is: its cache, this route, the store, the manager
(docs/decisions/0007-cluster.md).  A request of another node is answered without
a route, so that no request goes through a third node, whatever each of them
believes about who is live.
"""

from __future__ import annotations

from collections.abc import Container

from gear_plugin.cluster.members import Member, Members
from gear_plugin.cluster.ring import HOMES
from gear_plugin.digest import Digest


def route(
    digest: Digest, members: Members, me: str, aside: Container[str] = frozenset()
) -> list[Member]:
    """
    The object's live homes in the order in which the node with the id *me* asks them.

    One half of all nodes begins with the first home, the other with the second:
    what all want at once leaves by two links.  Empty if *me* is one of them: it
    gets the object from the store itself.

    Nodes in *aside* (ids), which *me* could not reach or does not trust, are
    passed over and the next in line are homes instead.  When all of a route fail,
    ask for another, with them in *aside*, before the store: otherwise an object
    whose homes died together is read there by every node, until the news comes.
    """
    homes = _homes(digest, members, aside)
    if any(home.node == me for home in homes):
        return []
    turn = (int(me, 16) ^ digest.raw[-1]) % max(len(homes), 1)
    return homes[turn:] + homes[:turn]


def _homes(digest: Digest, members: Members, aside: Container[str]) -> list[Member]:
    count = HOMES
    while True:
        found = members.homes(digest, count)
        usable = [home for home in found if home.node not in aside]
        if len(usable) >= HOMES or len(found) < count:
            return usable[:HOMES]
        count *= 2
