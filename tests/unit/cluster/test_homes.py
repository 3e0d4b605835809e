"""Which nodes keep an object."""

from __future__ import annotations

from collections import Counter

import pytest

from gear_plugin.cluster import Member, homes
from gear_plugin.digest import Digest

NODES = [Member(f"{number:032x}", f"10.0.0.{number}:2020") for number in range(20)]
OBJECTS = [Digest.of(b"%d" % number) for number in range(4000)]


def test_every_node_finds_the_same_homes_in_the_same_order() -> None:
    for digest in OBJECTS[:100]:
        assert homes(digest, NODES) == homes(digest, reversed(NODES))
        assert homes(digest, NODES, 1) == homes(digest, NODES, 5)[:1]


def test_few_nodes_are_all_homes() -> None:
    assert homes(OBJECTS[0], []) == []
    assert homes(OBJECTS[0], NODES[:1]) == NODES[:1]
    assert set(homes(OBJECTS[0], NODES[:2])) == set(NODES[:2])


@pytest.mark.parametrize("place", [0, 1])
def test_the_load_is_even(place: int) -> None:
    """
    200 objects each in the mean; 5 standard deviations are 70.
    """
    load = Counter(homes(digest, NODES)[place].node for digest in OBJECTS)
    assert len(load) == len(NODES)
    assert max(load.values()) < 270
    assert min(load.values()) > 130


def test_a_node_that_goes_changes_the_homes_of_its_own_objects_only() -> None:
    gone = NODES[7]
    left = [node for node in NODES if node != gone]
    for digest in OBJECTS:
        before, after = homes(digest, NODES), homes(digest, left)
        kept = [node for node in before if node != gone]
        assert after[: len(kept)] == kept
