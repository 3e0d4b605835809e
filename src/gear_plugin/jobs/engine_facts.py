"""
What a Docker engine says of itself, asked quickly.

`engine.DockerEngine` waits minutes for images to be saved; this asks three
small questions and gives up after a few seconds.
Source: moby api/swagger.yaml (v20.10.24), /version, /info, /plugins.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import requests
import urllib3
from docker.errors import APIError, DockerException
from docker.utils import kwargs_from_env

from gear_plugin.errors import EngineUnavailable
from gear_plugin.jobs.causes import system_error
from gear_plugin.jobs.engine import DEFAULT_HOST

_SOME_VERSION = "1.41"
"""For the one question that every version of the API answers alike."""
_OURS = "Gear:"
"""How the description of Gear's own plugin begins (plugin/config.json)."""
_STATUS_MARK = "Gear Version"
"""What no other driver tells in `docker info`."""


@dataclass(frozen=True, slots=True)
class PluginFacts:
    """Gear's managed plugin in an engine; `settings` is its environment."""

    id: str
    name: str
    is_enabled: bool
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """One engine; `driver_status` is the storage driver's part of `docker info`."""

    host: str
    version: str
    api_version: str
    is_experimental: bool
    driver: str
    driver_status: Mapping[str, str]
    data_root: Path
    """On the engine's machine."""
    plugin: PluginFacts | None
    """Gear's; an enabled one if there are several."""

    @property
    def major(self) -> int:
        """20 for 20.10.24; 0: not understood."""
        head = self.version.partition(".")[0]
        return int(head) if head.isdigit() else 0

    @property
    def runs_gear(self) -> bool:
        """Whether its storage driver is Gear's."""
        return _STATUS_MARK in self.driver_status


def ask_engine(host: str | None, environ: Mapping[str, str], *, timeout_s: int) -> EngineFacts:
    """
    Ask the engine at *host* (None: docker's default); *environ* as in DockerEngine.

    Raises EngineUnavailable, with the system's own error as its cause if there
    is one, after about *timeout_s* for each of a few questions.
    """
    host = host or DEFAULT_HOST
    try:
        settings = kwargs_from_env(environment={**environ, "DOCKER_HOST": host})
        with contextlib.closing(_client(settings, timeout_s, _SOME_VERSION)) as api:
            version = api.version(api_version=False)
        with contextlib.closing(_client(settings, timeout_s, version["ApiVersion"])) as api:
            info, plugins = api.info(), api.plugins()
    except (
        *(APIError, DockerException),
        *(requests.RequestException, urllib3.exceptions.HTTPError, KeyError),
    ) as error:
        cause = system_error(error)
        reason = cause.strerror if cause else " ".join(str(error).split())
        raise EngineUnavailable(f"no Docker engine answers at {host}: {reason}") from (
            cause or error
        )
    ours = sorted(filter(None, map(_plugin, plugins)), key=lambda plugin: not plugin.is_enabled)
    return EngineFacts(
        host=host,
        version=str(version.get("Version")),
        api_version=str(version.get("ApiVersion")),
        is_experimental=bool(info.get("ExperimentalBuild")),
        driver=str(info.get("Driver")),
        driver_status={str(pair[0]): str(pair[1]) for pair in info.get("DriverStatus") or ()},
        data_root=Path(info.get("DockerRootDir") or "/var/lib/docker"),
        plugin=ours[0] if ours else None,
    )


def _client(settings: Mapping[str, Any], timeout_s: int, version: str) -> docker.APIClient:
    # Without a version it asks for one while it is made, and then a failure
    # leaves its socket open.
    return docker.APIClient(**settings, timeout=timeout_s, version=version)


def _plugin(found: dict[str, Any]) -> PluginFacts | None:
    """Gear's plugin among an engine's; None: another's."""
    config, settings = found.get("Config") or {}, found.get("Settings") or {}
    types = json.dumps((config.get("Interface") or {}).get("Types"))
    if "graphdriver" not in types or not str(config.get("Description")).startswith(_OURS):
        return None
    environment = [str(entry).partition("=") for entry in settings.get("Env") or ()]
    return PluginFacts(
        id=str(found.get("Id")),
        name=str(found.get("Name")),
        is_enabled=bool(found.get("Enabled")),
        settings={name: value for name, _, value in environment},
    )
