"""The client of a node in a cluster, put together from its settings."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gear_plugin.cli import wiring
from gear_plugin.cli.clustered import with_port
from gear_plugin.cli.leave import leave
from gear_plugin.cli.membership import Membership, membership
from gear_plugin.cli.node import local_server
from gear_plugin.cluster import Settings
from gear_plugin.config import PLUGIN_DEFAULTS, Config
from gear_plugin.content import Cache, DirectoryStore, Fetcher
from gear_plugin.content.chosen import ChosenStore
from gear_plugin.digest import Digest
from gear_plugin.errors import BadConfig, NotFound
from gear_plugin.jobs.nodes import NodePlace
from tests.unit.content.nodes import TOKEN, FakeNode, running
from tests.unit.jobs.fake_manager import FakeManager
from tests.waiting import eventually

IMAGE = Digest.of(b"index")


@pytest.fixture
def manager() -> Iterator[FakeManager]:
    manager = FakeManager(TOKEN)
    manager.settings = Settings()
    yield manager
    manager.stop()


@pytest.fixture(autouse=True)
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here no node has a port."""
    monkeypatch.setattr("gear_plugin.cli.membership._is_served", lambda _listen: True)


@pytest.fixture
def nodes() -> Iterator[list[FakeNode]]:
    with running(3) as found:
        yield found


def no_mount(address: str, _target: Path, _timeout_s: float) -> None:
    pytest.fail(f"nothing to mount: {address}")


def settings(root: Path, fake: FakeManager, **changes: Any) -> Config:
    given = {"root": root, "manager": fake.address, "token": TOKEN.text(), **changes}
    return Config(**given)


@contextlib.contextmanager
def member(config: Config) -> Iterator[tuple[Membership, Fetcher]]:
    """What the client does with the parts."""
    found = membership(config, no_mount)
    cache = Cache(config.root, 0)
    cache.admit(IMAGE)
    fetcher = Fetcher(cache, found.sources, peers=found.peers, stall_s=5, timeout_s=20, workers=4)
    found.joined.start()
    try:
        yield found, fetcher
    finally:
        found.joined.stop()


def homes_without(nodes: list[FakeNode], node: str, number: int) -> bytes:
    """Content whose two homes are among *nodes*, not this node."""
    from gear_plugin.cluster import Member, homes

    members = [*(other.member for other in nodes), Member(node, "127.0.0.1:1")]
    for at in range(number, number + 1000):
        content = b"content %d" % at
        if all(home.node != node for home in homes(Digest.of(content), members)):
            return content
    raise AssertionError


def test_node_fetches_from_homes_then_store_then_manager(
    tmp_path: Path, manager: FakeManager, nodes: list[FakeNode]
) -> None:
    """Each counted under its name."""
    manager.set(*(node.member for node in nodes))
    store = DirectoryStore.create(tmp_path / "store")
    config = settings(tmp_path / "gear", manager, store=str(tmp_path / "store"))
    with member(config) as (found, fetcher):
        eventually(lambda: len(found.joined.members().nodes) == 4)
        at_home = homes_without(nodes, found.joined.node, 0)
        in_store = homes_without(nodes, found.joined.node, 2000)
        for node in nodes:
            node.put(at_home)
        (tmp_path / "file").write_bytes(in_store)
        store.put(Digest.of(in_store), tmp_path / "file")
        fetcher.fetch(IMAGE, Digest.of(at_home))
        fetcher.fetch(IMAGE, Digest.of(in_store))
        counts = fetcher.counts().sources
        assert counts["other nodes"].objects == 1
        assert counts["other nodes"].missing == 1
        assert counts[store.name].objects == 1
        assert list(counts)[-1] == f"manager {manager.address}"
        asked = f"/download/{Digest.of(at_home)}"
        assert any(node.requests[:1] == [asked] for node in nodes)


def test_store_of_the_cluster_is_used_when_the_node_names_none(
    tmp_path: Path, manager: FakeManager
) -> None:
    """Once the manager has said which."""
    store = DirectoryStore.create(tmp_path / "shared")
    (tmp_path / "file").write_bytes(b"x")
    store.put(Digest.of(b"x"), tmp_path / "file")
    manager.settings = Settings(store=str(tmp_path / "shared"))
    with member(settings(tmp_path / "gear", manager)) as (found, fetcher):
        assert isinstance(found.sources[0], ChosenStore)
        eventually(lambda: found.joined.settings() == manager.settings)
        eventually(lambda: found.profiles.save(IMAGE, []))
        fetcher.fetch(IMAGE, Digest.of(b"x"))
        assert fetcher.counts().sources["store"].objects == 1


def test_store_of_the_node_beats_the_clusters(tmp_path: Path, manager: FakeManager) -> None:
    """Who sets one has a reason."""
    config = settings(tmp_path / "gear", manager, store=str(tmp_path / "mine"))
    found = membership(config, no_mount)
    assert isinstance(found.sources[0], DirectoryStore)


def test_the_plugins_declared_store_does_not_beat_the_clusters(
    tmp_path: Path, manager: FakeManager, caplog: pytest.LogCaptureFixture
) -> None:
    """
    `docker plugin set gear manager=... token=...` is all: what is on NFS is
    mounted, a folder is where the plugin sees the host's.
    """
    caplog.set_level("INFO")
    mounted: list[str] = []
    config = settings(tmp_path / "gear", manager, in_plugin=True, **PLUGIN_DEFAULTS)
    manager.settings = Settings(store="nfs://server/export")
    found = membership(config, lambda address, *_: mounted.append(address))
    found.joined.start()
    eventually(lambda: mounted == ["nfs://server/export"])
    found.joined.stop()
    manager.settings = Settings(store="/srv/elsewhere")
    found = membership(config.model_copy(update={"root": tmp_path / "other"}), no_mount)
    found.joined.start()
    eventually(lambda: "the object store is /mnt/store\n" in caplog.text)
    found.joined.stop()


def test_address_is_that_of_the_settings(tmp_path: Path, manager: FakeManager) -> None:
    """Or the port alone, and the manager sees the rest."""
    for number, (changes, told) in enumerate(
        [
            ({}, ":2020"),
            ({"listen": "127.0.0.1:7000"}, ":7000"),
            ({"listen": "0.0.0.0:7000", "advertise": "node.example"}, "node.example:7000"),
            ({"advertise": "[fd00::1]:99"}, "[fd00::1]:99"),
        ]
    ):
        found = membership(settings(tmp_path / str(number), manager, **changes), no_mount)
        assert found.joined._address == told


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"token": ""}, "wants 'token' too"),
        ({"token": "secret"}, "no cluster token"),
        ({"manager": "a b"}, "setting 'manager'"),
        ({"manager": ":2019"}, "setting 'manager'"),
        ({"listen": "2020"}, "setting 'listen'"),
        ({"advertise": "x:y"}, "setting 'advertise'"),
        ({"tls_cert": Path("/nowhere")}, "tls_key"),
    ],
)
def test_settings_that_make_no_sense(
    tmp_path: Path, manager: FakeManager, changes: dict[str, Any], says: str
) -> None:
    """One line that names the setting, and never the token."""
    with pytest.raises(BadConfig, match=says) as caught:
        membership(settings(tmp_path, manager, **changes), no_mount)
    assert "secret" not in str(caught.value)


def test_node_leaves_on_request(
    tmp_path: Path, manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`gear leave` asks the client, which asks the manager."""
    config = settings(tmp_path / "gear", manager, run=tmp_path / "run")
    config.run.mkdir()
    place = NodePlace("this machine", config.root, config.run)
    monkeypatch.setattr(wiring, "nodes", lambda _config: [place])
    runner = CliRunner()
    assert isinstance(runner.invoke(leave, obj=config).exception, NotFound)
    server = local_server(config)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        eventually(lambda: len(manager.members.nodes) == 1)
        (node,) = manager.members.nodes
        result = runner.invoke(leave, ["--json"], obj=config)
        assert result.exit_code == 0
        assert json.loads(result.stdout) == [{"node": node.node, "cluster": TOKEN.cluster}]
        assert manager.members.nodes == ()
    finally:
        server.stop()
        thread.join(10)


def test_client_without_a_manager_is_on_its_own(tmp_path: Path) -> None:
    """As before there were clusters."""
    server = local_server(Config(root=tmp_path / "gear", run=tmp_path, store=str(tmp_path / "s")))
    assert server.answer(b'{"op": "cluster"}')["error"] == "NotFound"
    sources = server.answer(b'{"op": "status"}')["fetched"]["sources"]
    assert list(sources) == [f"store {tmp_path / 's'}", "builds of this machine"]


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("manager", "manager:2019"),
        ("manager:7", "manager:7"),
        ("10.0.0.1", "10.0.0.1:2019"),
        ("[fd00::1]", "[fd00::1]:2019"),
        ("[fd00::1]:7", "[fd00::1]:7"),
    ],
)
def test_port_is_added(value: str, address: str) -> None:
    """Where none is said."""
    assert with_port("manager", value, 2019) == address
