"""
The world of the engine tests, made once a session from real parts.

    engine A   dockerd on overlay2: builds the images and the plugin
    registry   docker-registry with TLS
    engine B   dockerd with the plugin installed from that registry, then
               restarted on `--storage-driver gear`
    store      a directory, the only thing that A's `gear push` and B share
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.engine import images, plugin
from tests.engine.engine import Engine
from tests.engine.registry import Registry

WORK = plugin.BUILD / "engines"


@dataclass(frozen=True)
class Gear:
    """The `gear` command against engine A, the store and a catalog of its own."""

    engine: Engine
    root: Path
    store: Path

    @property
    def catalog(self) -> str:
        return f"sqlite://{self.store}/catalog.sqlite"

    def __call__(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `gear WORDS...`."""
        command = [sys.executable, "-m", "gear_plugin", "--host", self.engine.host]
        command += ["--root", str(self.root), "--store", str(self.store)]
        command += ["--catalog", self.catalog, *words]
        environ = {**os.environ, **self.engine.environ}
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=600, check=False, env=environ
        )
        if check:
            assert done.returncode == 0, done.stderr
        return done


@dataclass(frozen=True)
class Node:
    """Engine B, with what a test may see of the plugin from outside."""

    engine: Engine
    store: Path

    @property
    def inner_root(self) -> Path:
        """The plugin's /var/lib/gear, as the host sees it."""
        found = self.engine.docker("plugin", "inspect", "gear", "-f", "{{.Id}}").stdout.strip()
        return self.engine.data_root / "plugins" / found / "propagated-mount"

    def cached(self) -> set[str]:
        """The digests (hex) in the node's public cache."""
        public = self.inner_root / "public"
        return {path.parent.name + path.name for path in public.glob("*/*")}

    def fuse_pid(self) -> int:
        """The plugin's FUSE daemon."""
        return self.process("run-fuse")

    def process(self, word: str) -> int:
        """The plugin's process whose command line has *word*, found by its cgroup's plugin id."""
        found = self.engine.docker("plugin", "inspect", "gear", "-f", "{{.Id}}").stdout.strip()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    group = (entry / "cgroup").read_text()
                except OSError:
                    continue
                if word.encode() in words and found in group:
                    return int(entry.name)
        raise AssertionError(f"no process with {word!r} in the plugin")

    def image(self, ref: str) -> str:
        """The index digest of a pulled Gear image."""
        text = self.engine.docker("image", "inspect", ref).stdout
        data: dict[str, Any] = json.loads(text)[0]["GraphDriver"]["Data"]
        return str(data["GearIndex"])

    def forget_cache(self) -> None:
        """Empty the node's cache of everything that no running container needs."""
        for layer in ("public", "private"):
            for path in (self.inner_root / layer).rglob("*"):
                if path.is_file():
                    path.unlink()


@pytest.fixture(scope="session")
def registry() -> Iterator[Registry]:
    made = Registry(WORK / "registry")
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="session")
def engine_a(registry: Registry) -> Iterator[Engine]:
    engine = Engine("a", WORK / "a", env=registry.client_environ)
    engine.start("overlay2")
    yield engine
    engine.stop()


@pytest.fixture(scope="session")
def store_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="session")
def gear(engine_a: Engine, store_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Gear:
    return Gear(engine_a, tmp_path_factory.mktemp("builder"), store_dir)


@pytest.fixture(scope="session")
def plugin_ref(engine_a: Engine, registry: Registry) -> str:
    """The plugin in the registry."""
    ref = f"{registry.address}/gear/graphdriver:1"
    folder = plugin.build(engine_a)
    engine_a.docker("plugin", "rm", "-f", ref, check=False)
    engine_a.docker("plugin", "create", ref, str(folder))
    engine_a.docker("plugin", "push", ref)
    return ref


def install(engine: Engine, ref: str, store: Path, *settings: str) -> None:
    """Install the plugin as a user would, on an engine that runs another driver."""
    words = ("plugin", "install", "--grant-all-permissions", "--alias", "gear", ref)
    engine.docker(*words, f"store.source={store}", *settings)


@pytest.fixture(scope="session", params=["direct", "nested"])
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
    engine.start("overlay2")
    install(engine, plugin_ref, gear.store, f"mount_way={request.param}")
    engine.restart("gear")
    yield Node(engine, gear.store)
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


def wait_until(condition: Any, *, timeout_s: float = 20.0, what: str = "it") -> None:
    """Poll *condition* until it is true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s} s"
        time.sleep(0.1)
