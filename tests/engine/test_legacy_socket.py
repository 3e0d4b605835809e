"""
The same driver outside a managed plugin: `gear graphdriver --socket ...`.

Here the daemons are ordinary processes of the host, so this is also where
they are stopped and killed one by one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.engine.engine import Engine
from tests.engine.plugin import BUILD
from tests.engine.registry import Registry
from tests.engine.world import Gear
from tests.waiting import eventually

pytestmark = [pytest.mark.engine, pytest.mark.root]

SOCKET = Path("/run/docker/plugins/gear-legacy.sock")
WATCHDOG_S = 2


@dataclass(frozen=True)
class Legacy:
    """An engine on `gear graphdriver`, whose root and run folder are *root* and *run*."""

    engine: Engine
    root: Path
    run: Path

    def fuse_pid(self) -> int:
        """The FUSE daemon that serves now; 0: none."""
        try:
            return int(json.loads((self.run / "fuse.json").read_text())["pid"])
        except FileNotFoundError:
            return 0

    def mounts(self) -> list[str]:
        """Every mount below the two folders."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        points = [line.split()[4] for line in lines]
        return [point for point in points if point.startswith((f"{self.root}/", f"{self.run}/"))]


@pytest.fixture(scope="module")
def legacy(
    gear: Gear, registry: Registry, pushed: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Legacy]:
    base = tmp_path_factory.mktemp("legacy")
    root, run = base / "root", base / "run"
    environ = {
        **os.environ,
        "GEAR_ROOT": str(root),
        "GEAR_RUN": str(run),
        "GEAR_STORE": str(gear.store),
        "GEAR_WATCHDOG_S": str(WATCHDOG_S),
    }
    command = [sys.executable, "-m", "gear_plugin", "graphdriver", "--socket", str(SOCKET)]
    engine = Engine("c", BUILD / "engines" / "c", env=registry.client_environ)
    engine.remove()  # what a crashed predecessor left
    SOCKET.unlink(missing_ok=True)
    with (base / "log").open("wb") as log:
        supervisor = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
    try:
        eventually(SOCKET.exists, what="the plugin socket")
        engine.start("gear-legacy")
        made = Legacy(engine, root, run)
        yield made
        engine.remove()
        supervisor.terminate()
        assert supervisor.wait(20) == 0, (base / "log").read_text()
        assert made.mounts() == []
    finally:
        engine.remove()
        supervisor.kill()
        supervisor.wait()
        SOCKET.unlink(missing_ok=True)


@pytest.fixture
def container(legacy: Legacy, pushed: dict[str, str]) -> Iterator[str]:
    """A running container of the `web` image."""
    words = ("--network", "none", "--entrypoint", "sleep", "--user", "0")
    name = legacy.engine.docker("run", "-d", *words, pushed["web"], "600").stdout.strip()
    yield name
    legacy.engine.docker("rm", "-f", name)


def python(legacy: Legacy, container: str, module: str) -> int:
    """Import *module* inside the container; the exit status."""
    words = ("exec", container, "python3", "-B", "-c", f"import {module}")
    return legacy.engine.docker(*words, check=False).returncode


def test_containers_run(legacy: Legacy, container: str) -> None:
    """
    No plugin, no registry of plugins: a socket is enough.
    """
    assert python(legacy, container, "json") == 0


def test_a_hung_fuse_daemon_is_replaced(legacy: Legacy, container: str) -> None:
    """
    SIGSTOP: cached files read on, the watchdog kills it, and the rest comes back.
    """
    assert python(legacy, container, "json") == 0
    hung = legacy.fuse_pid()
    os.kill(hung, signal.SIGSTOP)
    assert python(legacy, container, "json") == 0
    eventually(
        lambda: legacy.fuse_pid() not in (0, hung), timeout_s=5 * WATCHDOG_S, what="a new daemon"
    )
    eventually(lambda: python(legacy, container, "sqlite3") == 0, timeout_s=60, what="healing")


def test_a_killed_client_comes_back(legacy: Legacy, container: str) -> None:
    """
    Cached files read without it, others once it is there again.
    """
    client = process_of(legacy, "client")
    os.kill(client, signal.SIGKILL)
    assert python(legacy, container, "json") == 0
    eventually(lambda: process_of(legacy, "client") not in (0, client), what="a new client")
    eventually(lambda: python(legacy, container, "xml.dom.minidom") == 0, what="a fetch")


def test_a_killed_api_loses_no_reference(
    legacy: Legacy, container: str, pushed: dict[str, str]
) -> None:
    """
    The new process finds the mount and counts it, so removal unmounts it.
    """
    api = process_of(legacy, "run-api")
    os.kill(api, signal.SIGKILL)
    words = ("run", "--rm", "--network", "none", "--entrypoint", "true", pushed["web"])
    eventually(lambda: legacy.engine.docker(*words, check=False).returncode == 0, what="a run")
    assert python(legacy, container, "json") == 0


def process_of(legacy: Legacy, word: str) -> int:
    """The pid of the supervisor's child with *word* on its command line; 0: none."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                environ = (entry / "environ").read_bytes()
            except OSError:
                continue
            if word.encode() in words and f"GEAR_RUN={legacy.run}\0".encode() in environ:
                return int(entry.name)
    return 0
