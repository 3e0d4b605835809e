"""The store and the catalog of commands on a machine whose settings name a manager."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from gear_plugin.cli import clustered
from gear_plugin.cluster import Settings, Token
from gear_plugin.config import PLUGIN_DEFAULTS, Config
from gear_plugin.errors import AccessDenied, BadConfig, SourceUnavailable, Unsupported
from tests.unit.content.nodes import TOKEN
from tests.unit.jobs.fake_manager import FakeManager

NFS = Settings("nfs://server/export", "etcd://e")


@pytest.fixture
def manager() -> Iterator[FakeManager]:
    manager = FakeManager(TOKEN)
    yield manager
    manager.stop()


@pytest.fixture
def settings(tmp_path: Path, manager: FakeManager) -> dict[str, Any]:
    """Those of a machine that knows its manager, and no more."""
    return {"root": tmp_path, "manager": manager.address, "token": TOKEN.text()}


def places(config: Config) -> tuple[str, str]:
    return config.store, config.catalog


def remember(root: Path, store: str, catalog: str) -> None:
    """What a client leaves when it joins."""
    answer = {"settings": {"store": store, "catalog": catalog}}
    (root / "cluster.json").write_text(json.dumps(answer))


def test_the_manager_names_store_and_catalog(
    settings: dict[str, Any], manager: FakeManager
) -> None:
    """
    Unless the machine's own settings do; a manager is then not even asked.
    """
    manager.settings = NFS
    assert places(clustered.in_cluster(Config(**settings))) == (NFS.store, NFS.catalog)
    own = Config(**settings, store="/own")
    assert places(clustered.in_cluster(own)) == ("/own", NFS.catalog)
    asked = len(manager.requests)
    both = Config(**settings, store="/own", catalog="etcd://own")
    assert clustered.in_cluster(both) == both
    assert len(manager.requests) == asked


def test_without_a_manager_nothing_changes(tmp_path: Path) -> None:
    remember(tmp_path, "/mnt/store", "etcd://e")
    config = Config(root=tmp_path)
    assert clustered.in_cluster(config) == config


def test_a_manager_that_is_down_is_remembered(
    settings: dict[str, Any],
    manager: FakeManager,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """
    By a machine whose node has joined; another is told what to do.
    """
    manager.stop()
    with pytest.raises(SourceUnavailable, match="--store and --catalog"):
        clustered.in_cluster(Config(**settings))
    remember(tmp_path, "/mnt/store", "etcd://e")
    assert places(clustered.in_cluster(Config(**settings))) == ("/mnt/store", "etcd://e")
    assert manager.address in capsys.readouterr().err
    (tmp_path / "cluster.json").write_text("[")
    with pytest.raises(SourceUnavailable):
        clustered.in_cluster(Config(**settings))


def test_a_wrong_token_is_no_manager_that_is_down(settings: dict[str, Any], tmp_path: Path) -> None:
    remember(tmp_path, "/mnt/store", "etcd://e")
    with pytest.raises(AccessDenied):
        clustered.in_cluster(Config(**settings | {"token": Token.new().text()}))
    with pytest.raises(BadConfig, match="token"):
        clustered.in_cluster(Config(**settings | {"token": ""}))


def test_the_clusters_store_is_not_used_with_another_catalog(
    settings: dict[str, Any], manager: FakeManager
) -> None:
    """
    Collecting garbage by it would remove what everybody else has pushed.
    """
    manager.settings = Settings("/mnt/store", "")
    with pytest.raises(Unsupported, match="its manager's machine"):
        clustered.in_cluster(Config(**settings))
    there = clustered.in_cluster(Config(**settings), needs_catalog=False)
    assert there.store == "/mnt/store"
    named = Config(**settings, catalog="sqlite:///mnt/store/catalog.sqlite")
    assert clustered.in_cluster(named).catalog == named.catalog
    manager.settings = Settings("", "")
    assert clustered.in_cluster(Config(**settings)) == Config(**settings)


@pytest.mark.parametrize(
    ("named", "store", "catalog"),
    [
        (NFS, NFS.store, NFS.catalog),
        (Settings("/srv/gear", "etcd://e"), PLUGIN_DEFAULTS["store"], "etcd://e"),
        (Settings("", ""), PLUGIN_DEFAULTS["store"], PLUGIN_DEFAULTS["catalog"]),
    ],
)
def test_what_the_plugin_declares_is_not_the_users_choice(
    named: Settings, store: str, catalog: str
) -> None:
    """
    A host's folder is where the plugin sees it, whatever the cluster calls it.
    """
    config = Config(**PLUGIN_DEFAULTS, in_plugin=True)
    there = clustered.with_settings(config, named)
    assert places(there) == (store, catalog)
    chosen = Config(store="/mnt/store/mine", catalog="etcd://mine", in_plugin=True)
    assert clustered.with_settings(chosen, named) == chosen


def test_the_plugins_own_folder_may_hold_the_catalog(settings: dict[str, Any]) -> None:
    """
    Beside the objects, for all who share it; but not for a store on NFS.
    """
    config = Config(**settings, **PLUGIN_DEFAULTS, in_plugin=True)
    there = clustered.with_settings(config, named := Settings("/srv/gear", ""))
    clustered.check_catalog(there, named)
    there = clustered.with_settings(config, named := Settings(NFS.store, ""))
    with pytest.raises(Unsupported):
        clustered.check_catalog(there, named)


def test_commands_say_whose_store_it_is(settings: dict[str, Any], manager: FakeManager) -> None:
    """
    On stderr; and nothing when it is their own.
    """
    seen: list[tuple[str, str]] = []

    @click.command()
    @clustered.pass_config
    def command(config: Config) -> None:
        """Nothing."""
        seen.append(places(config))

    result = CliRunner().invoke(command, obj=Config(**settings))
    assert seen == [("/srv/store", "etcd://e")]
    assert result.stderr == (
        f"gear: of the cluster at {manager.address}: store /srv/store, catalog etcd://e\n"
    )
    assert CliRunner().invoke(command, obj=Config()).stderr == ""
    asked = len(manager.requests)
    assert CliRunner().invoke(command, ["--help"], obj=Config(**settings)).exit_code == 0
    assert len(manager.requests) == asked
