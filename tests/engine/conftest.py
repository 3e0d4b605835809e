"""
The world of the engine tests, made once a session from real parts.

    engine A   dockerd on overlay2: builds the images and the plugin
    registry   docker-registry with TLS
    engine B   dockerd with the plugin installed from that registry, then
               restarted on `--storage-driver gear`; a fresh one for each way
               of mounting
    store      a directory, the only thing that A's `gear push` and B share

`-k 'nested and web'` is quick: only the images that the chosen tests name are
made.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.engine import images, plugin
from tests.engine.compare import Exported, Scan, exported, scan
from tests.engine.containers import DOCKERS_OWN, running, tree
from tests.engine.engine import Engine
from tests.engine.registry import Registry
from tests.engine.world import Gear, Node, install

WORK = plugin.BUILD / "engines"
WAYS = ("direct", "nested", "fuse-tree")
AT_ONCE = 2
"""Images made at the same time; each step is now the disk's, now a processor's."""


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
        forget_old_registries(engine)
        yield engine
    finally:
        engine.stop()


def forget_old_registries(engine: Engine) -> None:
    """Each session has a registry on a port of its own; the names of earlier ones go."""
    listed = engine.docker("images", "--format", "{{.Repository}}:{{.Tag}}").stdout.split()
    old = [ref for ref in listed if ref.startswith("127.0.0.1:") and "<none>" not in ref]
    if old:
        engine.docker("rmi", "-f", *old)


@pytest.fixture(scope="session")
def gear(engine_a: Engine) -> Iterator[Gear]:
    """`gear` with a root and a store of its own: gigabytes, which do not outlive the session."""
    folder = WORK / "gear"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    yield Gear(engine_a, folder.resolve() / "builder", folder.resolve() / "store")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def plugin_ref(engine_a: Engine, registry: Registry) -> str:
    """The plugin in the registry."""
    ref = f"{registry.address}/gear/graphdriver:1"
    plugin.publish(engine_a, ref)
    return ref


LARGE = ("jupyter", "postgres", "java", "node")
"""Images of minutes: in `make test` they run one way, in `make test-full` all three."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make test` leaves to `make test-full`."""
    for item in items:
        values = getattr(item, "callspec", None)
        chosen = values.params.values() if values is not None else ()
        if any(way in chosen for way in WAYS[1:]) and any(name in chosen for name in LARGE):
            item.add_marker(pytest.mark.full)


@pytest.fixture(scope="session", params=WAYS)
def node(
    request: pytest.FixtureRequest,
    plugin_ref: str,
    registry: Registry,
    gear: Gear,
    pushed: dict[str, str],  # built before B starts, not beside it
) -> Iterator[Node]:
    """A fresh engine B for each way of mounting."""
    engine = Engine("b", WORK / "b", env=registry.client_environ)
    engine.remove()  # what a crashed predecessor left, mounts first
    try:
        engine.start("overlay2")
        # Without profiles what is read is what was opened, whatever ran before.
        settings = (f"mount_way={request.param}", "cache_limit=20G", "start_profiles=false")
        install(engine, plugin_ref, gear.store, *settings)
        engine.restart("gear")
        yield Node(engine, gear.store, request.param)
    finally:
        engine.remove()


@pytest.fixture(scope="session")
def pushed(request: pytest.FixtureRequest, gear: Gear, registry: Registry) -> dict[str, str]:
    """The test images, built and pushed; name to the Gear image's reference."""

    def push(name: str) -> tuple[str, str]:
        local = images.ensure(gear.engine, name)
        ref = f"{registry.address}/{name}:1"
        gear.engine.docker("tag", local, ref)
        gear("build", ref)
        gear("push", f"{registry.address}/{name}-gear:1")
        return name, f"{registry.address}/{name}-gear:1"

    with ThreadPoolExecutor(AT_ONCE) as workers:
        return dict(workers.map(push, wanted(request.session.items)))


def wanted(items: list[pytest.Item]) -> list[str]:
    """The images that the tests *items* are about."""
    about = {"web", "web2", "nginx"}
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            about.add(str(item.callspec.params.get("name", "web")))
    return [name for name in images.NAMES if name in about]


class Originals:
    """The original images in containers of engine A, looked at once each."""

    def __init__(self, engine: Engine, pushed: dict[str, str], scratch: Path) -> None:
        self._engine = engine
        self._pushed = pushed
        self._scratch = scratch
        self._scans: dict[str, Scan] = {}
        self._exports: dict[str, Exported] = {}

    def ref(self, name: str) -> str:
        """The original of the image *name*."""
        return self._pushed[name].replace("-gear:", ":")

    def config(self, name: str) -> object:
        """Its configuration."""
        found = self._engine.docker("image", "inspect", self.ref(name)).stdout
        return json.loads(found)[0]["Config"]

    def scan(self, name: str) -> Scan:
        """What a container of it sees."""
        if name not in self._scans:
            with running(self._engine, self.ref(name)) as container:
                self._scans[name] = scan(tree(self._engine, container), DOCKERS_OWN)
        return self._scans[name]

    def exported(self, name: str) -> Exported:
        """What `docker export` sends of such a container."""
        if name not in self._exports:
            with running(self._engine, self.ref(name)) as container:
                self._exports[name] = exported(self._engine, container, self._scratch, DOCKERS_OWN)
        return self._exports[name]


@pytest.fixture(scope="session")
def originals(
    engine_a: Engine, pushed: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Originals:
    """The original images, as engine A's containers show them."""
    return Originals(engine_a, pushed, tmp_path_factory.mktemp("originals"))
