"""
Settings into concrete classes, for the commands that make and publish images.
(`node.py` does it for a node's processes.)
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from gear_plugin.config import Config

if TYPE_CHECKING:
    from gear_plugin.catalog import Catalog
    from gear_plugin.content import DirectoryStore
    from gear_plugin.jobs import DockerEngine


def engine(config: Config) -> DockerEngine:
    """The Docker engine that the settings, or DOCKER_HOST, name."""
    from gear_plugin.jobs import DockerEngine

    return DockerEngine(config.docker_host or os.environ.get("DOCKER_HOST"), os.environ)


def store(config: Config) -> DirectoryStore:
    """The object store, made if it is not there."""
    from gear_plugin.content import DirectoryStore

    return DirectoryStore.create(Path(config.store))


def catalog(config: Config) -> Catalog:
    """The catalog, made if it is not there."""
    from gear_plugin.catalog import open_catalog

    return open_catalog(config.catalog)
