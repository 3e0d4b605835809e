"""One cluster for all the tests of a module: four nodes, a manager, a real etcd."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.cluster.fleet import ClusterNode, Fleet, Image

NODES = (1, 2, 3, 4)


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The cluster."""
    with Fleet(tmp_path_factory.mktemp("fleet"), NODES) as made:
        yield made


@pytest.fixture(autouse=True)
def whole(fleet: Fleet) -> Iterator[None]:
    """Each test begins and ends with all nodes live."""
    yield
    fleet.start_nodes()


def read_everywhere(image: Image, nodes: list[ClusterNode]) -> None:
    """Start *image* on all *nodes* at once and read every file of it; all must be right."""
    trees = [node.tree(image) for node in nodes]

    def read(tree: object) -> dict[str, bytes]:
        return {name: (tree / name).read_bytes() for name in image.files}  # type: ignore[operator]

    with ThreadPoolExecutor(len(nodes)) as workers:
        for found in workers.map(read, trees):
            assert found == image.files
