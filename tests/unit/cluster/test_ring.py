"""The look-up of homes among many nodes."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest

from gear_plugin.cluster.ring import POINTS, PROBES, Ring, _points, _probes
from gear_plugin.digest import Digest

OBJECTS = [Digest.of(b"%d" % number) for number in range(500)]


def nodes(count: int) -> list[str]:
    """Ids that look like those of real nodes."""
    return [hashlib.md5(b"%d" % number).hexdigest() for number in range(count)]


def nearest(digest: Digest, ids: list[str], count: int) -> list[int]:
    """The definition, computed for every pair: the nodes that are the shortest way off."""

    def way(node: str) -> int:
        return min((point - probe) % 2**64 for point in _points(node) for probe in _probes(digest))

    return sorted(range(len(ids)), key=lambda place: way(ids[place]))[:count]


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_the_lookup_finds_the_nodes_with_the_greatest_weights(size: int, count: int) -> None:
    ring = Ring(nodes(size))
    for digest in OBJECTS[:40]:
        assert ring.homes(digest, count) == nearest(digest, nodes(size), count)


def test_no_nodes_and_no_homes() -> None:
    assert Ring([]).homes(OBJECTS[0]) == []
    assert Ring(nodes(3)).homes(OBJECTS[0], 0) == []


def test_the_probes_of_an_object_differ() -> None:
    """
    Even one whose content id has a zero where the step is taken from.
    """
    for digest in (*OBJECTS[:50], Digest(bytes(32))):
        assert len(set(_probes(digest))) == PROBES
    assert len({point for node in nodes(50) for point in _points(node)}) == 50 * POINTS


def test_what_a_node_kept_goes_to_many_when_it_dies() -> None:
    """
    Not to one neighbour, which would then carry twice its share.
    """
    ids = nodes(40)
    whole = Ring(ids)
    left = Ring(ids[:-1])
    heirs = Counter(
        next(place for place in left.homes(digest) if place not in whole.homes(digest))
        for digest in (Digest.of(b"%d" % number) for number in range(4000))
        if 39 in whole.homes(digest)
    )
    assert len(heirs) > 30
    assert max(heirs.values()) < 0.15 * sum(heirs.values())
