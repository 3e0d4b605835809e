"""`gear restore`, `inspect`, `images` and `doctor` on real engines and a real node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.engine.compare import differences, scan
from tests.engine.conftest import Originals
from tests.engine.containers import DOCKERS_OWN, original, pull, running, tree, unexpected
from tests.engine.engine import Engine
from tests.engine.registry import Registry
from tests.engine.world import Gear, Node

pytestmark = [pytest.mark.engine, pytest.mark.root]

RESTORED = ("web", "scipy", "torture")
on_one_node = pytest.mark.parametrize("node", ["direct"], indirect=True)


def gear_on(
    engine: Engine, store: Path, root: Path, *words: str
) -> subprocess.CompletedProcess[str]:
    """Run `gear` against *engine* as root of its machine would, with nothing in *root*."""
    command = [sys.executable, "-m", "gear_plugin", "--host", engine.host, "--root", str(root)]
    command += ["--store", str(store), "--catalog", f"sqlite://{store}/catalog.sqlite", *words]
    environ = {**os.environ, **engine.environ, "GEAR_RUN": str(root / "run")}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, env=environ
    )


def config(engine: Engine, ref: str) -> object:
    return json.loads(engine.docker("image", "inspect", ref).stdout)[0]["Config"]


def compare(originals: Originals, name: str, engine: Engine, ref: str) -> list[str]:
    """Every difference between the original of *name* and the restored *ref*, in containers."""
    with running(engine, ref) as container:
        found = scan(tree(engine, container), DOCKERS_OWN)
    return unexpected(differences(originals.scan(name), found), engine, ref)


@pytest.mark.parametrize("name", RESTORED)
def test_a_restored_image_is_the_original(
    gear: Gear, pushed: dict[str, str], originals: Originals, name: str
) -> None:
    """
    Tree and configuration, bit for bit; and building from it gives the same index.
    """
    restored = f"restored/{name}:1"
    done = json.loads(gear("restore", pushed[name], "--name", restored, "--json").stdout)
    try:
        found = compare(originals, name, gear.engine, restored)
        assert not found, "\n".join(found)
        assert config(gear.engine, restored) == originals.config(name)
        inspected = json.loads(gear.engine.docker("image", "inspect", restored).stdout)[0]
        assert inspected["Id"] == done["image_id"]
        assert inspected["RootFS"]["Layers"] == [done["layer"]]
        if name != "scipy":  # large, and nothing new
            rebuilt = json.loads(gear("build", restored, "--json").stdout)
            assert rebuilt["index"] == done["index"]
            gear.engine.docker("rmi", rebuilt["gear_image"])
    finally:
        gear.engine.docker("rmi", restored)


def test_a_restored_archive_loads_into_an_engine(
    gear: Gear, pushed: dict[str, str], originals: Originals, tmp_path: Path
) -> None:
    """
    From store and engine alone: the build folder is somebody else's.
    """
    out = tmp_path / "web.tar"
    words = ("restore", pushed["web"], "--name", "loaded:1", "--output", str(out), "--json")
    done = gear_on(gear.engine, gear.store, tmp_path / "root", *words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["found_in"] == "Docker engine"
    gear.engine.docker("load", "-i", str(out))
    try:
        assert compare(originals, "web", gear.engine, "loaded:1") == []
    finally:
        gear.engine.docker("rmi", "loaded:1")
    assert not (tmp_path / "root").exists()


def test_what_the_engine_has_is_not_taken(gear: Gear, pushed: dict[str, str]) -> None:
    """
    The original keeps its name, and an ordinary image is not taken for a Gear image.
    """
    before = gear.engine.docker("image", "inspect", original(pushed, "web"), "-f", "{{.Id}}").stdout
    refused = gear("restore", pushed["web"], check=False)
    assert (refused.returncode, "--replace" in refused.stderr) == (4, True)
    after = gear.engine.docker("image", "inspect", original(pushed, "web"), "-f", "{{.Id}}").stdout
    assert after == before
    gear.engine.docker("tag", original(pushed, "web"), "fake-gear:1")
    try:
        wrong = gear("inspect", "fake-gear:1", check=False)
        assert (wrong.returncode, "no Gear image" in wrong.stderr) == (6, True)
    finally:
        gear.engine.docker("rmi", "fake-gear:1")


@on_one_node
def test_a_node_restores_from_its_cache_and_the_store(
    node: Node, pushed: dict[str, str], originals: Originals, tmp_path: Path
) -> None:
    """
    The plugin's node is found through the engine; its own engine runs the result.
    """
    pull(node, pushed["web"])
    with running(node.engine, pushed["web"], "python3", "-c", "import flask") as container:
        node.engine.docker("wait", container)
    cached = node.cached()
    assert cached
    words = ("restore", pushed["web"], "--name", "plain:1", "--json")
    done = gear_on(node.engine, node.store, tmp_path / "root", *words)
    assert done.returncode == 0, done.stderr
    assert str(node.inner_root) in json.loads(done.stdout)["found_in"]
    try:
        assert compare(originals, "web", node.engine, "plain:1") == []
    finally:
        node.engine.docker("rmi", "plain:1")
    assert node.cached() == cached


@on_one_node
def test_a_node_tells_what_it_has(node: Node, pushed: dict[str, str], tmp_path: Path) -> None:
    """
    Images and inspect agree with what the node's folder holds.
    """
    pull(node, pushed["web"])
    index = node.image(pushed["web"])
    done = gear_on(node.engine, node.store, tmp_path / "root", "images", "--json")
    (listed,) = (
        one
        for one in json.loads(done.stdout)
        if one["gear_image"] == pushed["web"] and one["index"] == f"sha256:{index}"
    )
    assert (listed["pushed"], listed["built"], listed["installed"]) == (True, False, True)
    assert 0 < listed["cached_objects"] <= listed["objects"]

    def inspect(*words: str) -> Any:
        words = ("inspect", pushed["web"], "--json", *words)
        return json.loads(gear_on(node.engine, node.store, tmp_path / "root", *words).stdout)

    report = inspect()
    assert report["index"] == f"sha256:{index}"
    assert report["cached_bytes"] == listed["cached_bytes"] <= node.cached_bytes()
    digests = {entry["digest"] for entry in inspect("--files")} - {None}
    assert len(digests) == report["objects"]


def doctor(engine: Engine, store: Path, root: Path, *words: str) -> dict[str, dict[str, Any]]:
    """Findings by check."""
    done = gear_on(engine, store, root, "doctor", "--json", "--timeout", "60", *words)
    assert done.returncode in (0, 1), done.stderr
    found = {finding["check"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == any(finding["status"] == "fix" for finding in found.values())
    return found


@on_one_node
def test_doctor_finds_a_node_well(node: Node, registry: Registry, tmp_path: Path) -> None:
    """
    Engine, plugin, driver, daemons, the plugin's own store, and the registry: all green.
    """
    found = doctor(node.engine, node.store, tmp_path / "root", "--registry", registry.address)
    green = [
        *("way of mounting", "FUSE device", "FUSE library", "Docker engine", "driver plugins"),
        *("Gear plugin", "storage driver", "store", "store: speed", "catalog"),
        *(f"registry {registry.address}", "client of plugin gear:latest"),
        *("FUSE daemon of plugin gear:latest", "store of plugin gear:latest"),
    ]
    assert {check: found[check]["status"] for check in green} == dict.fromkeys(green, "ok"), found
    assert "mounts direct" in found["storage driver"]["detail"]


def test_doctor_tells_a_builder_how_to_run_images(
    gear: Gear, pushed: dict[str, str], tmp_path: Path
) -> None:
    """
    Nothing is broken there; the driver is another.
    """
    found = doctor(gear.engine, gear.store, tmp_path / "root")
    assert found["Docker engine"]["status"] == "ok"
    assert found["driver plugins"]["status"] == "ok"
    assert found["storage driver"]["status"] == "warn"
    assert "dockerd --experimental --storage-driver " in found["storage driver"]["remedy"]
