"""What tests of several packages share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from tests.etcd_server import EtcdServer

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def etcd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """One etcd for all tests that neither stop it nor fill it; it takes a second to start."""
    server = EtcdServer(tmp_path_factory.mktemp("etcd"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def etcd_url(etcd_server: EtcdServer) -> str:
    """A catalog's URL with a prefix that no other test has."""
    return f"etcd://127.0.0.1:{etcd_server.port}/test-{next(_numbers)}"
