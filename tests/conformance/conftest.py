"""One node for all the cases, without an engine."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.driver import Driver
from tests.faults.node import Node


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node whose store has the objects of one small Gear image."""
    made = Node(tmp_path_factory.mktemp("node"), {"tool": b"#!/bin/sh\n" * 300, "name": b"x\n"})
    try:
        made.start()
        yield made
    finally:
        made.close()


class Layers:
    """Makes layers under names of their own, and removes them from the top down."""

    def __init__(self, driver: Driver, prefix: str) -> None:
        self._driver = driver
        self._prefix = prefix
        self._made: list[str] = []
        self._numbers = itertools.count()

    def __call__(self, parent: str = "", *, writable: bool = False) -> str:
        """The id of a new layer."""
        layer = f"{self._prefix}{next(self._numbers)}"
        self._driver.create(layer, parent, writable=writable)
        self._made.append(layer)
        return layer

    def clear(self) -> None:
        """Remove them all."""
        for layer in reversed(self._made):
            self._driver.remove(layer)


@pytest.fixture
def driver(node: Node) -> Driver:
    return Driver(str(node.run / "plugin.sock"))


@pytest.fixture
def layers(driver: Driver, request: pytest.FixtureRequest) -> Iterator[Layers]:
    """Layers of this test, gone afterwards, and nothing mounted."""
    made = Layers(driver, f"t{abs(hash(request.node.name))}-")
    yield made
    made.clear()


@pytest.fixture
def folder(node: Node) -> Path:
    """Where the driver keeps its layers."""
    return node.root / "containers"
