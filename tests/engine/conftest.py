"""
The world of the engine tests, made once a session from real parts.

    engine A   dockerd on overlay2: builds the images and the plugin
    registry   docker-registry with TLS
    engine B   dockerd with the plugin installed from that registry, then
               restarted on `--storage-driver gear`
    store      a directory, the only thing that A's `gear push` and B share
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine import images, plugin
from tests.engine.engine import Engine
from tests.engine.registry import Registry
from tests.engine.world import Gear, Node, install

WORK = plugin.BUILD / "engines"


@pytest.fixture(scope="session")
def registry() -> Iterator[Registry]:
    made = Registry(WORK / "registry")
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="session")
def engine_a(registry: Registry) -> Iterator[Engine]:
    engine = Engine("a", WORK / "a", env=registry.client_environ)
    try:
        engine.start("overlay2")
        yield engine
    finally:
        engine.stop()


@pytest.fixture(scope="session")
def store_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared") / "store"


@pytest.fixture(scope="session")
def gear(engine_a: Engine, store_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Gear:
    return Gear(engine_a, tmp_path_factory.mktemp("builder"), store_dir)


@pytest.fixture(scope="session")
def plugin_ref(engine_a: Engine, registry: Registry) -> str:
    """The plugin in the registry."""
    ref = f"{registry.address}/gear/graphdriver:1"
    plugin.publish(engine_a, ref)
    return ref


@pytest.fixture(scope="session", params=["direct", "nested", "fuse-tree"])
def node(
    request: pytest.FixtureRequest,
    plugin_ref: str,
    registry: Registry,
    gear: Gear,
    pushed: dict[str, str],
) -> Iterator[Node]:
    """A fresh engine B for each way of mounting."""
    shutil.rmtree(WORK / "b", ignore_errors=True)
    engine = Engine("b", WORK / "b", env=registry.client_environ)
    try:
        engine.start("overlay2")
        install(engine, plugin_ref, gear.store, f"mount_way={request.param}", "cache_limit=20G")
        engine.restart("gear")
        yield Node(engine, gear.store, request.param)
    finally:
        engine.remove()


@pytest.fixture(scope="session")
def pushed(gear: Gear, registry: Registry) -> dict[str, str]:
    """Every test image, built and pushed; name to the Gear image's reference."""
    references: dict[str, str] = {}
    for name in images.NAMES:
        local = images.ensure(gear.engine, name)
        ref = f"{registry.address}/{name}:1"
        gear.engine.docker("tag", local, ref)
        gear("build", ref)
        gear("push", f"{registry.address}/{name}-gear:1")
        references[name] = f"{registry.address}/{name}-gear:1"
    return references
