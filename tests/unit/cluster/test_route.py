"""Whom a node asks for an object that it lacks."""

from __future__ import annotations

from dataclasses import replace

from gear_plugin.cluster import Member, Members, homes, route
from gear_plugin.digest import Digest

NODES = tuple(Member(f"{number:032x}", f"10.0.0.{number}:2020") for number in range(12))
MEMBERS = Members(1, NODES)
OBJECTS = [Digest.of(b"%d" % number) for number in range(300)]


def test_a_node_that_is_no_home_asks_the_homes() -> None:
    """
    Half of the nodes begin with the first, whatever the object: its link has half the load.
    """
    for digest in OBJECTS:
        found = homes(digest, NODES)
        asked = [route(digest, MEMBERS, node.node) for node in NODES if node not in found]
        assert all(sorted(one) == sorted(found) for one in asked)
        assert 3 <= sum(one == found for one in asked) <= 7


def test_a_home_asks_no_other_node() -> None:
    """
    It goes to the store: two homes that ask each other would wait for each other.
    """
    for digest in OBJECTS:
        for home in homes(digest, NODES):
            assert route(digest, MEMBERS, home.node) == []


def test_dead_nodes_are_not_asked() -> None:
    """
    What a dead node was a home of has another home, as if it had never been.
    """
    dead = NODES[4]
    members = Members(2, tuple(replace(node, is_live=node != dead) for node in NODES))
    left = [node for node in NODES if node != dead]
    for digest in OBJECTS:
        found = homes(digest, left)
        asker = next(node for node in left if node not in found)
        assert sorted(route(digest, members, asker.node)) == sorted(found)


def test_a_node_that_is_thought_dead_asks_like_any_other() -> None:
    """
    It was cut off for a while; nobody asks it, and it asks the others.
    """
    members = Members(2, tuple(replace(node, is_live=node != NODES[4]) for node in NODES))
    for digest in OBJECTS:
        assert len(route(digest, members, NODES[4].node)) == 2


def test_alone_or_with_one_other_there_is_nobody_to_ask() -> None:
    """
    With two homes for each object, two nodes are home of everything.
    """
    for nodes in ((), NODES[:1], NODES[:2]):
        members = Members(1, nodes)
        assert all(route(digest, members, NODES[0].node) == [] for digest in OBJECTS if nodes)
    assert route(OBJECTS[0], Members(1, ()), NODES[0].node) == []
    assert route(OBJECTS[0], Members(1, NODES[:1]), NODES[5].node) == [NODES[0]]


def test_nodes_set_aside_are_passed_over_as_if_they_were_dead() -> None:
    """
    However many there are, and the next in line is a home then.
    """
    aside = {node.node for node in NODES[:7]}
    left = NODES[7:]
    for digest in OBJECTS:
        found = homes(digest, left)
        for node in left:
            expected = [] if node in found else sorted(found)
            assert sorted(route(digest, MEMBERS, node.node, aside)) == expected
    everybody = {node.node for node in NODES}
    assert route(OBJECTS[0], MEMBERS, "f" * 32, everybody) == []
