"""Nodes of one cluster, each with its real processes, and a store that is a directory."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gear_plugin.cli import node as nodes
from gear_plugin.cluster import Members, Settings, Token, homes
from gear_plugin.config import Config
from gear_plugin.content import DirectoryStore, LocalClient
from gear_plugin.digest import Digest
from gear_plugin.errors import GearError
from tests.unit.jobs.fake_manager import FakeManager
from tests.waiting import eventually

IMAGE = Digest.of(b"an index")


class Node:
    """`gear client` in a process, with the port that it starts."""

    def __init__(self, folder: Path, manager: FakeManager) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            listen = f"127.0.0.1:{free.getsockname()[1]}"
        self.config = Config(
            root=folder / "gear",
            run=folder,
            manager=manager.address,
            token=manager.token.text(),
            listen=listen,
        )
        folder.mkdir()
        self.client = LocalClient(folder / "client.sock", 20)
        environ = {**os.environ, **nodes.as_environment(self.config)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gear_plugin", "client"], env=environ
        )

    def members(self) -> list[str]:
        """The ids of the nodes it knows."""
        try:
            return [member["node"] for member in self.client.cluster()["members"]["nodes"]]
        except GearError:
            return []

    def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.config.listen, timeout=20)
        try:
            headers = {"Authorization": Token.parse(self.config.token).header()}
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def is_up(self) -> bool:
        try:
            return self.ask("GET", "/info")[0] == 200
        except OSError:
            return False

    def has(self, digest: Digest) -> bool:
        return (self.config.root / "public" / digest.shard_path).exists()

    def sources(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ask("GET", "/info")[1])["fetched"]["sources"]
        return found


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[list[Node], DirectoryStore]]:
    store = DirectoryStore.create(tmp_path / "store")
    manager = FakeManager(Token.new())
    manager.settings = Settings(str(tmp_path / "store"), "")
    found = [Node(tmp_path / name, manager) for name in ("a", "b", "c")]
    try:
        eventually(lambda: all(len(node.members()) == 3 for node in found), timeout_s=60)
        eventually(lambda: all(node.is_up() for node in found), timeout_s=60)
        yield found, store
    finally:
        for node in found:
            node.process.send_signal(signal.SIGTERM)
        ends = [node.process.wait(30) for node in found]
        manager.stop()
        assert ends == [0, 0, 0]


def test_a_node_gets_objects_through_their_homes(
    cluster: tuple[list[Node], DirectoryStore], tmp_path: Path
) -> None:
    """
    The home gets it from the store, keeps it, and hands it on; in batches too.
    """
    found, store = cluster
    by_id = {node.client.cluster()["node"]: node for node in found}
    members = Members.from_json(found[0].client.cluster()["members"]).nodes
    contents = [os.urandom(1000) for _ in range(20)]
    digests = []
    for content in contents:
        (tmp_path / "file").write_bytes(content)
        digests.append(Digest.of(content))
        store.put(digests[-1], tmp_path / "file")
    asker = found[0]
    asker_id = asker.client.cluster()["node"]
    away = [d for d in digests if asker_id not in {m.node for m in homes(d, members)}]
    assert away, "of 20 objects a third has its homes elsewhere"
    asker.client.admit(IMAGE)
    for digest in away:
        asker.client.fetch(IMAGE, digest)
        assert any(by_id[home.node].has(digest) for home in homes(digest, members))
    assert "store" not in {name for name, counts in asker.sources().items() if counts["objects"]}

    status, stream = found[1].ask("POST", "/batch", b"".join(digest.raw for digest in digests))
    assert status == 200
    assert stream == b"".join(
        digest.raw + (1000).to_bytes(8, "big") + content
        for digest, content in zip(digests, contents, strict=True)
    )
