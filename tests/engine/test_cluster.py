"""
A cluster with real Docker engines: a manager on a real etcd, a registry, two
nodes with dockerd on the plugin and two without docker, each in a network
namespace of its own; the store is a directory that the kernel watches.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.fleet import ClusterNode, Fleet
from tests.cluster.network import address, netns
from tests.cluster.reads import reads
from tests.engine import images, plugin
from tests.engine.conftest import WORK
from tests.engine.engine import Engine
from tests.engine.filetrace import OpenTrace
from tests.engine.recipes import TASKS
from tests.engine.registry import Registry
from tests.engine.world import Node, install
from tests.waiting import eventually

pytestmark = [pytest.mark.engine, pytest.mark.root]

ENGINES, PLAIN = (1, 2), (3, 4)
READ = ("usr/lib/python3.11/json", "usr/lib/python3.11/email", "opt/venv/lib")
"""What the nodes without docker read of the image."""


@dataclass(frozen=True)
class Cluster:
    """The cluster, what built its images, and the two engines on the plugin."""

    fleet: Fleet
    registry: Registry
    builder: Engine
    engines: dict[int, Engine]

    def gear_image(self, name: str) -> str:
        """Build and push the Gear image of *name*; its reference."""
        original = self.original(name)
        environ = self.builder.environ
        self.fleet.gear("--host", self.builder.host, "build", original, environ=environ)
        ref = f"{self.registry.address}/{name}-gear:1"
        self.fleet.gear("--host", self.builder.host, "push", ref, environ=environ)
        return ref

    def original(self, name: str) -> str:
        """The ordinary image in the registry."""
        ref = f"{self.registry.address}/{name}:1"
        self.builder.docker("tag", images.ensure(self.builder, name), ref)
        self.builder.docker("push", "-q", ref)
        return ref

    def info(self, number: int) -> dict[str, Any]:
        """What a node says of itself."""
        answer = self.fleet.ask("GET", "/info", number=number)
        assert answer.status == 200, answer.body
        found: dict[str, Any] = answer.json()
        return found

    def cached(self, number: int) -> dict[str, int]:
        """The objects in a node's public cache, with their sizes."""
        plain = {node.number: node.root for node in self.fleet.nodes}
        if number in plain:
            root = plain[number]
        else:
            root = Node(self.engines[number], self.fleet.store).inner_root
        files = (root / "public").glob("*/*")
        return {path.parent.name + path.name: path.stat().st_size for path in files}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """All of it; the engines are installed as the manual says."""
    settings = {"start_profiles": "false"}
    with ExitStack() as stack:
        names = {number: f"c{number}" for number in (0, *ENGINES)}
        for name in names.values():
            Engine(name, WORK / name).cleanup_predecessor()
        fleet = stack.enter_context(Fleet(tmp_path_factory.mktemp("fleet"), PLAIN, **settings))
        registry = Registry(WORK / "cluster-registry", address(0), netns(0), 5000)
        stack.callback(registry.stop)
        registry.start()
        engines = {
            number: Engine(name, WORK / name, env=registry.client_environ, netns=netns(number))
            for number, name in names.items()
        }
        builder = engines.pop(0)
        for engine in (builder, *engines.values()):
            stack.callback(engine.remove)
            engine.start("overlay2")
        ref = f"{registry.address}/gear/graphdriver:1"
        plugin.publish(builder, ref)

        def join(engine: Engine) -> None:
            words = (f"manager={address(0)}", f"token={fleet.token}", "start_profiles=false")
            install(engine, ref, fleet.store, *words, f"insecure_registries={registry.address}")
            engine.restart("gear")

        with ThreadPoolExecutor(len(engines)) as workers:
            list(workers.map(join, engines.values()))
        made = Cluster(fleet, registry, builder, engines)
        live = {f"{address(number)}:2020" for number in (*ENGINES, *PLAIN)}
        eventually(
            lambda: {at for at, is_live in fleet.members().items() if is_live} == live,
            what="all four nodes are live",
        )
        eventually(
            lambda: all(knows_all(made, number) for number in (*ENGINES, *PLAIN)),
            what="all four nodes know each other",
        )
        yield made


def knows_all(cluster: Cluster, number: int) -> bool:
    version = cluster.fleet.ask("GET", "/nodes").json()["version"]
    return bool(cluster.info(number)["members_version"] == version)


def read_plain(node: ClusterNode, layer: bytes) -> int:
    """Read a part of the image on a node without docker; how many files that was."""
    node.pull(layer, "image")
    node.call("CreateReadWrite", ID="reader", Parent="image")
    tree = Path(node.call("Get", ID="reader", MountLabel="")["Dir"])
    count = 0
    for folder in READ:
        for path in sorted((tree / folder).rglob("*.py")):
            path.read_bytes()
            count += 1
    return count


def test_one_image_starts_on_all_nodes_at_once(cluster: Cluster) -> None:
    """
    Every object is read from the store at most twice, all containers finish,
    and what the nodes say that they fetched is what they have.
    """
    fleet, task = cluster.fleet, TASKS["web"]
    ref = cluster.gear_image("web")
    (stored,) = cluster.registry.layers("web-gear:1")
    layer = gzip.decompress(stored.read_bytes())
    for engine in cluster.engines.values():
        engine.docker("pull", "-q", ref)

    def run(engine: Engine) -> str:
        words = ("run", "--rm", "--network", "none", *task.run(ref))
        return engine.docker(*words).stdout.strip()

    with OpenTrace(fleet.store) as trace, ThreadPoolExecutor(4) as workers:
        runs = [workers.submit(run, engine) for engine in cluster.engines.values()]
        looks = [workers.submit(read_plain, node, layer) for node in fleet.nodes]
        assert [one.result() for one in runs] == [task.output] * len(runs)
        assert all(one.result() > 500 for one in looks)
        counted = reads(trace)
    assert max(counted.values()) <= 2
    from_store: Counter[str] = Counter()
    for number in (*ENGINES, *PLAIN):
        cached, fetched = cluster.cached(number), cluster.info(number)["fetched"]
        assert fetched["objects"] == len(cached)
        assert fetched["size_bytes"] == sum(cached.values())
        assert fetched["failures"] == 0
        for name, source in fetched["sources"].items():
            from_store["store" if name.startswith("store") else name] += source["objects"]
    assert from_store["store"] == sum(counted.values())
    assert from_store["other nodes"] > from_store["store"] / 4


def test_running_containers_miss_neither_manager_nor_etcd(cluster: Cluster) -> None:
    """
    What a container has not opened yet still comes, and new containers start.
    """
    ref, task = f"{cluster.registry.address}/web-gear:1", TASKS["web"]
    engine = cluster.engines[1]
    words = ("run", "-d", "--network", "none", "--user", "0", "--entrypoint", "sleep", ref, "600")
    name = engine.docker(*words).stdout.strip()
    cluster.fleet.kill_manager()
    cluster.fleet.etcd.kill()
    try:
        read = "find /usr/share/perl5 /usr/lib/python3.11 -type f -exec cat {} + | wc -c"
        assert int(engine.docker("exec", name, "sh", "-c", read).stdout) > 10_000_000
        once = ("run", "--rm", "--network", "none", *task.run(ref))
        for other in cluster.engines.values():
            assert other.docker(*once).stdout.strip() == task.output
    finally:
        cluster.fleet.etcd.start()
        cluster.fleet.start_manager()
        engine.docker("rm", "-f", name)


def test_two_nodes_take_in_one_image_at_once(cluster: Cluster) -> None:
    """
    `POST /upload` on both: each builds and pushes it into the cluster's
    catalog, and the result runs.
    """
    original = cluster.original("web2")
    path = "/upload/" + original.rpartition(":")[0] + "/1"
    for number in ENGINES:
        answer = cluster.fleet.ask("POST", path, number=number)
        assert answer.status == 202, answer.body

    def state(number: int) -> dict[str, Any]:
        found: dict[str, Any] = cluster.fleet.ask("GET", path, number=number).json()
        return found

    eventually(
        lambda: all(state(number)["state"] in ("done", "failed") for number in ENGINES),
        timeout_s=400,
        what="both uploads end",
    )
    assert [state(number)["state"] for number in ENGINES] == ["done", "done"], json.dumps(
        [state(number) for number in ENGINES]
    )
    ref = f"{cluster.registry.address}/web2-gear:1"
    listed = json.loads(cluster.fleet.gear("images", "--json").stdout)
    assert [one["pushed"] for one in listed if one["gear_image"] == ref] == [True]
    task = TASKS["web2"]
    for engine in cluster.engines.values():
        engine.docker("pull", "-q", ref)
        words = ("run", "--rm", "--network", "none", *task.run(ref))
        assert engine.docker(*words).stdout.strip() == task.output
