"""Nodes for the fault tests."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.node import Node

MakeNode = Callable[..., Node]


def contents(count: int, size_bytes: int = 20_000) -> dict[str, bytes]:
    """Files that do not compress, different from one another."""
    chance = random.Random(count)
    return {f"f{number:03}": chance.randbytes(size_bytes) for number in range(count)}


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[MakeNode]:
    """Makes nodes, and ends them all."""
    made: list[Node] = []

    def make(files: dict[str, bytes], base: Path = tmp_path, **settings: Any) -> Node:
        node = Node(base, files, **settings)
        made.append(node)
        return node

    yield make
    for node in made:
        node.close()
