"""A start on one node makes the next node's start quicker, by way of the store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gear_plugin.digest import Digest
from tests.faults.conftest import MakeNode, contents
from tests.faults.node import Node
from tests.waiting import eventually

pytestmark = pytest.mark.root

FILES = contents(30)
WANTED = ("f007", "f003", "f021")


@pytest.fixture
def two_nodes(make_node: MakeNode, tmp_path: Path) -> Iterator[tuple[Node, Node]]:
    """Two nodes on one store."""
    settings = {"store": tmp_path / "one/store", "start_profiles": "true"}
    one = make_node(FILES, base=tmp_path / "one", **settings)
    other = make_node(FILES, base=tmp_path / "two", **settings)
    one.start()
    other.start()
    yield one, other


def cached(node: Node) -> set[str]:
    """The names of the files whose content is in the node's cache."""
    folder = node.root / "public"
    return {name for name, data in FILES.items() if (folder / Digest.of(data).shard_path).exists()}


def test_the_second_node_fetches_what_the_first_one_opened(two_nodes: tuple[Node, Node]) -> None:
    """
    Before anything is opened there, in that order, and nothing else.
    """
    one, other = two_nodes
    one.pull()
    tree = one.container()
    for name in WANTED:
        assert (tree / name).read_bytes() == FILES[name]
    for layer in ("container", "index"):
        one.call("Remove", ID=layer)
    profile = one.store / "profiles" / one.image.hex
    eventually(profile.exists, "the start was learned")
    assert profile.read_bytes().endswith(b"".join(Digest.of(FILES[n]).raw for n in WANTED))

    other.pull()
    assert cached(other) == set()
    other.container()
    eventually(lambda: cached(other) == set(WANTED), "the profile was fetched")


def test_a_profile_that_lies_does_no_harm(two_nodes: tuple[Node, Node]) -> None:
    """
    Anybody who can write to the store can write one.
    """
    one, other = two_nodes
    profile = one.store / "profiles" / one.image.hex
    profile.parent.mkdir()
    lies = b"".join(Digest.of(b"%d" % n).raw for n in range(100))
    profile.write_bytes(b"gear start profile 1\n" + lies + Digest.of(FILES["f001"]).raw)
    other.pull()
    tree = other.container()
    assert (tree / "f002").read_bytes() == FILES["f002"]
    eventually(lambda: cached(other) == {"f001", "f002"}, "the true part was fetched")
