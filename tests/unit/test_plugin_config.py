"""plugin/config.json says the same as Config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gear_plugin.config import PLUGIN_DEFAULTS, Config, load

PLUGIN: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "plugin" / "config.json").read_text()
)
FIXED = {"root", "run", "docker_host", "in_plugin"}
"""Settings that have one right value inside the plugin, or none."""


def test_every_setting_can_be_set_with_docker_plugin_set() -> None:
    """
    And nothing is declared that Config would not read.
    """
    declared = {entry["name"] for entry in PLUGIN["env"]}
    assert declared == set(Config.model_fields) - FIXED
    assert all(entry["settable"] == ["value"] for entry in PLUGIN["env"])


def test_declared_defaults_are_the_programs() -> None:
    """
    Only where the store is, and docker's settings for registries, differs inside the plugin.
    """
    environ = {entry["name"]: entry["value"] for entry in PLUGIN["env"]}
    inside = load(environ=environ, bare_names=True)
    docker = Path("/mnt/etc/docker")
    expected = {**PLUGIN_DEFAULTS, "docker_etc": docker, "docker_config": docker}
    assert inside == Config(**expected, in_plugin=True)


def test_an_empty_value_means_unset() -> None:
    """
    docker passes every declared variable, set or not.
    """
    assert load(environ={"store": "", "cache_limit": ""}, bare_names=True) == Config(in_plugin=True)


@pytest.mark.parametrize("key", ["propagatedMount", "mounts"])
def test_paths_fit_the_settings(key: str) -> None:
    """
    Mounts reach the host only below the propagated mount.
    """
    values = {"propagatedMount": str(Config().root), "mounts": ["/mnt/store", "/mnt/etc"]}
    found = PLUGIN[key]
    if key == "mounts":
        found = [mount["destination"] for mount in found]
    assert found == values[key]


def test_it_is_a_driver_of_layers_and_of_volumes() -> None:
    """
    A managed plugin is never asked what it implements; registries need the host's network.
    """
    assert PLUGIN["interface"]["types"] == ["docker.graphdriver/1.0", "docker.volumedriver/1.0"]
    assert PLUGIN["network"] == {"type": "host"}
